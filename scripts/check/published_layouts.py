"""Compares our logits with transformers' on checkpoints of published layout: random weights, a few layers, or all of a small one.

    python scripts/check/published_layouts.py SHARED [MODEL …]
    python scripts/check/published_layouts.py SHARED --write MODEL LAYERS FOLDER      only the checkpoint

SHARED holds assets/models/MODEL (config.json, tensors.json) and tools/synth_checkpoint.py, which writes the
checkpoints; those of Mamba-2, DeepSeek-V2-Lite and StarCoder2, of which SHARED has no listing, are written by
transformers itself, with the published hyper-parameters. Needs torch, transformers and numpy, and the example built:
cargo build --release -p model --example forward_logits.
f32 on both sides, 96 tokens; prints the largest error in parts of a row's largest logit, and fails
above 1e-4.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples/forward_logits"
# The small ones in full; Gemma's sixth layer is the first that sees everything.
LAYERS = {"SmolLM2-135M": 30, "Qwen3-0.6B": 28, "mamba2-130m": 24, "gemma-3-1b-it": 6, "gemma-3-4b-it": 6}
MODELS = ["SmolLM2-135M", "Qwen3-0.6B", "Qwen2.5-1.5B-Instruct", "Llama-3.2-1B-Instruct", "gemma-3-1b-it",
          "Phi-4-mini-instruct", "Mistral-7B-Instruct-v0.3", "Llama-3.1-8B-Instruct", "gemma-3-4b-it"]
BUILT = {
    "mamba2-130m": (transformers.Mamba2ForCausalLM, dict(
        hidden_size=768, num_heads=24, n_groups=1, vocab_size=50288, tie_word_embeddings=True)),
    "Mamba-Codestral-7B-v0.1": (transformers.Mamba2ForCausalLM, dict(
        hidden_size=4096, num_heads=128, n_groups=8, vocab_size=32768)),
    "DeepSeek-V2-Lite": (transformers.DeepseekV2ForCausalLM, dict(
        hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408, num_attention_heads=16, q_lora_rank=None,
        kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=64,
        n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1, vocab_size=102400, rms_norm_eps=1e-6,
        max_position_embeddings=163840, bos_token_id=100000, eos_token_id=100001,
        rope_parameters=dict(
            rope_type="yarn", rope_theta=10000.0, factor=40, mscale=0.707, mscale_all_dim=0.707, beta_fast=32,
            beta_slow=1, original_max_position_embeddings=4096))),
    "starcoder2-3b": (transformers.Starcoder2ForCausalLM, dict(
        hidden_size=3072, intermediate_size=12288, num_attention_heads=24, num_key_value_heads=2, vocab_size=49152,
        max_position_embeddings=16384, sliding_window=4096, rope_theta=999999.4420358813, norm_epsilon=1e-5,
        hidden_act="gelu_pytorch_tanh", use_bias=True, bos_token_id=0, eos_token_id=0)),
}
N_TOKENS = 96
TOLERANCE = 1e-4


def reference(folder, ids):
    """Logits of the language model, whatever it is a part of."""
    config = transformers.AutoConfig.from_pretrained(folder)
    # A model of several media under its own class: the auto class would take the text alone for the whole.
    auto = (transformers.AutoModelForImageTextToText if hasattr(config, "vision_config")
            else transformers.AutoModelForCausalLM)
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if config.get_text_config().tie_word_embeddings:
        # Some layouts hold a head beside the embedding. Random ones differ, and transformers then takes the head.
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def write(shared, name, layers, folder):
    if name not in BUILT:
        synthesise = [sys.executable, shared / "tools/synth_checkpoint.py", shared / "assets/models" / name, folder]
        subprocess.run([*synthesise, "--layers", str(layers)], check=True, stdout=subprocess.DEVNULL)
        return
    torch.manual_seed(1)
    kind, published = BUILT[name]
    model = kind(kind.config_class(**published, num_hidden_layers=layers))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # What transformers begins with would leave gains, biases and the logits without a say.
            if parameter.dim() == 1 and not key.endswith(("A_log", "dt_bias")):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.dim() > 1:
                parameter.copy_(0.02 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder)


def check(shared, name):
    with tempfile.TemporaryDirectory() as folder:
        layers = LAYERS.get(name, 2)
        write(shared, name, layers, folder)
        vocabulary = 20000
        ids = [int(i) for i in np.random.default_rng(1).integers(0, vocabulary, N_TOKENS)]
        tokens, out = pathlib.Path(folder) / "tokens.json", pathlib.Path(folder) / "out.f32"
        tokens.write_text(json.dumps(ids))
        subprocess.run([EXAMPLE, folder, tokens, out], check=True)
        ours = np.fromfile(out, "<f4").reshape(N_TOKENS, -1)
        theirs = reference(folder, ids)
    error = (np.abs(ours - theirs).max(axis=1) / np.abs(theirs).max(axis=1)).max()
    print(f"{name:28} {layers} layers, {ours.shape[1]} logits a token: largest error {error:.1e}", flush=True)
    return error <= TOLERANCE


def main():
    shared = pathlib.Path(sys.argv[1]).resolve()
    if sys.argv[2:3] == ["--write"]:
        name, layers, folder = sys.argv[3:]
        return write(shared, name, int(layers), folder)
    results = [check(shared, name) for name in sys.argv[2:] or MODELS + list(BUILT)]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
