#!/usr/bin/env bash
# 64-bit ARM Linux, from an x86-64 Debian: lints and compiles everything, and runs there, under emulation (qemu-user), the
# library's tests, a conversion of the demo model and an answer by every kernel of the vision tower. Installs what that needs.
# Half an hour on two cores, most of it compiling.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
missing=()
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user-static)
scripts/setup.sh "${missing[@]}"
rustup target add "$target"

emulator="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
export RUSTFLAGS="" CARGO_BUILD_TARGET=$target CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/aarch64}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$emulator
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
export BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu="--target=aarch64-linux-gnu -I/usr/aarch64-linux-gnu/include"

cargo clippy --release --all-targets -- -D warnings
cargo build --release --bins
# Two start a second process, which has no emulator; one wants speed, which an emulator has not.
cargo test --release --lib -- --skip ends::tests::a_panic_is_one_line --skip ggml::abort::tests::ends --skip is_fast_enough
. scripts/answers.sh
answers "$emulator" "$CARGO_TARGET_DIR/$target/release" ggml dotprod i8mm
# One of the first 64-bit ARM CPUs, which has neither dot products nor products of matrices.
answers "$emulator -cpu cortex-a53" "$CARGO_TARGET_DIR/$target/release" auto
