"""Training in fewer bits against training in f32: the bundled recipe, its losses step by step, and what all answer.

    python3 scripts/check/precision.py TUNE [STEPS]     TUNE: the binary

Trains recipes/quickstart.toml with `compute = "f32"` (the oracle) and with every other precision that this processor
has, and compares the loss of each of the first STEPS (100) steps, the last validation loss and the exact match. Ends
with 1 when a step's loss is off by more than ABSOLUTE and RELATIVE of it together, or the exact match by more than
MATCH points.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Rounded factors differ by 2^-9; what a step changes in the weights differs then too, and the next step shows it.
ABSOLUTE, RELATIVE = 0.005, 0.002
MATCH = 1.0


def train(tune, compute, work):
    """Losses of the steps, validation losses, and the exact match of the adapter in percent."""
    text = (ROOT / "recipes" / "quickstart.toml").read_text()
    text = text.replace("[model]", f'[model]\ncompute = "{compute}"', 1)
    for folder in ("recipes/pocket", "datasets/quickstart"):
        text = text.replace(f'"{folder}', f'"{ROOT / folder}')
    recipe = work / f"{compute}.toml"
    recipe.write_text(text)
    run = subprocess.run([tune, "train", str(recipe)], cwd=work, capture_output=True, text=True)
    if "no instructions for products" in run.stderr:
        return None
    run.check_returncode()
    metrics = (work / "runs" / compute / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in metrics]
    of = lambda kind: [metric for metric in metrics if metric["kind"] == kind]
    match = of("exact_match")[-1]
    return ([step["loss"] for step in of("step")], [check["loss"] for check in of("validation")],
            100 * match["matched"] / match["rows"])


def main():
    tune, steps = str(pathlib.Path(sys.argv[1]).resolve()), int(sys.argv[2]) if len(sys.argv) > 2 else 100
    with tempfile.TemporaryDirectory() as folder:
        runs = {compute: train(tune, compute, pathlib.Path(folder)) for compute in ("f32", "bf16", "int16", "int8")}
    runs = {compute: run for compute, run in runs.items() if run}
    print("step " + "".join(f"{compute:>11}" for compute in runs))
    for step in range(0, steps, max(1, steps // 10)):
        print(f"{step + 1:4} " + "".join(f"{losses[step]:11.5f}" for losses, _, _ in runs.values()))
    exact, exact_checks, exact_match = runs.pop("f32")
    print(f"f32    validation loss {exact_checks[-1]:.5f}, exact match {exact_match:.1f} %")
    is_off = False
    for compute, (rounded, checks, match) in runs.items():
        pairs = list(zip(exact, rounded))[:steps]
        worst = max(range(len(pairs)), key=lambda i: abs(pairs[i][0] - pairs[i][1]))
        print(f"{compute:6} validation loss {checks[-1]:.5f}, exact match {match:.1f} %, worst of {len(pairs)} steps: "
              f"step {worst + 1}, {pairs[worst][1]:.5f} for {pairs[worst][0]:.5f}")
        is_off |= any(abs(a - b) > ABSOLUTE + RELATIVE * a for a, b in pairs) or abs(exact_match - match) > MATCH
    sys.exit(1 if is_off else 0)


if __name__ == "__main__":
    main()
