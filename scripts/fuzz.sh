#!/usr/bin/env bash
# Fuzzes TARGET (all: every one) until it was executed RUNS times in all, in slices of SLICE seconds (60): under libFuzzer,
# built by a nightly toolchain without llama.cpp, which no target calls. The corpus grows in fuzz/corpus; what fails is
# left in fuzz/artifacts and ends the run with exit code 1. Copy such a file to fuzz/findings/TARGET: the tests replay it.
#
#   scripts/fuzz.sh TARGET|all RUNS
#
# GUARD is a command that every slice is run through, such as "nice -n 19". COMPARES=no leaves out the tracing of comparisons:
# where texts are read (batch, grammar, picture, prompt, vocabulary) two to three times as many runs take the same time. Counts
# are appended to fuzz/runs.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 2 ] || { echo "usage: scripts/fuzz.sh TARGET|all RUNS" >&2; exit 2; }
runs=$2
slice=${SLICE:-60}
host=$(rustc -vV | sed -n 's/^host: //p')

# The dependencies of the main workspace; only those of libFuzzer are added to them.
[ -e fuzz/Cargo.lock ] || cp Cargo.lock fuzz/Cargo.lock
coverage="-C passes=sancov-module -C codegen-units=1 -C llvm-args=-sanitizer-coverage-level=4
-C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table --cfg fuzzing"
target_dir=fuzz/target/plain
if [ "${COMPARES:-yes}" != no ]; then
    coverage+=" -C llvm-args=-sanitizer-coverage-trace-compares"
    target_dir=fuzz/target
fi
CMAKE=$PWD/fuzz/no-cmake.sh RUSTFLAGS="$(echo $coverage)" CARGO_TARGET_DIR=$target_dir \
    cargo +nightly build --release --manifest-path fuzz/Cargo.toml --target "$host"
programs=$PWD/$target_dir/$host/release
targets=$1
if [ "$targets" = all ]; then
    targets=$(sed -n 's/^    ("\([a-z]*\)", .*/\1/p' fuzz/targets/mod.rs)
fi
SEEDS=fuzz/corpus "$programs/seeds"
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

for target in $targets; do
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    done=0
    while [ "$done" -lt "$runs" ]; do
        log=$TMPDIR/$target.log
        # Memory and time are capped: what takes a second of a fuzzer's tiny input is a finding.
        if ! ${GUARD:-} "$programs/$target" -max_total_time="$slice" -runs=$((runs - done)) -max_len=8192 -timeout=10 \
            -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="fuzz/artifacts/$target/" \
            "fuzz/corpus/$target" > "$log" 2>&1; then
            tail -n 40 "$log" >&2
            echo "$(date -u +%F) $target: a finding after $done runs and more" | tee -a fuzz/runs.txt
            exit 1
        fi
        n=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        done=$((done + n))
        # Slices begin with what the last one found; it is kept small.
        [ "$n" -gt 0 ]
    done
    echo "$(date -u +%F) $target: $done runs, $(ls "fuzz/corpus/$target" | wc -l) files of corpus" | tee -a fuzz/runs.txt
done
