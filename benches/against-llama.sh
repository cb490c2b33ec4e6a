#!/usr/bin/env bash
# Speed of `qvl` against llama.cpp's own benchmark (examples/llama-speed.rs: the same library, plain llama_* calls, its
# default settings), on the same text file, in the same mode, in turns: what else the machine does hits both.
#
# Usage: benches/against-llama.sh MODEL.gguf [ROUNDS] [FLAGS OF BOTH: -t THREADS -p 512 -n 32 -d 0,512,1536 -r 3]
#
# REPACK=off or REPACK=on measures one mode only.
# Prints the ratio qvl by llama.cpp of every round, and their median; the target for decoding is 0.97.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '5s/^# //p' "$0" >&2; exit 2; }
model=$1
shift
rounds=3
case ${1:-} in
    '' | -*) ;;
    *) rounds=$1; shift ;;
esac

cargo build --release --quiet --bin qvl --example llama-speed
target=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

echo "$(date -u +%Y-%m-%d), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"
# speed WHO REPACK ROUND FLAGS..
speed() {
    local who=$1 repack=$2 out=$dir/$1-$2-$3
    shift 3
    case $who in
        llama) "$target/examples/llama-speed" "$model" --repack "$repack" "$@" >"$out" ;;
        qvl) "$target/qvl" bench -q -m "$model" --text-only --repack "$repack" --csv "$@" >"$out" ;;
    esac
}
for repack in ${REPACK:-off on}; do
    for ((round = 1; round <= rounds; round++)); do
        # The other one first each time: a machine that gets slower, or faster, favours neither.
        order=(llama qvl)
        ((round % 2)) || order=(qvl llama)
        for who in "${order[@]}"; do speed "$who" "$repack" "$round" "$@"; done
    done
done
# Lines are: case,measure,unit,median,min,max,runs
awk -F, '
    $2 != "speed" { next }
    {
        n = split(FILENAME, path, "/"); split(path[n], part, "-")
        key = part[2] "," $1
        if (!(key in seen)) { seen[key] = 1; order[++n_keys] = key }
        speed[part[1], key, part[3]] = $4
        if (part[3] > rounds) rounds = part[3]
    }
    END {
        printf "%-8s %-18s %12s %12s  %s\n", "repack", "case", "llama.cpp", "qvl", "ratio of each round, median"
        for (k = 1; k <= n_keys; k++) {
            key = order[k]; split(key, name, ","); ratios = ""
            if (!(("llama", key, 1) in speed)) continue # a case of ours only
            for (r = 1; r <= rounds; r++) {
                a[r] = speed["llama", key, r]; b[r] = speed["qvl", key, r]; c[r] = b[r] / a[r]
                ratios = ratios sprintf("%.3f ", c[r])
            }
            printf "%-8s %-18s %12.2f %12.2f  %s median %.3f\n", name[1], name[2], median(a, rounds), median(b, rounds), ratios, median(c, rounds)
        }
    }
    function median(list, n,    i, j, t, copy) {
        for (i = 1; i <= n; i++) copy[i] = list[i]
        for (i = 2; i <= n; i++) for (j = i; j > 1 && copy[j] < copy[j - 1]; j--) { t = copy[j]; copy[j] = copy[j - 1]; copy[j - 1] = t }
        return n % 2 ? copy[(n + 1) / 2] : (copy[n / 2] + copy[n / 2 + 1]) / 2
    }
' "$dir"/llama-* "$dir"/qvl-*
