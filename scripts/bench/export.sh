#!/usr/bin/env bash
# From a bf16 checkpoint and a rank-16 adapter to Q4_K_M, beside llama.cpp's converter and quantiser, in one run.
#
#   PEER_PYTHON=… LLAMA=… SHARED=… scripts/bench/export.sh [ROUNDS [LAYOUT …]]
#
# PEER_PYTHON has torch, transformers, sentencepiece and what llama.cpp's converter asks for; LLAMA is the folder that
# $SHARED/tools/llama_cpp_tools.sh built (bin/llama-quantize, llama.cpp/convert_hf_to_gguf.py); SHARED holds
# assets/models/LAYOUT and tools/synth_checkpoint.py.  Two threads on both sides.  The peer converts to bf16 and quantises,
# without an adapter, which it cannot merge in one go; ours merges, quantises, hashes and syncs, in one pass, with AVX-512
# and then with AVX2 at most.  The gate, which the peer has not, is left out; reading the file back, from the
# disk, is shown apart.
# Everything is read from the page cache and written to the disk of $TMPDIR.  Prints each run, then medians, ratios and how far
# ours is from what disk and memory alone would take, and the encoders' rates.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
[ $# -gt 0 ] && shift
layouts=("$@")
[ ${#layouts[@]} -gt 0 ] || layouts=(Qwen3-0.6B Qwen3-4B)
python=${PEER_PYTHON:?a Python with torch and transformers}
llama=$(realpath "${LLAMA:?the folder that llama_cpp_tools.sh built}")
shared=$(realpath "${SHARED:-../shared}")
export RAYON_NUM_THREADS=2 OMP_NUM_THREADS=2
cargo build -q --release -p exporter --example export_speed
cargo build -q --release -p formats --example encode_speed
examples=${CARGO_TARGET_DIR:-target}/release/examples
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
now() { date +%s.%N; }
since() { echo "$(now) $1" | awk '{ printf "%.2f", $1 - $2 }'; }

cached() { # cached CHECKPOINT: what the run before has driven out of the page cache is read again, for both sides
  cat "$1"/*.safetensors >/dev/null
}

peer() { # peer CHECKPOINT: seconds of converting and of quantising
  local start converted
  cached "$1"
  start=$(now)
  PYTHONPATH="$llama/llama.cpp/gguf-py" "$python" "$llama/llama.cpp/convert_hf_to_gguf.py" "$1" --outtype bf16 \
    --outfile "$work/peer.gguf" >"$work/peer.log" 2>&1
  converted=$(since "$start")
  start=$(now)
  LD_LIBRARY_PATH="$llama/bin" "$llama/bin/llama-quantize" "$work/peer.gguf" "$work/peer-q4.gguf" Q4_K_M 2 \
    >"$work/peer.log" 2>&1
  echo "$converted + $(since "$start") s, $(stat -c %s "$work/peer.gguf") + $(stat -c %s "$work/peer-q4.gguf") bytes written"
  rm -f "$work/peer.gguf" "$work/peer-q4.gguf"
}

ours() { # ours CHECKPOINT [avx2]
  local before after
  cached "$1"
  sync
  before=$(awk '{ s += $7 } END { printf "%.0f", s * 512 }' /sys/block/*/stat)
  "$examples/export_speed" "$1" "$work/adapter" q4_k_m "$work/out" "${@:2}"
  after=$(awk '{ s += $7 } END { printf "%.0f", s * 512 }' /sys/block/*/stat)
  [ $# -gt 1 ] || echo "           $((after - before)) bytes went to the disk" >&2
}

lscpu | sed -n 's/^Model name: */processor  /p'
for type in Q4_K Q6_K Q8_0 IQ4_XS; do echo "encode     $("$examples/encode_speed" $type)"; done
for type in Q4_K Q6_K; do echo "  avx2     $("$examples/encode_speed" avx2 $type)"; done
for layout in "${layouts[@]}"; do
  "$python" "$shared/tools/synth_checkpoint.py" "$shared/assets/models/$layout" "$work/base" >/dev/null
  in_bytes=$(cat "$work"/base/*.safetensors | wc -c)
  echo "== $layout, $((in_bytes / 1000000)) MB"
  "$examples/export_speed" "$work/base" "$work/adapter" q4_k_m "$work/out" >/dev/null # makes the adapter
  : >"$work/runs"
  for round in $(seq "$rounds"); do
    echo "ours $(ours "$work/base")" | tee -a "$work/runs"
    echo "avx2 $(ours "$work/base" avx2)" | tee -a "$work/runs"
    echo "peer $(peer "$work/base")" | tee -a "$work/runs"
  done
  out=$work/out/speed-q4_k_m.gguf
  start=$(now); cat "$work"/base/*.safetensors >/dev/null; read_s=$(since "$start")
  start=$(now); cat "$out" >"$work/copy"; sync "$work/copy"; write_s=$(since "$start"); rm -f "$work/copy"
  "$python" - "$work/runs" "$in_bytes" "$(stat -c %s "$out")" "$read_s" "$write_s" <<'MEDIANS'
import re, statistics, sys
runs, n_in, n_out, read, write = open(sys.argv[1]).read(), *map(float, sys.argv[2:])
median = lambda rows: statistics.median(rows)
seconds = {who: median([float(x) for x in re.findall(rf"^{who} ([\d.]+) s", runs, re.M)]) for who in ("ours", "avx2")}
parts = [(float(a), float(b)) for a, b in re.findall(r"^peer ([\d.]+) \+ ([\d.]+) s", runs, re.M)]
convert, quantise = median([a for a, _ in parts]), median([b for _, b in parts])
memory = median([float(x) for x in re.findall(r"^ours .* (\d+) MiB anonymous", runs, re.M)])
print(f"median     ours {seconds['ours']:.2f} s, with AVX2 {seconds['avx2']:.2f} s; peer {convert:.2f} + {quantise:.2f} s")
print(f"ratio      {(convert + quantise) / seconds['ours']:.1f} times as fast, with AVX2 {(convert + quantise) / seconds['avx2']:.1f}; "
      f"than the quantiser alone {quantise / seconds['ours']:.1f}")
print(f"rate       {n_in / seconds['ours'] / 1e6:.0f} MB/s in, {n_out / seconds['ours'] / 1e6:.0f} MB/s out; {memory:.0f} MiB anonymous memory")
print(f"limits     reading what is cached takes {read:.2f} s, writing and syncing the result {write:.2f} s: "
      f"ours takes {seconds['ours'] / max(read, write):.1f} times the longer one")
MEDIANS
  rm -rf "$work/base" "$work/adapter" "$work/out"
done
