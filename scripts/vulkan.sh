#!/usr/bin/env bash
# The whole model on Mesa's software device (lavapipe), where there is no GPU: distances from the CPU, parts of the graph, and
# answers. Half an hour on two cores, most of it to build ggml's shaders; a second or more a token, so that few are asked for.
#
# Needs Vulkan's headers from 1.3.27x on (Debian 13 has them, Debian 12 has not; VULKAN_SDK may name a directory whose include/ has
# them), glslc, SPIR-V's headers and Mesa's Vulkan drivers; installs them on Debian and its relatives.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
if command -v apt-get >/dev/null; then
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        libvulkan-dev glslc spirv-headers mesa-vulkan-drivers >&2
fi
# Older ones end in a page of C++ after ten minutes.
headers=${VULKAN_SDK:-/usr}/include/vulkan/vulkan_core.h
patch=$(sed -n 's/^#define VK_HEADER_VERSION \([0-9]*\)$/\1/p' "$headers")
minor=$(sed -n 's/^#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, \([0-9]*\), .*/\1/p' "$headers")
if [ "$minor" -lt 3 ] || { [ "$minor" -eq 3 ] && [ "$patch" -lt 270 ]; }; then
    echo "error: Vulkan's headers are 1.$minor.$patch here, 1.3.270 are needed; set VULKAN_SDK to a directory whose include/ has newer ones" >&2
    exit 1
fi
# ggml passes over devices that are CPUs unless they are named.
export GGML_VK_VISIBLE_DEVICES=0 CARGO_TARGET_DIR=target/vulkan
cargo test --release --features vulkan --test it -- devices::
QVL_DEVICE=vulkan0 QVL_VISION_DEVICE=vulkan0 cargo test --release --features vulkan --test it -- goldens_own::answers
