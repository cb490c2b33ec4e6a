#!/usr/bin/env bash
# How much of its speed decoding keeps while another process keeps one core busy.
#
#   benches/busy.sh MODEL.gguf [ROUNDS]
#
# Prints tokens a second, quiet and busy in turns, for the threads' waiting as qvl sets it, as GNU OpenMP does by itself
# (GOMP_SPINCOUNT=infinite is near it), for sleeping at once, and for one thread. Medians and ratios come last.
set -euo pipefail
model=${1:?usage: benches/busy.sh MODEL.gguf [ROUNDS]}
rounds=${2:-3}
qvl=${QVL:-$(dirname "$0")/../target/release/qvl}
tokens=${TOKENS:-24}

one() { # name, flags
    "$qvl" ask -q -m "$model" --raw "Once upon a time" --temp 0 -n "$tokens" --json "${@:2}" </dev/null |
        grep -o '"decode_tokens_per_second":[0-9.]*' | cut -d: -f2 | sed "s/^/$state $1 /"
}

all() {
    one "as-it-is"
    GOMP_SPINCOUNT=300000 one "openmp-default"
    OMP_WAIT_POLICY=passive one "passive"
    one "one-thread" -t 1
}

cat /proc/loadavg >&2
state=first one warm-up >&2
busy=
trap '[ -z "$busy" ] || kill "$busy" 2>/dev/null' EXIT
for _ in $(seq "$rounds"); do
    state=quiet all
    while :; do :; done & busy=$!
    state=busy all
    kill "$busy"; wait "$busy" 2>/dev/null || true; busy=
done | tee >(cat >&2) | sort | awk '
    { key = $1 " " $2; values[key] = values[key] " " $3; names[$2] = 1 }
    function median(text,  v, n) { n = split(text, v, " "); asort_(v, n); return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2 }
    function asort_(v, n,  i, j, t) { for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j - 1] + 0 > v[j] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t } }
    END { for (name in names) { q = median(values["quiet " name]); b = median(values["busy " name]);
        printf "%-15s quiet %6.2f  busy %6.2f tokens/s  ratio %.2f\n", name, q, b, b / q } }'
