#!/usr/bin/env bash
# Exports onto disks of many sizes, most of them too small: a file stands under its final name only where the whole export
# succeeded, and where it did not the reason names the disk, and nothing is left.
#
#   sudo scripts/check/export_disks.sh [SIZES [SOURCE]]      50 sizes, recipes/pocket; needs to mount a tmpfs
#
# TUNE names the binary. Prints how many fitted; ends with 1 at the first that broke its word.
set -euo pipefail
cd "$(dirname "$0")/../.."
sizes=${1:-50}
source=${2:-recipes/pocket}
. scripts/check/binary.sh
disk=$(mktemp -d)
mount -t tmpfs -o size=64k tmpfs "$disk" 2>/dev/null || { rmdir "$disk"; echo "skipped  a tmpfs cannot be mounted here"; exit 0; }
trap 'umount "$disk"; rmdir "$disk"' EXIT
fitted=0
for ((i = 1; i <= sizes; i++)); do
  kib=$((i * 8192 / sizes))
  umount "$disk"
  mount -t tmpfs -o "size=${kib}k" tmpfs "$disk"
  if "$tune" export "$source" --quant q4_k_m --out "$disk/out" >"/tmp/export_disks.$$" 2>&1; then
    "$tune" inspect "$disk"/out/*.gguf >/dev/null || { echo "$kib KiB: a broken file" >&2; exit 1; }
    [ -f "$disk/out/receipt.json" ] || { echo "$kib KiB: no receipt" >&2; exit 1; }
    fitted=$((fitted + 1))
    continue
  fi
  [ -z "$(find "$disk" -type f)" ] || { echo "$kib KiB: something is left" >&2; find "$disk" -type f >&2; exit 1; }
  grep -Eq "needs? .*(free|left|room)|No space|disk" "/tmp/export_disks.$$" ||
    { echo "$kib KiB: no clear reason" >&2; cat "/tmp/export_disks.$$" >&2; exit 1; }
done
rm -f "/tmp/export_disks.$$"
echo "passed   $sizes disks of up to 8 MiB: $fitted exports fitted, $((sizes - fitted)) were refused and left nothing"
