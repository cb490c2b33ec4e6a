#!/usr/bin/env bash
# Memory of one process over 1000 answers (pictures, questions, texts), through `qvl batch` and through `qvl chat`: what is
# its own (anonymous, by /proc) after each hundred answers, and by how much it grew after the first hundred.
#
# Usage: benches/steady.sh [MODEL.gguf [ANSWERS]]       default: the demo's model, out/qvl-tiny-Q4_K_M.gguf (see ./demo.sh)
#
# What may grow: the list of what `batch` has done (some 100 bytes an answer), and what the allocator keeps in its arenas.
# Ends with 1 if it is more than 2 MiB.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:-out/qvl-tiny-Q4_K_M.gguf}
n=${2:-1000}
limit_kib=2048
[ -f "$model" ] || { echo "error: $model is not there; run ./demo.sh first" >&2; exit 2; }

cargo build --release --quiet --bin qvl
qvl=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/qvl
dir=$(mktemp -d)
# What still runs ends as well if this script is stopped.
trap 'kill -9 $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT
pictures=(tests/data/pictures/shapes.png tests/data/pictures/stripes.png tests/data/pictures/turned.jpg models/qvl-tiny/demo/shapes.png)
questions=("Describe the picture." "How many objects are there?" "Where is the purple star?" "What does the word say?")

anonymous() { awk '/^RssAnon/ { print $2 }' "/proc/$1/status" 2>/dev/null || true; }

# watch NAME PID FILE: looks at the process while FILE gets its lines, until it ends.
watch() {
    local name=$1 pid=$2 file=$3 n_done=0 kib='' next=0
    : >"$dir/seen"
    while kill -0 "$pid" 2>/dev/null; do
        n_done=$(wc -l <"$file" 2>/dev/null || echo 0)
        kib=$(anonymous "$pid")
        [ -n "$kib" ] && [ "$n_done" -ge "$next" ] && { echo "$n_done $kib" >>"$dir/seen"; next=$((n_done + n / 100)); }
        sleep 0.05
    done
    awk -v name="$name" -v n="$n" -v limit=$limit_kib '
        { if ($1 >= n / 10 && !first) first = $2; if ($1 >= n / 10 && $2 > most) most = $2; last = $1 }
        int($1 * 10 / n) > tenth { tenth = int($1 * 10 / n); printf "%s: after %4d answers %7d KiB\n", name, $1, $2 }
        END {
            if (!first || last < n * 0.9) { print name ": it ended too soon to be watched; ask for more answers"; exit 1 }
            printf "%s: grew by %d KiB after the first %d answers (limit %d)\n", name, most - first, n / 10, limit
            exit most - first > limit
        }' "$dir/seen"
}

for ((i = 0; i < n; i++)); do
    picture=$PWD/${pictures[i % ${#pictures[@]}]}
    question=${questions[i / ${#pictures[@]} % ${#questions[@]}]}
    if ((i % 5 == 4)); then
        printf '{"id": %d, "prompt": "Hello %d"}\n' "$i" "$i" >>"$dir/batch.jsonl"
        printf 'Hello %d\n' "$i" >>"$dir/chat.txt"
    else
        printf '{"id": %d, "image": "%s", "prompt": "%s"}\n' "$i" "$picture" "$question" >>"$dir/batch.jsonl"
        printf '%s %s\n' "$picture" "$question" >>"$dir/chat.txt"
    fi
    printf '/clear\n' >>"$dir/chat.txt"
done

export QVL_CACHE_DIR=$dir/cache
ok=0
: >"$dir/out.jsonl"
"$qvl" batch -q -m "$model" -n 32 --temp 0 "$dir/batch.jsonl" -o "$dir/out.jsonl" &
watch batch $! "$dir/out.jsonl" || ok=1
: >"$dir/answers.txt"
"$qvl" chat -q -m "$model" -n 32 --temp 0 <"$dir/chat.txt" >"$dir/answers.txt" 2>/dev/null &
watch chat $! "$dir/answers.txt" || ok=1
exit $ok
