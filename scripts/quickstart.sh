#!/usr/bin/env bash
# Sets up and runs the main job on the small model that ships with the project:
# train an adapter, export it to a checked GGUF, run the pipeline of two experts.  No network beyond
# the packages, no GPU, no Python.
#   scripts/quickstart.sh [--fresh]     --fresh removes an earlier run of the quickstart first
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
[ -r "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
[ "${1:-}" = --fresh ] && rm -rf runs/quickstart runs/pocket

echo "build    tune (the first build compiles llama.cpp and takes 5 to 10 minutes on two cores)"
cargo build --release --quiet -p tune
tune=${CARGO_TARGET_DIR:-target}/release/tune

say() { printf '\n$ tune %s\n' "$*"; "$tune" "$@"; }
if [ -e runs/quickstart ]; then
  say train recipes/quickstart.toml --resume
else
  say train recipes/quickstart.toml
fi
say export runs/quickstart --quant q4_k_m --force
say export recipes/pocket --quant q8_0 --force
say run recipes/pipeline.toml --input recipes/pipeline-input.txt

cat <<E2

done     the expert is in runs/quickstart/export
next     $tune serve recipes/pipeline.toml      then open http://127.0.0.1:11435
E2
