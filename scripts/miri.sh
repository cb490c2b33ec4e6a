#!/usr/bin/env bash
# The modules that call no C, under Miri: undefined behaviour, overflows, leaks. Needs a nightly toolchain with the components
# miri and rust-src. Tests that open files are left out (mapping is a system call that Miri does not know), as are those that
# take it hours.
#
#   scripts/miri.sh [FILTER]...
set -euo pipefail
cd "$(dirname "$0")/.."
modules=("$@")
[ $# -gt 0 ] || modules=(gguf:: quant:: grounding::selection:: grounding::tests:: prompt::chat:: cache::entry:: cache::prompt::
    image::uri:: image::refuse:: image::normalise:: tokenizer::alphabet:: tokenizer::ranks:: tokenizer::bpe:: error:: memory::)
# llama.cpp is not compiled: nothing here calls it.
CMAKE=$PWD/fuzz/no-cmake.sh RUSTFLAGS="" MIRIFLAGS="-Zmiri-disable-isolation" CARGO_TARGET_DIR=target/miri \
    cargo +nightly miri test --no-default-features --lib -- "${modules[@]}" --skip the_grammar_knows
