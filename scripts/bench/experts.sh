#!/usr/bin/env bash
# How fast experts come, go and answer, beside llama.cpp alone in the same process, every pair in turn in one run.
#
#   SHARED=… PEER_PYTHON=… [LLAMA=…] scripts/bench/experts.sh [LAYOUT]
#
# PEER_PYTHON has numpy; SHARED holds assets/models/LAYOUT (Qwen3-0.6B) and tools/synth_checkpoint.py.  ROUNDS is how often
# each figure is taken (9), THREADS how many threads both sides have (2; on a busy machine 1, since two then wait for one
# another; tokens a second are then of the time that the thread has had), WORDS (times three) and TOKENS how long prompt
# and answer are, WORK a folder to keep the files in from one run to the next.  With LLAMA, a folder with bin/llama-bench
# as $SHARED/tools/llama_cpp_tools.sh builds it, that takes its turn in every round too: the same file, threads, pieces and
# tokens, answers after a prompt of the same length.  It is compiled for this very processor, the engine for all with AVX2.
#
#   switch   to another adapter over a resident base: at most 50 ms
#   swap     of two files that are in the page cache: at most 1.2 times what llama.cpp needs to free one and load the other
#   ahead    a file of more than 1 GB from the disk, read ahead or not: at least 2 times faster
#   prompt, decode    tokens a second: at most 3 % fewer than llama.cpp alone, and than llama-bench
#   unmerged what an adapter of rank 16 over all matrices costs of that
set -euo pipefail
cd "$(dirname "$0")/../.."
layout=${1:-Qwen3-0.6B}
python=${PEER_PYTHON:?a Python with numpy}
shared=$(realpath "${SHARED:-../shared}")
export RAYON_NUM_THREADS=2
cargo build -q --release --workspace --example experts --bin tune
target=${CARGO_TARGET_DIR:-target}/release
if [ -n "${WORK:-}" ]; then
  work=$WORK
  mkdir -p "$work"
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
name=$(echo "$layout" | tr '[:upper:]' '[:lower:]')
small=$work/export/q8_0/$name-q8_0.gguf
large=$work/export/f16/$name-f16.gguf
if [ ! -f "$large" ]; then
  "$python" "$shared/tools/synth_checkpoint.py" "$shared/assets/models/$layout" "$work/$name" >/dev/null
  "$target/tune" export "$work/$name" --quant q8_0,f16 --out "$work/export" 2>"$work/export.log"
fi
for seed in 1 2; do
  [ -f "$work/adapter-$seed.gguf" ] || "$target/examples/experts" adapter "$small" "$work/adapter-$seed.gguf" $seed
done

lscpu | sed -n 's/^Model name: */processor  /p'
echo "files      $(du -h "$small" "$large" "$work/adapter-1.gguf" | awk '{ printf "%s ", $1 }')· $(uptime | sed 's/.*load/load/')"
experts() { "$target/examples/experts" "$@" 2>"$work/experts.log" || { tail -3 "$work/experts.log" >&2; return 1; }; }
experts switch "$small" "$work/adapter-1.gguf" "$work/adapter-2.gguf"
experts swap "$small" "$large"
experts ahead "$small" "$large"
experts speed "$small" "$work/adapter-1.gguf"
echo "load       $(uptime | sed 's/.*load average: //')"
