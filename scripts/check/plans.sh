#!/usr/bin/env bash
# What runs take against what their plans say, over families, lengths, batches, forms of the weights, and weights that
# stay or pass through memory.
#
#   scripts/check/plans.sh [NAME …]       all combinations below, or those whose base is named so
#
# Bases have the layouts of published models (SHARED, by default ../shared, has them and what writes them) with random
# weights, and few layers, so that it ends within a quarter of an hour: a layer more is the same again.  TUNE names the
# binary, PYTHON a Python with numpy.  Each run takes three steps with validation and checkpoints.  Prints a table; fails
# when plan and peak differ by more than a tenth.
set -euo pipefail
cd "$(dirname "$0")/../.."

shared=${SHARED:-../shared}
python=${PYTHON:-python3}
. scripts/check/binary.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# base · its layers · tokens of a row · rows of a micro-batch · accumulated · [model] and [train] keys that differ
combinations() {
  cat <<'ROWS'
Qwen3-0.6B              4  512  1 1
Qwen3-0.6B              4  512  4 2
Qwen3-0.6B              4 2048  1 1
Qwen3-0.6B              4 2048  2 1  model.quant="nf4"
Qwen3-0.6B              4  512  2 1  model.quant="bf16"
Qwen3-0.6B              4  512  2 1  train.moments="int8"  adapter.rank=64
Qwen2.5-1.5B-Instruct   4 1024  1 1
Qwen2.5-1.5B-Instruct   4 1024  1 1  data.packing=true
Llama-3.2-1B-Instruct   4 1024  2 1
Mistral-7B-Instruct-v0.3 2 1024 1 1
Phi-4-mini-instruct     3  512  1 2
Llama-3.1-8B-Instruct   1  512  2 1  model.quant="q8_0"
Qwen3-4B                3  512  4 1  model.compute="f32"
Qwen3-4B                2 4096  1 1
Qwen3-0.6B             12  512  4 2  budget.offload="weights"
Phi-4-mini-instruct     6  512  1 2  budget.offload="weights"
Mistral-7B-Instruct-v0.3 6 1024 1 1  budget.offload="weights"
Qwen3-4B                8 2048  1 1  budget.offload="weights" model.quant="q8_0"
Llama-3.2-1B-Instruct   8 1024  2 1  budget.memory="1200MB" budget.reserve="0GB"
ROWS
}

"$python" - "$work" <<'ROWS'
import json, pathlib, sys
text = "\n".join(p.read_text() for p in sorted(pathlib.Path("crates").rglob("*.rs"))[:60])
with open(pathlib.Path(sys.argv[1], "rows.jsonl"), "w") as out:
    for start in range(0, 24 * 40_000, 40_000):
        out.write(json.dumps({"text": (text * 2)[start % len(text):][:40_000]}) + "\n")
ROWS

printf '%-26s %6s %5s %5s  %-34s %12s %12s %7s\n' base layers rows tokens settings planned measured ratio
failed=0
while read -r base layers tokens rows accumulated keys; do
  [ $# -eq 0 ] || [[ " $* " == *" $base "* ]] || continue
  folder=$work/$base-$layers
  [ -d "$folder" ] || "$python" "$shared/tools/synth_checkpoint.py" "$shared/assets/models/$base" "$folder" --layers "$layers" > /dev/null
  recipe=$work/recipe.toml
  {
    echo "model.base = \"$folder\""
    # What passes through memory is read from the cache of bases.
    case $keys in *budget.*) ;; *) echo "model.cache = false" ;; esac
    echo "data.train = \"$work/rows.jsonl\""
    echo "data.max_seq_len = $tokens"
    echo 'data.on_too_long = "truncate"'
    echo "data.val_split = 0.1"
    echo "train.max_steps = 3"
    echo "train.batch_size = $rows"
    echo "train.gradient_accumulation_steps = $accumulated"
    echo "train.eval_every = 2"
    echo "train.checkpoint_every = 2"
    for key in $keys; do echo "$key"; done
  } > "$recipe"
  rm -rf "$work/run"
  TUNE_CACHE=$work/cache "$tune" train "$recipe" --run-dir "$work/run" > /dev/null 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
  "$python" - "$work/run/run.json" "$base" "$layers" "$rows" "$tokens" "$keys" <<'ROW' || failed=1
import json, sys
path, base, layers, rows, tokens, keys = sys.argv[1:]
outcome = json.load(open(path))["outcome"]
planned, measured = outcome["planned_bytes"], outcome["memory_bytes"]
passing = json.load(open(path))["plan"]["passing"]
if passing: keys += f" ({passing['layers']} layers pass)"
ratio = planned / measured
print(f"{base:26} {layers:>6} {rows:>5} {tokens:>5}  {keys:34} {planned / 2**20:8.1f} MiB {measured / 2**20:8.1f} MiB {ratio:7.3f}"
      + ("" if 0.9 <= ratio <= 1.1 else "  more than a tenth off"), flush=True)
sys.exit(not 0.9 <= ratio <= 1.1)
ROW
done < <(combinations)
exit $failed
