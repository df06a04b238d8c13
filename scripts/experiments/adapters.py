"""What LoRA's variants gain on the small base of the project: the table of recipes/LOG.md.

    python scripts/experiments/adapters.py TUNE [GROUP …]     TUNE: the binary; no packages needed

Trains each variant STEPS steps with each of two seeds on the quickstart's rows, and prints the mean of the
validation losses with the widest distance from it, and what base and adapter together lack of the weights where a
method says so.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, SEEDS = 24, (1, 2)

RECIPE = """
[model]
base = "{root}/recipes/pocket"
quant = "{quant}"
[adapter]
rank = 8
alpha = 16
{adapter}
[data]
train = "{root}/datasets/quickstart/train.jsonl"
validation = "{root}/datasets/quickstart/test.jsonl"
max_seq_len = 256
[train]
max_steps = {steps}
batch_size = 8
learning_rate = {rate}
seed = {seed}
{train}
"""

# Name: form of the base, [adapter], [train].
GROUPS = {
    "variants": {
        "lora": ("q4_k_m", "", ""),
        "rslora": ("q4_k_m", "rslora = true", ""),
        "lora+ 4": ("q4_k_m", "", "lora_plus_ratio = 4"),
        "lora+ 16": ("q4_k_m", "", "lora_plus_ratio = 16"),
        "dropout 0.05": ("q4_k_m", "dropout = 0.05", ""),
        "dora": ("q4_k_m", "dora = true", ""),
        "pissa": ("q4_k_m", 'init = "pissa"', ""),
        "loftq 1": ("q4_k_m", 'init = "loftq"\nloftq_iterations = 1', ""),
        "loftq 5": ("q4_k_m", 'init = "loftq"', ""),
        "elastic": ("q4_k_m", "elastic = true", ""),
        "down_proj 24": ("q4_k_m", "ranks = { down_proj = 24 }", ""),
    },
    "nf4": {
        "nf4": ("nf4", "", ""),
        "nf4, loftq 5": ("nf4", 'init = "loftq"', ""),
        "nf4, elastic": ("nf4", "elastic = true", ""),
        "nf4_ic": ("nf4_ic", "", ""),
        "nf4_ic, elastic": ("nf4_ic", "elastic = true", ""),
        "f32": ("f32", "", ""),
    },
}
RATES = (1e-3, 2e-3)


def train(tune, folder, name, quant, adapter, more, rate, seed):
    recipe = RECIPE.format(root=ROOT, quant=quant, adapter=adapter, train=more, rate=rate, seed=seed, steps=STEPS)
    (folder / f"{name}.toml").write_text(recipe)
    done = subprocess.run([tune, "train", "--json", f"{name}.toml"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: {done.stderr}{done.stdout[-2000:]}")
    outcome = json.loads((folder / "runs" / name / "run.json").read_text())["outcome"]
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    lost = next((event for event in events if event.get("event") == "decomposed"), None)
    return outcome, lost


def main():
    tune = pathlib.Path(sys.argv[1]).resolve()
    for group in sys.argv[2:] or GROUPS:
        print(f"{group:18} base    " + "".join(f"{rate:>22g}" for rate in RATES))
        for name, (quant, adapter, more) in GROUPS[group].items():
            cells, lost, base = [], None, 0.0
            for rate in RATES:
                with tempfile.TemporaryDirectory() as folder:
                    runs = [train(tune, pathlib.Path(folder), f"s{seed}", quant, adapter, more, rate, seed) for seed in SEEDS]
                losses = [outcome["validation_loss"] for outcome, _ in runs]
                mean = sum(losses) / len(losses)
                cells.append(f"{mean:12.4f} ± {max(abs(loss - mean) for loss in losses):6.4f} ")
                base, lost = runs[0][0]["base_validation_loss"], runs[0][1]
            shown = f"  lost {100 * lost['lost_before']:.2f} % -> {100 * lost['lost_after']:.2f} %" if lost else ""
            print(f"{name:18} {base:.4f}  " + "".join(cells) + shown, flush=True)


if __name__ == "__main__":
    main()
