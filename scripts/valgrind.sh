#!/usr/bin/env bash
# The doors to C under valgrind: one answer about a picture, one conversion. Reads and writes outside of what was allocated, and
# the use of values that nobody set, end it with exit code 9. Built for a CPU that valgrind knows (no AVX-512).
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTFLAGS="-C target-cpu=x86-64-v3" CARGO_TARGET_DIR=target/valgrind OMP_NUM_THREADS=1
cargo build --release
programs=target/valgrind/release
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
check() {
    valgrind --quiet --error-exitcode=9 --undef-value-errors=yes --leak-check=no "$@"
}
check $programs/qvl-convert models/qvl-random -q -j 1 -t q4_0 --name m -o "$out"
QVL_CACHE_SIZE=0 check $programs/qvl ask -q -t 1 -n 3 --temp 0 -m "$out/m-Q4_0.gguf" -i tests/data/pictures/gradient.png hi
