#!/usr/bin/env bash
# How long `qvl --help` takes, with starting and ending the process (target: under 20 ms), and how large the binary is.
# Usage: benches/start-up.sh [QVL]
set -euo pipefail
cd "$(dirname "$0")/.."
qvl=${1:-}
if [ -z "$qvl" ]; then
    cargo build --release --quiet --bin qvl
    qvl=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/qvl
fi

n=51
for ((i = 0; i < n; i++)); do
    start=${EPOCHREALTIME//[.,]/}
    "$qvl" --help >/dev/null
    echo $((${EPOCHREALTIME//[.,]/} - start))
done | sort -n | awk -v n="$n" -v target=20 '
    { us[NR] = $1 }
    END {
        median = us[(n + 1) / 2] / 1000
        printf "qvl --help: %.1f ms, the median of %d (%.1f .. %.1f); target: under %d ms\n", median, n, us[1] / 1000, us[n] / 1000, target
        exit median >= target
    }'
symbols=0
for bytes in $(readelf -S -W "$qvl" | sed -nE 's/.* \.(symtab|strtab|debug_[a-z]+) +[A-Z0-9]+ +[0-9a-f]+ +[0-9a-f]+ +([0-9a-f]+) .*/\2/p'); do
    symbols=$((symbols + 16#$bytes))
done
echo "size: $(stat -c %s "$qvl") bytes, of which $symbols are symbols"
