#!/usr/bin/env bash
# Trains a base inside a hard memory limit that is smaller than its weights, and compares what comes of it, to the bit,
# with a run whose weights stay in memory.  The limit must leave room for layer inputs in 32 bits, which a plan rounds to 16
# before it lets weights pass: that is another result.
#
#   scripts/check/offload.sh CHECKPOINT_DIR QUANT LIMIT_MB [TOKENS [STEPS]]     512 tokens, 3 steps unless told otherwise
#
# The limit is enforced by a memory cgroup where this user may make one; elsewhere the peak is only measured.  TUNE names
# the binary.  Prints both speeds; fails when a run does, when the adapters differ, or when the weights fit the limit.
set -euo pipefail
cd "$(dirname "$0")/../.."

base=${1:?usage: scripts/check/offload.sh CHECKPOINT_DIR QUANT LIMIT_MB [TOKENS [STEPS]]}
quant=${2:?}
limit_mb=${3:?}
tokens=${4:-512}
steps=${5:-3}
. scripts/check/binary.sh
work=$(mktemp -d)
. scripts/check/memory_limit.sh
trap 'unlimit_memory; rm -rf "$work"' EXIT

python3 - "$work/rows.jsonl" "$tokens" <<'ROWS'
import json, pathlib, sys
text = "\n".join(p.read_text() for p in sorted(pathlib.Path("crates").rglob("*.rs"))[:60])
length = 8 * int(sys.argv[2])
with open(sys.argv[1], "w") as out:
    for start in range(0, 8 * length, length):
        out.write(json.dumps({"text": (text + text)[start % len(text):][:length]}) + "\n")
ROWS
recipe() {
  cat <<RECIPE
model = { base = "$base", quant = "$quant" }
data = { train = "$work/rows.jsonl", max_seq_len = $tokens, on_too_long = "truncate", val_split = 0, train_on = "all" }
train = { max_steps = $steps, batch_size = 1, eval_every = 0, checkpoint_every = 0 }
budget = { memory = "$1", reserve = "0GB" }
RECIPE
}
recipe 64GB > "$work/stays.toml"
# A little less than the limit: the system counts the pages of the program and of files too.
recipe "$((limit_mb - 100))MB" > "$work/passes.toml"
limit_memory $((limit_mb << 20))
echo "limit    $limit_mb MiB, $([ -n "$group" ] && echo "enforced by a memory cgroup" || echo "measured, not enforced here")"

export TUNE_CACHE=$work/cache
limited "$tune" train "$work/passes.toml" --run-dir "$work/passes"
"$tune" train "$work/stays.toml" --run-dir "$work/stays" > /dev/null 2>&1
grep -o '"layer_inputs": *"[a-z0-9]*"' "$work/passes/run.json" | grep -q bf16 &&
  { echo "layer inputs were rounded to 16 bits: give a larger limit" >&2; exit 1; }
cmp "$work"/{passes,stays}/adapter/adapter_model.safetensors
python3 - "$work" "$limit_mb" <<'VERDICT'
import json, sys
work, limit = sys.argv[1], int(sys.argv[2]) << 20
def run(name):
    record = json.load(open(f"{work}/{name}/run.json"))
    steps = [json.loads(line) for line in open(f"{work}/{name}/metrics.jsonl")]
    speeds = [step["tokens_per_second"] for step in steps if "tokens_per_second" in step]
    return record, speeds[-1]
(passes, slow), (stays, fast) = run("passes"), run("stays")
weights = dict(map(tuple, stays["plan"]["rows"]))["base weights"]
measured, planned = passes["outcome"]["memory_bytes"], passes["outcome"]["planned_bytes"]
print(f"weights  {weights >> 20} MiB, {passes['plan']['passing']['layers']} of {passes['plan']['passing']['n_layers']} layers pass")
print(f"memory   {measured >> 20} MiB measured, {planned >> 20} MiB planned ({planned / measured:.3f} of measured), "
      f"{stays['outcome']['memory_bytes'] >> 20} MiB where the weights stay")
print(f"speed    {slow:.0f} tokens/s where weights pass inside the limit, {fast:.0f} where they stay ({slow / fast:.2f})")
print("bits     the adapters are the same")
# The system takes mapped pages away where the limit is near, so that less may be measured than was planned.
sys.exit(not (weights > limit and measured <= planned <= limit))
VERDICT
