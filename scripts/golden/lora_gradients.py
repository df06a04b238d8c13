"""Golden loss and LoRA gradients from PyTorch + PEFT, for crates/model/tests/lora_gradients.rs.

Two-layer Qwen3 and Llama of published shape (Qwen3-0.6B, Llama-3.2-1B with its llama3 rotary scaling), rank 16,
alpha 32 on all seven linear layers, f32, eager attention. No weights are stored: every tensor is hashed from its name
and element index, by the same integers here and in Rust (`hashed`, crates/model/tests/hashed/mod.rs).

    python scripts/golden/lora_gradients.py                      writes crates/model/tests/golden/lora_*.json
    python scripts/golden/lora_gradients.py --quantised DIR      the same on the weights that the GGUFs in DIR hold
                                                                 (cargo run --release -p model --example hashed_gguf -- DIR),
                                                                 and on linear layers in NF4, written out anew below

Versions that made the committed files stand in each file under "versions".
"""

import argparse
import json
import math
import pathlib
import platform

import numpy as np
import peft
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates" / "model" / "tests" / "golden"
RANK, ALPHA = 16, 32
SAMPLES = 64
IGNORE = -100

QWEN3 = dict(
    vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-6, max_position_embeddings=40960, tie_word_embeddings=True,
    rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
)
LLAMA = dict(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=2, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, rms_norm_eps=1e-5, max_position_embeddings=131072, tie_word_embeddings=True,
    rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0,
                         high_freq_factor=4.0, original_max_position_embeddings=8192),
)
FAMILIES = {
    "qwen3": lambda: (transformers.Qwen3Config(**QWEN3), transformers.Qwen3ForCausalLM),
    "llama": lambda: (transformers.LlamaConfig(**LLAMA), transformers.LlamaForCausalLM),
}
# Lengths of the packed sequences, and every how many tokens one is not a target (0: all are).
CASES = {
    "one_sequence": ([64], 0),
    "long_sequence": ([200], 0),
    "packed_and_masked": ([40, 33], 3),
}

QUANTISED_CASES = ["packed_and_masked"]

MASK = (1 << 64) - 1

MIXER = {"conv1d.weight": (0.5, 0.0), "A_log": (1.0, 0.5), "dt_bias": (1.0, -1.0), "mixer.D": (0.25, 1.0)}


def fnv1a(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def hashed(name, n, scale, offset=0.0):
    """n values, uniform in offset +- scale on a grid of scale / 2^23: splitmix64 of fnv1a(name) + index."""
    out = np.empty(n, np.float32)
    chunk = 1 << 22
    for start in range(0, n, chunk):
        z = np.arange(start + 1, min(start + chunk, n) + 1, dtype=np.uint64)
        z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(fnv1a(name))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        unit = (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1.0)
        out[start : start + chunk] = np.float32(offset) + unit * np.float32(scale)
    return out


def base_weight(name, shape):
    """Norms are 1 +- 1/4; biases +- 1/4; an embedding +- 1/8; a linear layer has unit gain: +- sqrt(3 / columns).

    Of a mixer: kernels +- 1/2, logarithms of the decay 1/2 +- 1, biases of the step -1 +- 1, skips 1 +- 1/4.
    """
    n = math.prod(shape)
    for end, (scale, offset) in MIXER.items():
        if name.endswith(end):
            return hashed(name, n, scale, offset).reshape(shape)
    if name.endswith(".bias"):
        return hashed(name, n, 0.25).reshape(shape)
    if name.endswith(("norm.weight", "norm_f.weight")):
        return hashed(name, n, 0.25, 1.0).reshape(shape)
    scale = 0.125 if "embed" in name else np.float32(math.sqrt(3.0 / shape[1]))
    return hashed(name, n, scale).reshape(shape)


def adapter_weight(name, shape):
    """A +- 1/sqrt(columns), B +- 1/32: both far from zero, so that every gradient is."""
    scale = np.float32(1.0 / math.sqrt(shape[1])) if ".lora_A." in name else 1.0 / 32.0
    return hashed(name, math.prod(shape), scale).reshape(shape)


def tokens(case, n, vocab_size):
    z = [(fnv1a(f"{case}.tokens") + (i + 1) * 0x9E3779B97F4A7C15) & MASK for i in range(n)]
    z = [((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK for x in z]
    z = [((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK for x in z]
    return [(x ^ (x >> 31)) % vocab_size for x in z]


def dequantised(path):
    """The tensors of a GGUF as f32, under their names there."""
    import gguf

    reader = gguf.GGUFReader(path)
    out = {}
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        out[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    return out


NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)

MIDPOINTS = np.float32(0.5) * (NF4[:-1] + NF4[1:])


def nf4(weight):
    """NF4 with double quantisation there and back: blocks of 64, their magnitudes as bytes in groups of 256 a row."""
    out = np.empty_like(weight)
    for row, into in zip(weight, out):
        for first in range(0, row.size, 256 * 64):
            blocks = row[first : first + 256 * 64].reshape(-1, 64)
            magnitude = np.abs(blocks).max(1)
            low, high = magnitude.min(), magnitude.max()
            offset, step = np.float32(0.5) * (low + high), (high - low) / np.float32(254)
            q = (magnitude - offset) / step if step > 0 else np.zeros_like(magnitude)
            byte = np.clip(np.trunc(q + np.copysign(np.float32(0.5), q)), -127, 127)
            seen = (offset + step * byte.astype(np.float32))[:, None]
            # Midpoints below, not the smallest distance: a tie in f32 must fall as it does in the codec.
            codes = ((blocks * (np.float32(1) / seen))[:, :, None] > MIDPOINTS).sum(2)
            into[first : first + 256 * 64] = (NF4[codes] * seen).reshape(-1)
    return out


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    if name.startswith("model.layers."):
        _, _, layer, module = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[module]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def build(family, blocks, kind_of_linears):
    config, kind = FAMILIES[family]()
    config._attn_implementation = "eager"
    torch.set_default_dtype(torch.float32)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if blocks is None:
                values = base_weight(name, tuple(parameter.shape))
            elif kind_of_linears == "nf4" and "_proj" in name:
                values = nf4(base_weight(name, tuple(parameter.shape)))
            else:
                # The example writes rows in Hugging Face's order, so that nothing is permuted here.
                values = blocks[gguf_name(name)].reshape(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(np.array(values)))
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, task_type="CAUSAL_LM",
                           target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    model = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model):
            parameter.copy_(torch.from_numpy(adapter_weight(name, tuple(parameter.shape))))
    model.eval()
    return model, config


def adapter_parameters(model):
    """(name as in adapter_model.safetensors, parameter) of all adapter weights."""
    return [(name.replace(".default.", "."), p) for name, p in model.named_parameters() if ".lora_" in name]


def run(model, config, case):
    """Mean loss over all targets of the packed sequences, each run alone, and its gradients."""
    lengths, masked_every = CASES[case]
    ids = tokens(case, sum(lengths), config.vocab_size)
    # targets[i] is what position i should predict; the last position of a sequence has none.
    targets, start = [], 0
    for length in lengths:
        for i in range(start, start + length):
            last = i == start + length - 1
            masked = masked_every and i % masked_every == 0
            targets.append(IGNORE if last or masked else ids[i + 1])
        start += length
    n_targets = sum(t != IGNORE for t in targets)
    model.zero_grad(set_to_none=True)
    loss, start = 0.0, 0
    for length in lengths:
        part = slice(start, start + length)
        logits = model(input_ids=torch.tensor([ids[part]])).logits[0]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(targets[part]), ignore_index=IGNORE,
                                                reduction="sum")
        (nll / n_targets).backward()
        loss += nll.item()
        start += length
    gradients = {}
    for name, parameter in adapter_parameters(model):
        flat = parameter.grad.double().flatten()
        stride = max(1, flat.numel() // SAMPLES)
        samples = flat[::stride][:SAMPLES]
        gradients[name] = dict(norm=flat.norm().item(), sum=flat.sum().item(),
                               samples=[float(f"{x:.9g}") for x in samples.tolist()])
    print(f"  {case}: loss {loss / n_targets:.6f} over {n_targets} targets")
    return dict(lengths=lengths, masked_every=masked_every, tokens_head=ids[:4], n_targets=n_targets, loss=loss / n_targets, gradients=gradients)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quantised", type=pathlib.Path, metavar="DIR")
    options = arguments.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
                    peft=peft.__version__, numpy=np.__version__)
    for family in FAMILIES:
        print(family)
        blocks = dequantised(options.quantised / f"{family}.gguf") if options.quantised else None
        for kind in ["q4_k_m", "nf4"] if options.quantised else ["f32"]:
            model, config = build(family, blocks, kind)
            chosen = QUANTISED_CASES if options.quantised else CASES
            cases = {case: run(model, config, case) for case in chosen}
            path = OUT / f"lora_{family}_{kind}.json"
            text = json.dumps(dict(versions=versions, cases=cases), separators=(",", ":"))
            path.write_text(text.replace('"base_model', '\n"base_model') + "\n")  # a line for each gradient
            print(f"  wrote {path.relative_to(ROOT)}")
            del model


if __name__ == "__main__":
    main()
