#!/usr/bin/env bash
# Training speed and memory beside transformers + PEFT + bitsandbytes, interleaved in one run.
#
#   PEER_PYTHON=… SHARED=… scripts/bench/train.sh [ROUNDS [LAYOUT:TOKENS[:avx2] …]]
#
# PEER_PYTHON has torch, transformers, peft, bitsandbytes and safetensors; SHARED holds assets/models/LAYOUT and tools
# (peft_baseline.py, the peer with activation checkpointing; synth_checkpoint.py).  Two threads on both sides, batch 1,
# rank 16 on all linear layers, every token a target.  The first round runs the peer in nf4, bf16 and fp32, or those of
# PEERS; later ones its fastest alone.  At 512 tokens the fastest also runs without checkpointing, unless FREE is empty
# (it takes 20 GB for a model of 1.5 billion weights).  Ours with every layer run again (the least memory) and with
# none, with products of floats and, where the processor has them, in 8 bits, or of the KERNELS named.  With :avx2 both
# sides with AVX2 alone: the peer in f32, ours in f32, in 13 bits and, where the processor has AVX-VNNI, which is AVX2's
# size, in 8.  STEPS (3) are timed after one that is not.  Prints each run, below ours where its time went, then medians
# and ratios: tokens/s against the fastest of the peer's checkpointing modes, memory against its nf4, and the whole
# step's FLOP/s against the best rate of a single product of floats here, torch's and ours, and of ours in 8 bits.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
[ $# -gt 0 ] && shift
cases=("$@")
steps=${STEPS:-3}
peers=(${PEERS:-nf4 bf16 fp32})
[ ${#cases[@]} -gt 0 ] || cases=(Qwen3-0.6B:512 Qwen3-0.6B:512:avx2 Qwen3-0.6B:2048 Qwen2.5-1.5B-Instruct:512 Qwen2.5-1.5B-Instruct:2048 Qwen3-4B:512)
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
    free-*) "$python" "$work/without_checkpointing.py" "$2" --mode "${1#free-}" --seq "$3" --steps "$steps" ;;
    avx2) ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
      "$python" "$shared/tools/peft_baseline.py" "$2" --mode fp32 --seq "$3" --steps "$steps" ;;
    *) "$python" "$shared/tools/peft_baseline.py" "$2" --mode "$1" --seq "$3" --steps "$steps" ;;
  esac 2>/dev/null | tail -1
}

products() { # the best rate of a single product, GFLOP/s
  "$python" - <<'TORCH'
import time, torch
torch.set_num_threads(2)
for dtype in (torch.bfloat16, torch.float32):
    x, w = torch.randn(512, 2048, dtype=dtype), torch.randn(8192, 2048, dtype=dtype)
    times = []
    for _ in range(15):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        times.append(time.perf_counter() - start)
    print(f"product torch {dtype} {2 * 512 * 2048 * 8192 / sorted(times)[7] / 1e9:.0f} GFLOP/s")
TORCH
  "$examples/product_speed" 512 8192 2048 Q4_K |
    sed -n 's/^\(Amx[^ ]*\|Avx[^ ]*\) *forward *\([0-9]*\).*/product ours \1 \2 GFLOP\/s/p'
}

fastest() { # the fastest of the peer's checkpointing modes in the runs of a case
  "$python" - "$work/runs.txt" "$1 $2 peer:" "$3" <<'FASTEST'
import re, sys
best = max((float(re.search(r"([\d.]+) tokens/s", line)[1]), line.split()[2]) for line in open(sys.argv[1])
           if line.startswith(sys.argv[2]) and "peer:free" not in line and f"seq {sys.argv[3]}:" in line)
print(best[1].split(":")[1])
FASTEST
}

has_int8=$(grep -q avx512_vnni /proc/cpuinfo && echo 8 || true)
echo "machine  $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-), $(nproc) cores, $(grep -m1 -oE 'amx_bf16|avx512_bf16' /proc/cpuinfo | tail -1)"
for case in "${cases[@]}"; do
  IFS=: read -r layout tokens limit <<<"$case"
  checkpoint=$work/$layout
  [ -d "$checkpoint" ] || OMP_NUM_THREADS=1 "$python" "$shared/tools/synth_checkpoint.py" "$shared/assets/models/$layout" "$checkpoint" >/dev/null
  layers=$("$python" -c "import json,sys; print(json.load(open(sys.argv[1]))['num_hidden_layers'])" "$checkpoint/config.json")
  kernels=(${KERNELS:-float $has_int8})
  [ -z "$limit" ] || kernels=(Avx2F32 Avx2Int16 $(grep -q avx_vnni /proc/cpuinfo && echo AvxVnniInt8 || true))
  ours=()
  for kernel in "${kernels[@]}"; do ours+=(ours:0:"$kernel" ours:"$layers":"$kernel"); done
  run() { # run WHAT…
    for run in "$@"; do
      IFS=: read -r side kept kernel <<<"$run"
      case $side in
        peer) lines=$(peer "$kept" "$checkpoint" "$tokens") ;;
        ours) lines=$("$examples/step_speed" "$checkpoint" "$tokens" "$kept" q4_k_m "$kernel" "$steps") ;;
      esac
      sed "1s/^/$layout ${limit:-all} $run /" <<<"$lines" | tee -a "$work/runs.txt"
    done
  }
  for round in $(seq "$rounds"); do
    if [ -n "$limit" ]; then
      run peer:avx2
    elif [ "$round" = 1 ]; then
      run "${peers[@]/#/peer:}"
    else
      run peer:"$(fastest "$layout" all "$tokens")"
    fi
    run "${ours[@]}"
    [ -n "$limit" ] || [ "$tokens" -gt 512 ] || [ -z "${FREE-yes}" ] || run peer:free-"$(fastest "$layout" all "$tokens")"
    products | tee -a "$work/runs.txt"
  done
  rm -rf "$checkpoint"
done
"$python" - "$work/runs.txt" <<'SUMMARY'
import re, statistics, sys
runs, steps, products, key = {}, {}, {}, None
for line in open(sys.argv[1]):
    if rate := re.match(r"product (.*) (\d+) GFLOP/s", line):
        products.setdefault(rate[1], []).append(float(rate[2]))
    elif rate := re.match(r"\s+whole step\s+(\d+) GFLOP/s", line):
        steps.setdefault(key, []).append(float(rate[1]))
    elif "tokens/s" in line:
        layout, limit, run, rest = line.split(" ", 3)
        tokens = re.search(r"seq (\d+)", rest)[1]
        if run.startswith("ours"):
            _, kept, kernel = run.split(":")
            run = {"8": "ours int8", "float": "ours"}.get(kernel, "ours " + kernel) + (", all kept" if kept != "0" else "")
        key = (layout, tokens, limit, run)
        speed, memory = float(re.search(r"([\d.]+) tokens/s", rest)[1]), float(re.search(r"RSS ([\d.]+)", rest)[1])
        runs.setdefault(key[:3], {}).setdefault(run, []).append((speed, memory))
rates = {name: statistics.median(values) for name, values in products.items()}
floats = max((rate, name) for name, rate in rates.items() if "Int" not in name)
int8 = rates.get("ours Avx512Int8")
print("single products: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + " GFLOP/s")
for (layout, tokens, limit), by_run in runs.items():
    median = {run: [statistics.median(x) for x in zip(*values)] for run, values in by_run.items()}
    peers = [run for run in median if run.startswith("peer:") and "free" not in run]
    free = next((run for run in median if "free" in run), None)
    fastest = max(median[run][0] for run in peers)
    least = median["peer:nf4" if "peer:nf4" in peers else peers[0]][1]
    for run, (speed, memory) in median.items():
        notes = ""
        if free and run.startswith("ours"):
            notes = f" ({speed / median[free][0]:.2f} without checkpointing)"
        share = steps.get((layout, tokens, limit, run))
        if share and limit == "all":
            share = statistics.median(share)
            notes += f"  {share / floats[0]:.2f} of {floats[1]}'s rate"
            notes += f", {share / int8:.2f} of int8's" if "int8" in run else ""
        print(f"{layout:22} {tokens:>5} {limit:4} {run:19} {speed:7.1f} tokens/s ({speed / fastest:.2f} of the peer)  "
              f"{memory:5.2f} GB ({memory / least:.2f} of the peer's nf4){notes}")
SUMMARY
