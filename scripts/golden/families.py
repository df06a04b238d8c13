"""Golden logits, loss and LoRA gradients of every decoder family from PyTorch + PEFT, for tests/family_goldens.rs.

Small models whose config.json is written as the published ones are: every key that changes what is computed is there,
with windows and thresholds below the lengths of the sequences. f32, eager attention, rank 8 on all linear layers.
No weights are stored: they are hashed as in lora_gradients.py.

    OMP_NUM_THREADS=1 python scripts/golden/families.py [NAME …]     writes crates/model/tests/golden/family_*.json

Versions that made the committed files stand in each file under "versions".
"""

import json
import platform
import sys
import tempfile

import numpy as np
import peft
import torch
import transformers

from lora_gradients import IGNORE, OUT, ROOT, adapter_parameters, adapter_weight, base_weight, tokens

RANK, ALPHA = 8, 16
SAMPLES = 16
LOGIT_ROWS, LOGIT_SAMPLES = 6, 64
# Lengths of the sequences, and every how many tokens one is not a target (0: all are).
CASES = {"packed_and_masked": ([40, 33], 3), "long_sequence": ([300], 0)}
# Beside one another in a batch, on both sides of longrope's threshold.
LONGROPE_CASES = CASES | {"short_beside_long": ([40, 100], 0)}

PLAIN = dict(
    hidden_act="silu", hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=1024,
    tie_word_embeddings=False, vocab_size=500, torch_dtype="float32",
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)

# What Qwen2.5's page says to add for long texts.
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)


def longrope(pairs):
    return dict(type="longrope", short_factor=[1.0 + 0.03 * i for i in range(pairs)],
                long_factor=[1.0 + 0.9 * i for i in range(pairs)])


GEMMA = dict(
    hidden_size=96, intermediate_size=160, num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=1,
    head_dim=32, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, vocab_size=500, sliding_window=16,
    max_position_embeddings=1024, attention_bias=False,
)

MAMBA = dict(
    architectures=["Mamba2ForCausalLM"], model_type="mamba2", hidden_size=96, expand=2, num_heads=12, head_dim=16,
    state_size=24, conv_kernel=4, chunk_size=32, hidden_act="silu", layer_norm_epsilon=1e-5, num_hidden_layers=2,
    use_bias=False, use_conv_bias=True, residual_in_fp32=True, vocab_size=500, torch_dtype="float32",
)

DEEPSEEK = PLAIN | dict(
    architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", attention_bias=False, attention_dropout=0.0,
    aux_loss_alpha=0.001, first_k_dense_replace=1, kv_lora_rank=48, max_position_embeddings=2560, moe_intermediate_size=40,
    moe_layer_freq=1, n_group=1, n_routed_experts=10, n_shared_experts=2, norm_topk_prob=False, num_experts_per_tok=3,
    num_attention_heads=4, num_hidden_layers=3, num_key_value_heads=4, q_lora_rank=None, qk_nope_head_dim=24,
    qk_rope_head_dim=16, rms_norm_eps=1e-6, routed_scaling_factor=1.0, scoring_func="softmax", seq_aux=True,
    topk_group=1, topk_method="greedy", v_head_dim=20,
    rope_scaling=dict(type="yarn", factor=40, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707,
                      original_max_position_embeddings=64),
)

FAMILIES = {
    "llama3": PLAIN | dict(architectures=["LlamaForCausalLM"], model_type="llama", rope_scaling=LLAMA3),
    "smollm2": PLAIN | dict(architectures=["LlamaForCausalLM"], model_type="llama", tie_word_embeddings=True,
                            rope_theta=100000, num_attention_heads=3, num_key_value_heads=3),
    "mistral": PLAIN | dict(architectures=["MistralForCausalLM"], model_type="mistral", head_dim=24,
                            sliding_window=None, rope_theta=1000000.0),
    "mistral_window": PLAIN | dict(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=20),
    "qwen2": PLAIN | dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", sliding_window=32,
                          use_sliding_window=False, max_window_layers=1, tie_word_embeddings=True),
    "qwen2_yarn": PLAIN | dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", use_sliding_window=False,
                               rope_scaling=YARN),
    "qwen3": PLAIN | dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=32, attention_bias=False),
    "phi4_mini": PLAIN | dict(architectures=["Phi3ForCausalLM"], model_type="phi3", partial_rotary_factor=0.75,
                              original_max_position_embeddings=64, rope_scaling=longrope(6), sliding_window=262144,
                              tie_word_embeddings=True, attention_bias=False, pad_token_id=0, bos_token_id=1,
                              eos_token_id=1),
    "phi3_window": PLAIN | dict(architectures=["Phi3ForCausalLM"], model_type="phi3", sliding_window=24,
                                original_max_position_embeddings=64, rope_scaling=longrope(8), pad_token_id=0,
                                bos_token_id=1, eos_token_id=1),
    "gemma3": GEMMA | dict(architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", query_pre_attn_scalar=40,
                           rope_theta=1000000, rope_local_base_freq=500, rope_scaling=None, sliding_window_pattern=6),
    # The 4B: what its text_config leaves out has transformers' defaults.
    "gemma3_4b": dict(architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3",
                      text_config=GEMMA | dict(model_type="gemma3_text", query_pre_attn_scalar=32,
                                               rope_scaling=dict(factor=8.0, rope_type="linear")),
                      vision_config=dict(model_type="siglip_vision_model", hidden_size=32, intermediate_size=64,
                                         num_hidden_layers=1, num_attention_heads=2)),
    "mamba2": MAMBA | dict(n_groups=1, tie_word_embeddings=True, num_hidden_layers=3),
    # Mamba-Codestral's keys, several groups, chunks that a sequence crosses.
    "codestral": MAMBA | dict(n_groups=2, tie_word_embeddings=False, norm_before_gate=True, rms_norm=True,
                              time_step_limit=[0.0, {"__float__": "Infinity"}], intermediate_size=192),
    # DeepSeek-V2-Lite's keys: a dense layer, then routed ones, of which transformers holds all experts in two tensors.
    "deepseek2": DEEPSEEK,
    "deepseek2_plain": DEEPSEEK | dict(rope_scaling=None, n_shared_experts=1, routed_scaling_factor=1.5,
                                       first_k_dense_replace=0, num_hidden_layers=2),
    "starcoder2": PLAIN | dict(architectures=["Starcoder2ForCausalLM"], model_type="starcoder2", use_bias=True,
                               hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5, sliding_window=20,
                               tie_word_embeddings=True),
}


# PEFT refuses the output projection of a Mamba-2, and with it "all-linear".
TARGETS = {"mamba2": ["in_proj"]}


def published(family, name):
    """The name under which a checkpoint of the family holds what transformers calls `name`."""
    return "language_model." + name if family == "gemma3_4b" else name


def fused_or_not(name, shape):
    """The weight of this name, or of all experts: transformers stacks what a checkpoint holds one by one."""
    stem, _, last = name.rpartition(".")
    if last == "gate_up_proj":
        half = (shape[1] // 2, shape[2])
        pair = lambda e: [base_weight(f"{stem}.{e}.{part}.weight", half) for part in ("gate_proj", "up_proj")]
        return np.stack([np.concatenate(pair(e)) for e in range(shape[0])])
    if stem.endswith(".experts") and last == "down_proj":
        return np.stack([base_weight(f"{stem}.{e}.down_proj.weight", shape[1:]) for e in range(shape[0])])
    return base_weight(name, shape)


def build(family):
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/config.json", "w") as file:
            json.dump(FAMILIES[family], file)
        config = transformers.AutoConfig.from_pretrained(folder)
    config = config.get_text_config()
    config._attn_implementation = "eager"
    torch.set_default_dtype(torch.float32)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(fused_or_not(published(family, name), tuple(parameter.shape))))
    if config.model_type == "deepseek_v2":
        # PEFT would take the names of the MLPs' layers for those of the routed experts.
        config.model_type = "deepseek_v2, dense layers alone"
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, task_type="CAUSAL_LM",
                           target_modules=TARGETS.get(config.model_type, "all-linear"))
    model = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in adapters(family, model):
            parameter.copy_(torch.from_numpy(adapter_weight(name, tuple(parameter.shape))))
    model.eval()
    return model, config


def adapters(family, model):
    prefix = "base_model.model."
    rename = lambda name: prefix + published(family, name.removeprefix(prefix))
    return [(rename(name), parameter) for name, parameter in adapter_parameters(model)]


def short(values):
    return [float(f"{x:.8g}") for x in values.tolist()]


def some_logits(logits):
    """Some rows, each with its largest magnitude and every so many entries."""
    n, v = logits.shape
    rows = [round(i * (n - 1) / (LOGIT_ROWS - 1)) for i in range(LOGIT_ROWS)]
    return [dict(row=row, largest=logits[row].abs().max().item(), samples=short(logits[row][:: v // LOGIT_SAMPLES]))
            for row in rows]


def cases_of(family):
    return LONGROPE_CASES if family.startswith("phi") else CASES


def run(family, model, config, case):
    """Mean loss over all targets, each sequence run alone; its gradients; logits of each sequence."""
    lengths, masked_every = cases_of(family)[case]
    ids = tokens(case, sum(lengths), config.vocab_size)
    targets, start = [], 0
    for length in lengths:
        for i in range(start, start + length):
            masked = masked_every and i % masked_every == 0
            targets.append(IGNORE if i == start + length - 1 or masked else ids[i + 1])
        start += length
    n_targets = sum(target != IGNORE for target in targets)
    model.zero_grad(set_to_none=True)
    loss, start, logits = 0.0, 0, []
    for length in lengths:
        part = slice(start, start + length)
        output = model(input_ids=torch.tensor([ids[part]]), use_cache=False).logits[0].float()
        nll = torch.nn.functional.cross_entropy(output, torch.tensor(targets[part]), ignore_index=IGNORE,
                                                reduction="sum")
        (nll / n_targets).backward()
        loss += nll.item()
        logits.append(some_logits(output.detach()))
        start += length
    gradients = {}
    for name, parameter in adapters(family, model):
        flat = parameter.grad.double().flatten()
        gradients[name] = dict(norm=flat.norm().item(), sum=flat.sum().item(),
                               samples=short(flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]))
    print(f"  {case}: loss {loss / n_targets:.6f} over {n_targets} targets")
    return dict(lengths=lengths, masked_every=masked_every, tokens_head=ids[:4], n_targets=n_targets,
                loss=loss / n_targets, logits=logits, gradients=gradients)


def main():
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
                    peft=peft.__version__, numpy=np.__version__)
    for family in sys.argv[1:] or FAMILIES:
        print(family)
        model, config = build(family)
        cases = {case: run(family, model, config, case) for case in cases_of(family)}
        path = OUT / f"family_{family}.json"
        golden = dict(versions=versions, config=FAMILIES[family], rank=RANK, alpha=ALPHA, cases=cases)
        text = json.dumps(golden, separators=(",", ":"))
        path.write_text(text.replace('"base_model', '\n"base_model').replace('{"row"', '\n{"row"') + "\n")
        print(f"  wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
