#!/usr/bin/env bash
# Compares what `tune plan` says of experts with what they take: two exports in a pipeline, planned, run and measured.
#
#   scripts/check/expert_budget.sh [MODEL_DIR LAYERS]...
#
# Without arguments the base that ships with the project. With them checkpoints of that layout are made by
# synth_checkpoint.py of the folder that SHARED names, with so many layers and random weights; PEER_PYTHON names a
# Python with numpy for that, TUNE the binary.
#
# Weights and context must be the engine's own figures, the compute buffer at most 2 % (and 0.1 MiB) above. Anonymous
# memory of the process, sampled while it runs, must stay below what is planned for main memory.
set -euo pipefail
cd "$(dirname "$0")/../.."

. scripts/check/binary.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

bases=()
if [ $# -eq 0 ]; then
    bases=(recipes/pocket)
fi
while [ $# -ge 2 ]; do
    base=$work/$(basename "$1")-$2
    "${PEER_PYTHON:-python3}" "${SHARED:?names the folder of tools/synth_checkpoint.py}/tools/synth_checkpoint.py" "$1" "$base" --layers "$2" > /dev/null
    bases+=("$base")
    shift 2
done

pipeline() { # FILE_A FILE_B NUM_CTX BATCH KV
    cat << END
[experts.a]
file = "$1"
num_ctx = $3
num_batch = $4
kv_type = "$5"
[experts.b]
file = "$2"
num_ctx = $3
num_batch = $4
kv_type = "$5"
[[steps]]
name = "one"
expert = "a"
prompt = "Clean up: {{ input }}"
max_tokens = 4
[[steps]]
name = "two"
expert = "b"
prompt = "Clean up: {{ input }}"
max_tokens = 4
END
}

failures=0
for base in "${bases[@]}"; do
    name=$(basename "$base")
    "$tune" export "$base" --quant q8_0,q4_k_m --out "$work/$name-export" --json > "$work/export.log" 2>&1 ||
        { tail -5 "$work/export.log" >&2; exit 1; }
    a=$(ls "$work/$name-export"/q8_0/*.gguf) b=$(ls "$work/$name-export"/q4_k_m/*.gguf)
    for settings in "512 512 f16" "2048 128 q8_0" "4096 512 q4_0"; do
        read -r ctx batch kv <<< "$settings"
        trained=$(python3 -c "import json;c=json.load(open('$base/config.json'));print(c.get('text_config',c).get('max_position_embeddings',8192))")
        [ "$ctx" -le "$trained" ] || ctx=$trained
        pipeline "$a" "$b" "$ctx" "$batch" "$kv" > "$work/p.toml"
        "$tune" plan "$work/p.toml" --json > "$work/planned.json" || { echo "$name: not planned" >&2; exit 1; }
        # A prompt that fills most of the context, so that every page of the cache is touched.
        python3 -c "print('the inn ' * ($ctx // 12))" > "$work/input.txt"
        python3 scripts/check/expert_budget.py "$name $settings" "$work/planned.json" \
            "$tune" run "$work/p.toml" --input "$work/input.txt" --runs "$work/runs" --json || failures=$((failures + 1))
    done
    rm -rf "$work/$name-export" "$work/$name"
done
[ "$failures" = 0 ] || { echo "$failures comparisons failed" >&2; exit 1; }
echo "every expert took what was planned"
