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
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --release --workspace --no-fail-fast -- "$@" 2>&1 | tee "$log"
echo "tests    passed in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s, builds included"
# cargo closes with the documentation tests of the last crate; this is the sum over all of them.
awk '/^test result:/ { passed += $4; failed += $6 } END { print passed " passed, " failed " failed" }' "$log"
