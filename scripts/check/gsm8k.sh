#!/usr/bin/env bash
# GSM8K's published rows through the whole of training, with the layout and the tokenizer of Qwen3-0.6B and random weights:
# rows stream, are rendered and masked as transformers does it, row by row, and train for an epoch.
#
#   scripts/check/gsm8k.sh [ROWS [LAYERS]]     200 rows, all layers unless told otherwise
#
# SHARED (by default ../shared) has the rows, the layout and what writes the weights; TUNE names the binary; PYTHON a Python
# with numpy and transformers.  Prints ids and masks compared, tokens a second, the first loss and the last; fails when a row
# differs or the loss did not fall.
set -euo pipefail
cd "$(dirname "$0")/../.."

rows=${1:-200}
layers=${2:-}
shared=${SHARED:-../shared}
python=${PYTHON:-python3}
. scripts/check/binary.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" "$shared/tools/synth_checkpoint.py" "$shared/assets/models/Qwen3-0.6B" "$work/base" ${layers:+--layers "$layers"} > /dev/null
head -n "$rows" "$shared/assets/datasets/gsm8k/train.jsonl" > "$work/rows.jsonl"

# Ids and masks of every row, against apply_chat_template.
"$python" scripts/check/chat_masks.py "$tune" "$work/base" "$work/rows.jsonl" --rows "$rows"

cat > "$work/recipe.toml" <<RECIPE
model = { base = "$work/base", cache = false }
train = { epochs = 1, batch_size = 4, gradient_accumulation_steps = 2, learning_rate = 2e-4, eval_every = 0 }

[data]
train = [{ path = "$work/rows.jsonl", fields = { prompt = "question", completion = "answer" } }]
val_split = 0
max_seq_len = 1024
RECIPE
"$tune" train "$work/recipe.toml" --run-dir "$work/run"
"$python" - "$work/run" "$rows" <<'VERDICT'
import json, sys
run, rows = sys.argv[1], int(sys.argv[2])
record = json.load(open(f"{run}/run.json"))
steps = [step for step in map(json.loads, open(f"{run}/metrics.jsonl")) if "tokens_per_second" in step]
first, last = steps[0]["loss"], steps[-1]["loss"]
data, outcome = record["data"], record["outcome"]
print(f"trained  {data['train_rows']} rows, {data['train_tokens']} tokens, {data['target_tokens']} learnt, {outcome['steps']} steps")
print(f"speed    {data['train_tokens'] / outcome['seconds']:.0f} tokens/s of the whole run, {steps[-1]['tokens_per_second']:.0f} at its end")
print(f"loss     {first:.4f} at the first step, {last:.4f} at the last")
sys.exit(not (data["train_rows"] == rows and outcome["is_finished"] and last < first))
VERDICT
