#!/usr/bin/env bash
# Everything that takes too long for every run of the tests: 10 million executions of each fuzz target, 20,000 mutated pairs,
# checkpoints and adapters each, 2,000 pictures, 600 kills. A day on two cores. What fails ends it with exit code 1.
#
#   scripts/long.sh [DIVISOR]      # 100: everything a hundredth as long
set -euo pipefail
cd "$(dirname "$0")/.."
divisor=${1:-1}

# A test that is run with more than it has by default; its seeds are others than those of every run of the tests.
hostile() {
    local test=$1 n=$(($2 / divisor))
    QVL_MUTATIONS_FROM=1000000 QVL_MUTATIONS=$n QVL_KILLS=$n cargo test --release --test hostile -- "$test" --nocapture
}

hostile kills:: 150
hostile mutations::damaged_pictures 2000
hostile mutations::damaged_files 20000
hostile mutations::damaged_checkpoints 20000
hostile mutations::damaged_adapters 20000
scripts/fuzz.sh all $((10000000 / divisor))
