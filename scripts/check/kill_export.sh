#!/usr/bin/env bash
# Kills `tune export` with SIGKILL at random moments.  After each kill every file under a final name must open and run
# in the engine; after the last an undisturbed export must succeed and leave nothing temporary behind.
#
#   scripts/check/kill_export.sh [KILLS [SOURCE]]       20 kills of runs/quickstart unless told otherwise
#
# TUNE names the binary, SEED makes the moments repeatable.
set -euo pipefail
cd "$(dirname "$0")/../.."

kills=${1:-20}
source=${2:-runs/quickstart}
. scripts/check/binary.sh
RANDOM=${SEED:-$$}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

now_ms() { echo $(($(date +%s%N) / 1000000)); }
export_it() { "$tune" export "$source" --quant q4_k_m --out "$work/out" --force; }

# Runs one short prompt through every file that has a final name.
check_files() {
    local file
    for file in "$work"/out/*.gguf; do
        [ -e "$file" ] || continue
        printf 'name = "check"\n[experts.e]\nfile = "%s"\nnum_ctx = 128\n[[steps]]\nname = "s"\nexpert = "e"\nprompt = "{{ input }}"\nmax_tokens = 4\n' "$file" > "$work/check.toml"
        echo hello | "$tune" run "$work/check.toml" --input - --runs "$work/runs" > /dev/null 2> "$work/check.log" ||
            { echo "a bad file stands at $file" >&2; cat "$work/check.log" >&2; exit 1; }
        good=$((good + 1))
    done
}

began=$(now_ms)
export_it 2> "$work/log"
took_ms=$(($(now_ms) - began))
echo "an undisturbed export takes $took_ms ms"
rm -rf "$work/out"

good=0
for kill in $(seq "$kills"); do
    # Every second export finds nothing under the final name, the others an older file to replace.
    [ $((kill % 2)) = 1 ] && rm -f "$work"/out/*.gguf
    export_it 2>> "$work/log" &
    pid=$!
    wait_ms=$((RANDOM * took_ms / 32768 + 1))
    sleep "$((wait_ms / 1000)).$(printf %03d $((wait_ms % 1000)))"
    kill -KILL "$(pgrep -P "$pid" || echo "$pid")" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
    check_files
    echo "  kill $kill after $wait_ms ms: $(ls "$work/out" 2> /dev/null | tr '\n' ' ')"
done

export_it 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
check_files
if ls "$work"/out/*.tmp > /dev/null 2>&1; then echo "something temporary was left" >&2; exit 1; fi
echo "no bad file after $kills kills; $good files under a final name were run"
