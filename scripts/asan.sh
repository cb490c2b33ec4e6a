#!/usr/bin/env bash
# Both sides of the doors under AddressSanitizer, our SIMD and ggml's as this CPU runs it: a read or write outside of what was
# allocated, or of what was freed, ends a program with exit code 86, which no test expects. The library's tests, then answers,
# conversions and damaged files by the programs. Needs a nightly toolchain; three quarters of an hour on two cores, half of it
# to build.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
triple=${host//-/_}
export RUSTFLAGS="-C target-cpu=native -Zsanitizer=address" CARGO_TARGET_DIR=target/asan
export "CFLAGS_$triple=-fsanitize=address -fno-omit-frame-pointer" "CXXFLAGS_$triple=-fsanitize=address -fno-omit-frame-pointer"
# Rust's runtime answers for both compilers, and is in the programs; what lives to the end of one is no leak.
export ASAN_OPTIONS=exitcode=86:detect_leaks=0:verify_asan_link_order=0 ASAN_SYMBOLIZER_PATH=
tests() {
    cargo +nightly test --release --target "$host" "$@"
}
tests --lib
tests --bin qvl-convert
tests --test it -- goldens_own:: ask:: sessions:: batch:: convert:: requantise:: quality:: pictures:: drafts:: kernels::
QVL_MUTATIONS=${QVL_MUTATIONS:-500} tests --test hostile -- mutations::
