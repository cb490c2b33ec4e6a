#!/usr/bin/env bash
# Installs what the build needs beside Rust and git: cmake, a C++ compiler, libclang (for the bindings of llama.cpp).
# Does nothing where they are there. Its arguments are further packages to install. Debian and its relatives are handled;
# elsewhere it says what is missing.
set -euo pipefail

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    [ "$(uname)" = Darwin ] && xcode-select -p >/dev/null 2>&1 && return 0
    # Debian ships the library and clang's own headers (stddef.h), which it cannot do without, in two packages.
    compgen -G '/usr/lib/llvm-*/lib/libclang[.-][0-9s]*' >/dev/null &&
        compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null && return 0
    ! command -v apt-get >/dev/null && ldconfig -p 2>/dev/null | grep -q 'libclang[-0-9.]*\.so'
}

missing=("$@")
command -v cmake >/dev/null || missing+=(cmake)
command -v c++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
has_libclang || missing+=(libclang-dev)
if ! command -v cargo >/dev/null; then
    echo "error: cargo is not installed; get Rust from https://rustup.rs" >&2
    exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "error: please install: ${missing[*]} (these are Debian's names)" >&2
    exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "error: please install as root: ${missing[*]}" >&2; exit 1; }
    sudo=(sudo)
fi
echo "installing ${missing[*]}" >&2
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
