"""Adapters of `tune train` in PEFT: every variant loads there and has the validation loss that was recorded here.

    python scripts/check/peft_reads.py TUNE [VARIANT …]     TUNE: the binary; needs torch, transformers, peft

Trains each variant for a few steps on the small base of the project, held in f32, loads the folder that comes of it
with PeftModel.from_pretrained, and compares the mean loss over the validation rows. Variants of Mamba-2 and
DeepSeek-V2 have a small random one for a base, written by transformers. Prints one line a variant; ends with 1 when
one is off by more than TOLERANCE.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import (AutoModelForCausalLM, DeepseekV2Config, DeepseekV2ForCausalLM, Mamba2Config,
                          Mamba2ForCausalLM)

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "pocket"))
from lora_check import IGNORED, collate, encode, read  # noqa: E402
from packing import Encoder  # noqa: E402

BASE = ROOT / "recipes" / "pocket"
DATA = ROOT / "datasets" / "quickstart"
# Both sum in f32, in other orders.
TOLERANCE = 1e-4

VARIANTS = {
    "lora": "",
    "rslora": "rslora = true\nalpha = 8",
    "dora": "dora = true",
    "dropout": "dropout = 0.1",
    "some_layers": r"""targets = ['layers\.[0-2]\..*(q|down)_proj', "o_proj"]""",
    "ranks": r"""ranks = { down_proj = 4, 'layers\.1\..*' = 12 }
alphas = { 'layers\.0\.self_attn\.v_proj' = 5 }""",
    "pissa": "init = \"pissa\"",
    "pissa_rslora": "rslora = true\nalpha = 8\ninit = \"pissa\"\nranks = { down_proj = 4 }",
    "elastic": "elastic = true",
    "dora_ranks": "dora = true\nrslora = true\nranks = { up_proj = 3 }",
}

MAMBA2 = {
    "mamba2": "",
    "mamba2_dora": "dora = true",
    "mamba2_pissa": "init = \"pissa\"\ntargets = [\"in_proj\"]",
}
DEEPSEEK2 = {
    "deepseek2": "dropout = 0.1",
    "deepseek2_rslora": "rslora = true\nalpha = 8\nranks = { 'shared_experts\\..*' = 4 }\nalphas = { kv_b_proj = 12 }",
    "deepseek2_some": r"""targets = ["kv_b_proj", 'layers\.[01]\..*down_proj']""",
}
VARIANTS |= MAMBA2 | DEEPSEEK2

RECIPE = """
[model]
base = "{base}"
quant = "f32"
[adapter]
rank = 8
{adapter}
[data]
train = "{data}/train.jsonl"
validation = "{data}/test.jsonl"
max_seq_len = 256
[train]
max_steps = 8
batch_size = 8
learning_rate = 2e-3
"""


@torch.no_grad()
def mamba2():
    torch.manual_seed(1)
    config = Mamba2Config(hidden_size=256, num_heads=8, n_groups=2, state_size=64, num_hidden_layers=3, vocab_size=2048,
                          tie_word_embeddings=True, chunk_size=64)
    model = Mamba2ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.copy_(0.03 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def deepseek2():
    torch.manual_seed(1)
    config = DeepseekV2Config(
        hidden_size=128, intermediate_size=192, moe_intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        q_lora_rank=None, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=8,
        n_shared_experts=2, num_experts_per_tok=2, first_k_dense_replace=1, vocab_size=2048, rms_norm_eps=1e-6,
        max_position_embeddings=2560, rope_parameters=dict(
            rope_type="yarn", rope_theta=10000.0, factor=40, mscale=0.707, mscale_all_dim=0.707, beta_fast=32,
            beta_slow=1, original_max_position_embeddings=64))
    model = DeepseekV2ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(0.05 * torch.randn_like(parameter))
    return model


def write(model, folder):
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder)


@torch.no_grad()
def mean_loss(model, rows, pad):
    nll, n = 0.0, 0
    for at in range(0, len(rows), 20):
        ids, labels = collate(rows[at:at + 20], pad)
        logits = model(input_ids=ids).logits[:, :-1].float()
        labels = labels[:, 1:]
        nll += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED,
                                                 reduction="sum").item()
        n += (labels != IGNORED).sum().item()
    return nll / n


def check(tune, variant, rows, pad, folder):
    adapter = VARIANTS[variant]
    if "rslora = true\nalpha" not in adapter:
        adapter = "alpha = 16\n" + adapter
    base = BASE
    for variants, build in ((MAMBA2, mamba2), (DEEPSEEK2, deepseek2)):
        if variant in variants:
            base = folder / build.__name__
            if not base.exists():
                write(build(), base)
    (folder / f"{variant}.toml").write_text(RECIPE.format(base=base, data=DATA, adapter=adapter))
    done = subprocess.run([tune, "train", f"{variant}.toml"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{variant}: {done.stderr}")
    run = folder / "runs" / variant
    recorded = json.loads((run / "run.json").read_text())["outcome"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, run / "adapter").eval()
    theirs, ours = mean_loss(model, rows, pad), recorded["validation_loss"]
    error = abs(theirs / ours - 1)
    print(f"{variant:12} {recorded['base_validation_loss']:.4f} became {ours:.6f}; PEFT {theirs:.6f} ({error:.1e})")
    return error <= TOLERANCE


def main():
    tune = pathlib.Path(sys.argv[1]).resolve()
    encoder = Encoder(BASE)
    rows = [encode(encoder, messages) for messages in read(DATA / "test.jsonl")]
    with tempfile.TemporaryDirectory() as folder:
        results = [check(tune, variant, rows, encoder.end, pathlib.Path(folder)) for variant in sys.argv[2:] or VARIANTS]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
