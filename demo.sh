#!/usr/bin/env bash
# Installs what is missing, builds, converts the small model in models/qvl-tiny, and asks it about a picture.
# Usage: ./demo.sh [PICTURE QUESTION..]
set -euo pipefail
cd "$(dirname "$0")"
model=out/qvl-tiny-Q4_K_M.gguf
picture=${1:-models/qvl-tiny/demo/shapes.png}
annotated=out/annotated.png

scripts/setup.sh
cargo build --release
qvl=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/qvl
"$qvl-convert" models/qvl-tiny -o out -t q4_k_m --force --quiet

# ask QUESTION [FLAGS]: shows the command, then runs it.
ask() {
    local question=$1
    shift
    printf '\n$ qvl ask -m %s -i %s --temp 0 %s"%s"\n' "$model" "$picture" "$*${*:+ }" "$question"
    "$qvl" ask -m "$model" -i "$picture" --temp 0 "$@" "$question"
}

if [ $# -gt 1 ]; then
    for question in "${@:2}"; do ask "$question" --annotate "$annotated"; done
else
    ask "Describe the picture."
    ask "What does the word say?"
    ask "How many objects are there?"
    ask "Is there a red circle?"
    ask "Where is the purple star?"
    ask "Describe the picture with boxes." --annotate "$annotated"
fi
cat <<EOF

The picture with what was found is $annotated. The model of this demo knows shapes, colours, bars and words in capitals, see
models/qvl-tiny/README.md. With the real one, downloaded from its publisher into a folder:

    ${qvl#"$PWD"/}-convert path/to/Qwen-VL-Chat -o models-gguf
    ${qvl#"$PWD"/} ask -m models-gguf/Qwen-VL-7B-Chat-Q4_K_M.gguf -i photo.jpg "What is this?"
EOF
