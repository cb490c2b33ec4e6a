#!/usr/bin/env bash
# Installs what is missing, builds, converts the small checkpoint in models/qvl-random and asks it about a picture.
# Usage: ./demo.sh [PICTURE] [QUESTION]
set -euo pipefail
cd "$(dirname "$0")"
picture=${1:-tests/data/pictures/shapes.png}
question=${2:-What is in this picture?}

scripts/setup.sh
cargo build --release
cargo run --release --quiet --bin qvl-convert -- models/qvl-random -o out -t q4_k_m --force
echo
echo "\$ qvl ask -m out/qvl-random-Q4_K_M.gguf -i $picture --temp 0 -n 24 \"$question\""
cargo run --release --quiet --bin qvl -- ask -m out/qvl-random-Q4_K_M.gguf -i "$picture" --temp 0 -n 24 "$question"
echo "(The weights of this small checkpoint are random: the way is real, the words are not.)" >&2
