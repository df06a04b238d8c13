#!/usr/bin/env bash
# Training speed and memory beside transformers + PEFT + bitsandbytes, interleaved in one run.
#
#   PEER_PYTHON=… SHARED=… scripts/bench/train.sh [ROUNDS [LAYOUT:TOKENS[:avx2] …]]
#
# PEER_PYTHON has torch, transformers, peft, bitsandbytes and safetensors; SHARED holds assets/models/LAYOUT and tools
# (peft_baseline.py, the peer with activation checkpointing; synth_checkpoint.py).  Two threads on both sides, batch 1,
# rank 16 on all linear layers, every token a target.  The peer in nf4 and in bf16, at 512 tokens also in bf16 without
# checkpointing; ours with every layer run again (the least memory) and with none.  With :avx2 both sides in f32 with
# AVX2 alone.  Prints each run, below ours where its time went, then medians and ratios: tokens/s against the faster of
# the peer's checkpointing modes, memory against its nf4, and the whole step's FLOP/s against the best rate of a single
# product here, torch's and ours.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
[ $# -gt 0 ] && shift
cases=("$@")
[ ${#cases[@]} -gt 0 ] || cases=(Qwen3-0.6B:512 Qwen3-0.6B:512:avx2 Qwen3-0.6B:2048 Qwen2.5-1.5B-Instruct:512)
python=${PEER_PYTHON:?a Python with torch, transformers, peft and bitsandbytes}
shared=$(realpath "${SHARED:-../shared}")
export RAYON_NUM_THREADS=2 OMP_NUM_THREADS=2
cargo build -q --release -p model --example step_speed --example product_speed
examples=${CARGO_TARGET_DIR:-target}/release/examples
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed '/gradient_checkpointing_enable/d' "$shared/tools/peft_baseline.py" >"$work/without_checkpointing.py"

peer() { # peer MODE CHECKPOINT TOKENS
  case $1 in
    free) "$python" "$work/without_checkpointing.py" "$2" --mode bf16 --seq "$3" --steps 3 ;;
    avx2) ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
      "$python" "$shared/tools/peft_baseline.py" "$2" --mode fp32 --seq "$3" --steps 3 ;;
    *) "$python" "$shared/tools/peft_baseline.py" "$2" --mode "$1" --seq "$3" --steps 3 ;;
  esac 2>/dev/null | tail -1
}

products() { # the best rate of a single product, GFLOP/s
  "$python" - <<'TORCH'
import time, torch
torch.set_num_threads(2)
x, w = torch.randn(512, 2048, dtype=torch.bfloat16), torch.randn(8192, 2048, dtype=torch.bfloat16)
times = []
for _ in range(15):
    start = time.perf_counter()
    torch.nn.functional.linear(x, w)
    times.append(time.perf_counter() - start)
print(f"product torch {2 * 512 * 2048 * 8192 / sorted(times)[7] / 1e9:.0f} GFLOP/s")
TORCH
  "$examples/product_speed" 512 8192 2048 Q4_K | sed -n 's/^16 bits  forward *\([0-9]*\).*/product ours \1 GFLOP\/s/p'
}

echo "machine  $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-), $(nproc) cores, $(grep -m1 -oE 'amx_bf16|avx512_bf16' /proc/cpuinfo | tail -1)"
for case in "${cases[@]}"; do
  IFS=: read -r layout tokens limit <<<"$case"
  checkpoint=$work/$layout
  [ -d "$checkpoint" ] || OMP_NUM_THREADS=1 "$python" "$shared/tools/synth_checkpoint.py" "$shared/assets/models/$layout" "$checkpoint" >/dev/null
  layers=$("$python" -c "import json,sys; print(json.load(open(sys.argv[1]))['num_hidden_layers'])" "$checkpoint/config.json")
  runs=(peer:nf4 peer:bf16 ours:0 ours:"$layers")
  [ "$tokens" -gt 512 ] || runs+=(peer:free)
  [ -z "$limit" ] || runs=(peer:avx2 ours:0:Avx2F32 ours:"$layers":Avx2F32)
  for round in $(seq "$rounds"); do
    for run in "${runs[@]}"; do
      IFS=: read -r side kept kernel <<<"$run"
      case $side in
        peer) lines=$(peer "$kept" "$checkpoint" "$tokens") ;;
        ours) lines=$("$examples/step_speed" "$checkpoint" "$tokens" "$kept" q4_k_m "${kernel:-16}") ;;
      esac
      sed "1s/^/$layout ${limit:-all} $run /" <<<"$lines" | tee -a "$work/runs.txt"
    done
    products | tee -a "$work/runs.txt"
  done
  rm -rf "$checkpoint"
done
"$python" - "$work/runs.txt" <<'SUMMARY'
import re, statistics, sys
runs, steps, products, key = {}, {}, [], None
for line in open(sys.argv[1]):
    if rate := re.match(r"product \w+ (\d+)", line):
        products.append(float(rate[1]))
    elif rate := re.match(r"\s+whole step\s+(\d+) GFLOP/s", line):
        steps.setdefault(key, []).append(float(rate[1]))
    elif "tokens/s" in line:
        layout, limit, run, rest = line.split(" ", 3)
        tokens = re.search(r"seq (\d+)", rest)[1]
        if run.startswith("ours"):
            run = "ours" if run.split(":")[1] == "0" else "ours, all kept"
        key = (layout, tokens, limit, run)
        speed, memory = float(re.search(r"([\d.]+) tokens/s", rest)[1]), float(re.search(r"RSS ([\d.]+)", rest)[1])
        runs.setdefault(key[:3], {}).setdefault(run, []).append((speed, memory))
best = statistics.median(sorted(products)[-max(1, len(products) // 2):])
print(f"best single product: {best:.0f} GFLOP/s (median of the faster half)")
for (layout, tokens, limit), by_run in runs.items():
    median = {run: [statistics.median(x) for x in zip(*values)] for run, values in by_run.items()}
    peers = [run for run in ("peer:nf4", "peer:bf16", "peer:avx2") if run in median]
    fastest, least = max(median[run][0] for run in peers), median[peers[0]][1]
    for run, (speed, memory) in median.items():
        share = steps.get((layout, tokens, limit, run))
        share = f"  {statistics.median(share) / best:.2f} of a product's rate" if share and limit == "all" else ""
        free = f" ({speed / median['peer:free'][0]:.2f} without checkpointing)" if "peer:free" in median and run.startswith("ours") else ""
        print(f"{layout:22} {tokens:>5} {limit:4} {run:15} {speed:7.1f} tokens/s ({speed / fastest:.2f} of the peer){free}  "
              f"{memory:.2f} GB ({memory / least:.2f} of the peer's {peers[0][5:]}){share}")
SUMMARY
