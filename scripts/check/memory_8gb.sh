#!/usr/bin/env bash
# Trains real optimiser steps on a large base inside a hard memory limit, and compares the plan with what was measured.
#
#   scripts/check/memory_8gb.sh CHECKPOINT_DIR [TOKENS [STEPS]]     512 tokens, 2 steps unless told otherwise
#
# The limit is 8 GB less a reserve of 0.8 GB.  It is enforced by a memory cgroup where this user may make one (the run is
# killed past it); elsewhere the peak is only measured.  TUNE names the binary.  Fails when the run does, when the peak
# passes the limit, or when plan and peak differ by more than a tenth.
set -euo pipefail
cd "$(dirname "$0")/../.."

base=${1:?usage: scripts/check/memory_8gb.sh CHECKPOINT_DIR [TOKENS [STEPS]]}
tokens=${2:-512}
steps=${3:-2}
limit=7200000000
. scripts/check/binary.sh
work=$(mktemp -d)
. scripts/check/memory_limit.sh
trap 'unlimit_memory; rm -rf "$work"' EXIT

# Rows that are longer than TOKENS in any tokenizer, cut to it: the text of this repository, over and over.
python=$(command -v python3 || command -v python) || { echo "needs any Python 3 to write JSON" >&2; exit 2; }
"$python" - "$work/rows.jsonl" "$tokens" <<'ROWS'
import json, pathlib, sys
text = "\n".join(p.read_text() for p in sorted(pathlib.Path("crates").rglob("*.rs"))[:60])
length = 8 * int(sys.argv[2])
with open(sys.argv[1], "w") as out:
    for start in range(0, 8 * length, length):
        part = (text + text)[start % len(text):][:length]
        out.write(json.dumps({"text": part}) + "\n")
ROWS
cat > "$work/recipe.toml" <<RECIPE
[model]
base = "$base"
[data]
train = "$work/rows.jsonl"
max_seq_len = $tokens
on_too_long = "truncate"
val_split = 0
train_on = "all"
[train]
max_steps = $steps
batch_size = 1
eval_every = 0
checkpoint_every = 1
# A recipe's GB are 2^30 bytes: 7.4 less 0.7 of them are 7,194,070,220 bytes, just inside the limit.
[budget]
memory = "7.4GB"
reserve = "0.7GB"
RECIPE

limit_memory $limit
echo "limit    $limit bytes, $([ -n "$group" ] && echo "enforced by a memory cgroup" || echo "measured, not enforced here")"

limited "$tune" train "$work/recipe.toml" --run-dir "$work/run"
"$tune" inspect "$work/run/adapter" > "$work/adapter.txt"
head -4 "$work/adapter.txt"
"$python" - "$work/run/run.json" $limit <<'VERDICT'
import json, sys
outcome, limit = json.load(open(sys.argv[1]))["outcome"], int(sys.argv[2])
planned, measured = outcome["planned_bytes"], outcome["memory_bytes"]
print(f"memory   {measured / 1e9:.3f} GB measured, {planned / 1e9:.3f} GB planned ({planned / measured:.3f} of measured), "
      f"limit {limit / 1e9:.1f} GB · {outcome['steps']} steps in {outcome['seconds']:.0f} s")
sys.exit(not (outcome["is_finished"] and measured <= limit and 0.9 <= planned / measured <= 1.1))
VERDICT
