#!/usr/bin/env bash
# Kills `tune train` with SIGKILL at random moments, resumes each time, and compares the final adapter with that of a
# run that was left alone: the two must be the same to the bit.
#
#   scripts/check/kill_train.sh [KILLS [RECIPE]]       20 kills of recipes/quickstart.toml unless told otherwise
#
# TUNE names the binary, SEED makes the moments repeatable.  One run is killed again and again, so that every
# resumed state is killed in turn; moments are spread evenly over the time that is left to it.
set -euo pipefail
cd "$(dirname "$0")/../.."

kills=${1:-20}
recipe=${2:-recipes/quickstart.toml}
. scripts/check/binary.sh
RANDOM=${SEED:-$$}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

now_ms() { echo $(($(date +%s%N) / 1000000)); }
steps_done() { ls "$work/killed/checkpoints" 2>/dev/null | sed -n 's/^step-//p' | grep -v damaged | sort -n | tail -1; }

# Denser checkpoints change nothing in the result, and let a run that is killed often come forward.
sed 's/^checkpoint_every.*/checkpoint_every = 5/' "$recipe" > "$work/recipe.toml"

echo "whole run"
began=$(now_ms)
"$tune" train "$recipe" --run-dir "$work/whole" 2> "$work/whole.log" > /dev/null
took_ms=$(($(now_ms) - began))
echo "  $((took_ms / 1000)) s"

# A killed run must come forward by a checkpoint now and then: start and base evaluation take part of each try.
most_ms=$((took_ms / 6 + 1000))
kill=1
while [ "$kill" -le "$kills" ]; do
    resume=(); [ -d "$work/killed" ] && resume=(--resume)
    "$tune" train "$work/recipe.toml" --run-dir "$work/killed" "${resume[@]}" 2>> "$work/killed.log" > /dev/null &
    pid=$!
    wait_ms=$((RANDOM * most_ms / 32768 + 1))
    sleep "$((wait_ms / 1000)).$(printf %03d $((wait_ms % 1000)))"
    if ! kill -KILL "$pid" 2> /dev/null; then
        wait "$pid" || { tail -5 "$work/killed.log" >&2; exit 1; }
        echo "  the run had ended before kill $kill; a new one begins"
        cmp "$work/whole/adapter/adapter_model.safetensors" "$work/killed/adapter/adapter_model.safetensors"
        rm -rf "$work/killed"
        continue
    fi
    wait "$pid" 2> /dev/null || true
    echo "  kill $kill after $wait_ms ms, newest checkpoint: step $(steps_done)"
    kill=$((kill + 1))
done

echo "last resumption"
resume=(); [ -d "$work/killed" ] && resume=(--resume)
"$tune" train "$work/recipe.toml" --run-dir "$work/killed" "${resume[@]}" 2>> "$work/killed.log" > /dev/null ||
    { tail -5 "$work/killed.log" >&2; exit 1; }
for file in adapter/adapter_model.safetensors adapter/adapter_config.json best/adapter_model.safetensors; do
    cmp "$work/whole/$file" "$work/killed/$file"
done
damaged=$(find "$work/killed/checkpoints" -name '*.damaged' | wc -l)
[ "$damaged" = 0 ] || { echo "$damaged checkpoints were found damaged" >&2; exit 1; }
steps=$(grep -c '"kind":"step"' "$work/killed/metrics.jsonl")
[ "$steps" = "$(grep -c '"kind":"step"' "$work/whole/metrics.jsonl")" ] || { echo "metrics differ: $steps steps" >&2; exit 1; }
echo "the same to the bit after $kills kills: $(sha256sum < "$work/killed/adapter/adapter_model.safetensors" | cut -c1-16)"
