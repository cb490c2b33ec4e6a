#!/usr/bin/env bash
# Compiles and links the feature `cuda`, where there need not be a GPU, and asks the program: an hour and a half on two cores. With a GPU the
# tests of devices and goldens follow, on it.
#
# Takes NVIDIA's toolkit if it is in /usr/local/cuda, else Debian's (section non-free, which has to be among the sources): its compiler
# wants GCC 11, and its libraries lie elsewhere than NVIDIA's. CMAKE_CUDA_ARCHITECTURES=86 says for which GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cuda}
if [ ! -d /usr/local/cuda ]; then
    if command -v apt-get >/dev/null && ! command -v nvcc >/dev/null; then
        sudo=()
        [ "$(id -u)" -eq 0 ] || sudo=(sudo)
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nvidia-cuda-toolkit g++-11 >&2
    fi
    # As NVIDIA lays it out.
    root=$(mkdir -p "$CARGO_TARGET_DIR" && cd "$CARGO_TARGET_DIR" && pwd)/toolkit
    mkdir -p "$root/lib64"
    ln -sf /usr/lib/*-linux-gnu/lib{cudart_static,cublas_static,cublasLt_static,culibos}.a "$root/lib64/"
    export CUDA_LIBRARY_PATH=$root CUDA_PATH=/usr/lib/cuda CMAKE_CUDA_HOST_COMPILER=$(command -v g++-11)
fi
export CMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES:-86}
cargo build --release --features cuda --bin qvl
"$CARGO_TARGET_DIR/release/qvl" doctor
if command -v nvidia-smi >/dev/null && nvidia-smi -L; then
    cargo test --release --features cuda --test it -- devices:: goldens_own::
fi
