# Sourced: $tune is the binary that is checked, the one that TUNE names or the one that was built.

tune=${TUNE:-${CARGO_TARGET_DIR:-target}/release/tune}
[ -x "$tune" ] || { echo "no binary at $tune; build it with: cargo build --release -p tune" >&2; exit 2; }
