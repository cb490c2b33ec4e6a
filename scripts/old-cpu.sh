#!/usr/bin/env bash
# An x86-64 CPU without AVX, as PCs had until 2011: builds for it, and runs there, under emulation (qemu-user), the tests of the kernels, a
# conversion of the demo model and an answer, all by the fallbacks. Installs what that needs.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v qemu-x86_64-static >/dev/null || missing+=(qemu-user-static)
scripts/setup.sh "${missing[@]}"

# No flag is not enough: ggml takes AVX2 then, unless its own options say otherwise, which count when it is first built.
export RUSTFLAGS="" GGML_AVX=OFF GGML_AVX2=OFF GGML_BMI2=OFF GGML_F16C=OFF GGML_FMA=OFF
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/old-cpu} CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu
emulator="qemu-x86_64-static -cpu Nehalem"
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$emulator

cargo build --release --bins
cargo test --release --lib -- kernels:: quantise:: quant::
. scripts/answers.sh
answers "$emulator" "$CARGO_TARGET_DIR/$CARGO_BUILD_TARGET/release" auto
