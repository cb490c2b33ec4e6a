#!/usr/bin/env bash
# llama.cpp's own converter against ours, on the models of this repository: it is installed (Python 3.9 or later, a gigabyte
# under target/), writes the language models as f32, f16 and q8_0, and the tests then hold ours against its files: the same
# keys, the same weights byte by byte, and the same logits in stock llama.cpp. Ten minutes, most of it to download.
#
#   scripts/llama-converter.sh [--record]     # --record: what it wrote becomes what every run of the tests compares with
#
# The converter comes with the source of the package llama-cpp-python 0.3.16. That of 0.3.36 writes Qwen's epsilon under a key
# that llama.cpp's loader does not look for, so that llama.cpp cannot load its files.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 0 ] || [ "$*" = --record ] || { echo "usage: scripts/llama-converter.sh [--record]" >&2; exit 2; }
scripts/setup.sh
dir=$PWD/target/llama-converter
package=llama_cpp_python-0.3.16
mkdir -p "$dir/files"
if [ ! -e "$dir/installed" ]; then
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install -q 'torch>=2.2' 'transformers==4.57.6' 'numpy>=1.26' safetensors sentencepiece 'protobuf>=4.21' \
        mistral-common regex pyyaml tqdm
    "$dir/venv/bin/pip" download -q --no-deps --no-binary llama-cpp-python -d "$dir" llama-cpp-python==0.3.16
    tar -xzf "$dir/$package.tar.gz" -C "$dir" --wildcards '*/vendor/llama.cpp/convert*' '*/vendor/llama.cpp/gguf-py/*'
    touch "$dir/installed"
fi
PYTHONDONTWRITEBYTECODE=1 "$dir/venv/bin/python" models/reference/llama_converter.py \
    "$dir/$package/vendor/llama.cpp" "$dir/files" "$dir/record.json" >"$dir/log" 2>&1 || { tail -n 20 "$dir/log" >&2; exit 1; }
if [ "${1:-}" = --record ]; then
    cp "$dir/record.json" tests/data/llama-converter.json
fi
diff -q "$dir/record.json" tests/data/llama-converter.json
# llama.cpp says much about what it loads.
QVL_LLAMA_CONVERTER_FILES=$dir/files cargo test --release --test it -- llama_converter:: 2>"$dir/log" ||
    { grep -v '^llama' "$dir/log" | tail -n 40 >&2; exit 1; }
