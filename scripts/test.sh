#!/usr/bin/env bash
# Sets up and passes the tests: formatting, lints, the map of the crates, every test of the workspace.
#   scripts/test.sh            all of it
#   scripts/test.sh NAME …     only the tests whose name contains NAME
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh chromium
[ -r "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
started=$SECONDS

if [ $# -eq 0 ]; then
  cargo fmt --all --check
  cargo clippy --release --workspace --all-targets --quiet -- -D warnings
fi
cargo test --release --workspace --no-fail-fast -- "$@"
echo "tests    passed in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
