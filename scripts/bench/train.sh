#!/usr/bin/env bash
# Training speed and memory beside transformers + PEFT + bitsandbytes, interleaved in one run.
#
#   PEER_PYTHON=… SHARED=… scripts/bench/train.sh [ROUNDS [LAYOUT:TOKENS …]]
#
# PEER_PYTHON has torch, transformers, peft, bitsandbytes and safetensors; SHARED holds assets/models/LAYOUT and tools
# (peft_baseline.py, the peer with activation checkpointing; synth_checkpoint.py).  Two threads on both sides, batch 1,
# rank 16 on all linear layers, every token a target.  Prints each run, then medians and ratios: tokens/s against the
# faster of the peer's modes, memory against its nf4.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
[ $# -gt 0 ] && shift
cases=("$@")
[ ${#cases[@]} -gt 0 ] || cases=(Qwen3-0.6B:512 Qwen3-0.6B:2048 Qwen2.5-1.5B-Instruct:512)
python=${PEER_PYTHON:?a Python with torch, transformers, peft and bitsandbytes}
shared=$(realpath "${SHARED:-../shared}")
export RAYON_NUM_THREADS=2 OMP_NUM_THREADS=2
cargo build -q --release -p model --example step_speed
ours=${CARGO_TARGET_DIR:-target}/release/examples/step_speed
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "machine  $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-), $(nproc) cores, $(grep -m1 -o 'avx512_bf16' /proc/cpuinfo || echo 'no avx512_bf16')"
for case in "${cases[@]}"; do
  layout=${case%:*} tokens=${case#*:}
  checkpoint=$work/$layout
  [ -d "$checkpoint" ] || OMP_NUM_THREADS=1 "$python" "$shared/tools/synth_checkpoint.py" "$shared/assets/models/$layout" "$checkpoint" >/dev/null
  layers=$("$python" -c "import json,sys; print(json.load(open(sys.argv[1]))['num_hidden_layers'])" "$checkpoint/config.json")
  for round in $(seq "$rounds"); do
    for run in peer:nf4 peer:bf16 ours:0 ours:"$layers"; do
      case $run in
        peer:*) line=$("$python" "$shared/tools/peft_baseline.py" "$checkpoint" --mode "${run#peer:}" --seq "$tokens" --steps 3 2>/dev/null | tail -1) ;;
        ours:*) line=$("$ours" "$checkpoint" "$tokens" "${run#ours:}" q4_k_m 16) ;;
      esac
      echo "$layout $run $line" | tee -a "$work/runs.txt"
    done
  done
done
"$python" - "$work/runs.txt" <<'SUMMARY'
import re, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    layout, run, rest = line.split(" ", 2)
    tokens = re.search(r"seq (\d+)", rest)[1]
    run = "ours, all kept" if run.startswith("ours:") and run != "ours:0" else run.replace("ours:0", "ours")
    speed, memory = float(re.search(r"([\d.]+) tokens/s", rest)[1]), float(re.search(r"RSS ([\d.]+)", rest)[1])
    runs.setdefault((layout, tokens), {}).setdefault(run, []).append((speed, memory))
for (layout, tokens), by_run in runs.items():
    median = {run: [statistics.median(x) for x in zip(*values)] for run, values in by_run.items()}
    peer = max(median["peer:nf4"][0], median["peer:bf16"][0])
    for run, (speed, memory) in median.items():
        print(f"{layout:22} {tokens:>5}  {run:15} {speed:7.1f} tokens/s ({speed / peer:.2f} of the peer)  "
              f"{memory:.2f} GB ({memory / median['peer:nf4'][1]:.2f} of its nf4)")
SUMMARY
