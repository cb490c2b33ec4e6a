#!/usr/bin/env bash
# Installs what is missing and runs every check: format, lints, documentation, tests.
set -euo pipefail
cd "$(dirname "$0")"

scripts/setup.sh
cargo fmt --check
cargo clippy --release --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --lib --quiet
cargo test --release
