#!/bin/sh
# What one question about a picture takes of the memory, all pages counted: the control group's own figure, page cache
# included. Needs root, for the group.
#
#   benches/memory.sh MODEL.gguf PICTURE [LIMIT_BYTES [FLAGS of qvl ask]]
#
# Prints one line: the limit, the group's peak, the process's peak, what `qvl plan` said, seconds, exit code.
set -eu
if [ $# -lt 2 ]; then
    sed -n '2,7p' "$0" | cut -c3- >&2
    exit 2
fi
model=$1 picture=$2 limit=${3:-}
shift 2
[ $# -gt 0 ] && shift
qvl=${QVL:-target/release/qvl}

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    group=/sys/fs/cgroup/qvl-memory max=memory.max peak=memory.peak
    echo +memory >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
else
    group=/sys/fs/cgroup/memory/qvl-memory max=memory.limit_in_bytes peak=memory.max_usage_in_bytes
fi
out=$(mktemp)
trap 'rm -f "$out"; rmdir "$group" 2>/dev/null || true' EXIT
mkdir "$group"
if [ -n "$limit" ]; then
    echo "$limit" >"$group/$max"
    # No swap, where there is any.
    if [ -e "$group/memory.swap.max" ]; then echo 0 >"$group/memory.swap.max"; fi
fi

# Pages that are in memory already would be counted where they were read first.
for file in "$(dirname "$model")"/*.gguf; do
    dd if="$file" iflag=nocache count=0 status=none
done
code=0
start=$(date +%s.%N)
sh -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' sh "$group" \
    "$qvl" ask -q -m "$model" -i "$picture" --no-cache --json --temp 0 -n 32 "$@" "What is in the picture?" >"$out" || code=$?
seconds=$(echo "$(date +%s.%N) $start" | awk '{printf "%.1f", $1 - $2}')
number() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" "$2" | head -n 1; }
rss=$(number peak_rss_bytes "$out")
"$qvl" plan -m "$model" -n 32 --json "$@" >"$out" || true
plan=$(number peak_bytes "$out")
mb() { [ -n "$1" ] && echo "$1" | awk '{printf "%.0f MB", $1 / 1e6}' || printf 'none'; }
echo "limit $(mb "$limit"), group $(mb "$(cat "$group/$peak")"), process $(mb "$rss"), plan $(mb "$plan"), $seconds s, exit $code"
