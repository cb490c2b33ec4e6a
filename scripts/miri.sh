#!/usr/bin/env bash
# The modules that call no C, under Miri: undefined behaviour, overflows, leaks. Needs a nightly toolchain with the components
# miri and rust-src. Left out are tests that map files or set their times, which Miri does not know, and those that compile
# regular expressions, which take it hours. What it cannot run, our SIMD and the doors to C, scripts/asan.sh does.
#
#   scripts/miri.sh [FILTER]...     # a quarter of an hour
set -euo pipefail
cd "$(dirname "$0")/.."
modules=("$@")
[ $# -gt 0 ] || modules=(quant:: grounding::selection:: grounding::tests:: cache::entry:: cache::prompt:: image::uri::
    image::refuse:: image::normalise:: tokenizer::alphabet:: tokenizer::ranks:: error:: memory:: text::rotary::
    quality::statistics:: quality::boxes::)
# llama.cpp is not compiled: nothing here calls it. Floats are as the machine makes them, not off by chance as the standard
# would allow: some tests ask for values to the last bit.
CMAKE=$PWD/fuzz/no-cmake.sh RUSTFLAGS="" MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-deterministic-floats" \
    CARGO_TARGET_DIR=target/miri cargo +nightly miri test --no-default-features --lib -- "${modules[@]}" --skip the_grammar_knows
