#!/usr/bin/env bash
# Fills the disk under `tune train` at random moments: what was saved stays whole, the run says what happened, and after
# room is made it goes on to the same bits as a run that was left alone.
#
#   scripts/check/full_disk.sh [TIMES [RECIPE]]     10 times, recipes/quickstart.toml unless told otherwise
#
# Needs a Linux where this user may mount a small tmpfs.  TUNE names the binary, SEED makes the moments repeatable.
set -euo pipefail
cd "$(dirname "$0")/../.."

times=${1:-10}
recipe=${2:-recipes/quickstart.toml}
. scripts/check/binary.sh
RANDOM=${SEED:-$$}
work=$(mktemp -d)
disk=$work/disk
mkdir "$disk"
finish() { umount "$disk" 2> /dev/null || true; rm -rf "$work"; }
trap finish EXIT
mount -t tmpfs -o size=64m tmpfs "$disk" || { echo "no tmpfs can be mounted here" >&2; exit 2; }

# Denser checkpoints and validations write more often; the steps are the same.
sed 's/^checkpoint_every.*/checkpoint_every = 3/' "$recipe" > "$work/recipe.toml"
began=$(date +%s%N)
"$tune" train "$work/recipe.toml" --run-dir "$work/whole" > /dev/null 2> "$work/whole.log"
took_ms=$((($(date +%s%N) - began) / 1000000))
echo "whole run: $((took_ms / 1000)) s"

stopped=0
for ((time = 1; time <= times; time++)); do
  rm -rf "$disk"/*
  "$tune" train "$work/recipe.toml" --run-dir "$disk/run" > /dev/null 2> "$work/log" &
  pid=$!
  wait_ms=$((RANDOM * took_ms / 32768 * 9 / 10 + 200))
  sleep "$((wait_ms / 1000)).$(printf %03d $((wait_ms % 1000)))"
  # All but a random remainder, so that files break off in the middle, too.
  cat /dev/zero > "$disk/filler" 2> /dev/null || true
  truncate -s "-$((RANDOM % 64))K" "$disk/filler" 2> /dev/null || true
  if wait "$pid"; then
    echo "  $time: the run had ended before the disk was full"
  else
    stopped=$((stopped + 1))
    echo "  $time: after $wait_ms ms: $(grep -a '^error' "$work/log" | tail -1 | cut -c1-160)"
    grep -aqi 'no space\|no room\|disk' "$work/log" || { cat "$work/log" >&2; exit 1; }
  fi
  rm "$disk/filler"
  resume=(); [ -e "$disk/run/run.json" ] && resume=(--resume)
  [ ${#resume[@]} = 1 ] || rm -rf "$disk/run"
  "$tune" train "$work/recipe.toml" --run-dir "$disk/run" "${resume[@]}" > /dev/null 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
  for file in adapter/adapter_model.safetensors adapter/adapter_config.json best/adapter_model.safetensors; do
    cmp "$work/whole/$file" "$disk/run/$file"
  done
  find "$disk/run" -name '*.damaged' -o -name '*.tmp' | grep . && { echo "leftovers" >&2; exit 1; }
done
[ "$stopped" -gt 0 ] || { echo "the disk was never full in time" >&2; exit 1; }
echo "$stopped of $times runs met a full disk; all ended the same to the bit"
