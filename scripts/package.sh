#!/usr/bin/env bash
# Builds one archive for every machine with this system and architecture: both programs, ggml's kernels for all generations of
# CPUs and its devices as libraries that are chosen at run time, licences, completions, man pages. Then unpacks it into an empty
# directory and asks it about a picture there, without anything of this one.
#
#   scripts/package.sh [FEATURES]     # ggml's devices beside the CPU: vulkan (default: none), cuda, or "vulkan cuda"
#
# Writes out/qvl-VERSION-OS-ARCH.tar.gz. Its libraries of the system are those of the machine that builds it: build on the oldest
# one that it is for.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
devices=${1:-}
target=$PWD/target/package
# Code that any CPU of the architecture runs; ggml's libraries have what newer ones do better.
export RUSTFLAGS="" CARGO_TARGET_DIR=$target
cargo build --release --features "dynamic-backends $devices"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=qvl-$version-$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)
out=$target/$name
rm -rf "$out"
mkdir -p "$out"/{bin,lib/qvl,share/man/man1,share/bash-completion/completions,share/zsh/site-functions,share/fish/vendor_completions.d,share/doc/qvl}
install -m 755 "$target"/release/{qvl,qvl-convert} "$out/bin"
built=$(ls -dt "$target"/release/build/llama-cpp-sys-2-*/out | head -n 1)
# ggml and llama.cpp under the names that the loader asks for, and what is loaded by ggml.
for library in llama ggml ggml-base; do
    file=$(find "$built/lib" -name "lib$library.so" | head -n 1)
    cp -L "$file" "$out/lib/qvl/$(objdump -p "$file" | awk '$1 == "SONAME" { print $2 }')"
done
cp "$built"/backends/*.so "$out/lib/qvl/"
# Not on every machine: the runtime libraries of the compiler, under its exception for such use.
for library in libgomp.so.1 libstdc++.so.6 libgcc_s.so.1; do
    cp -L "$(c++ -print-file-name=$library)" "$out/lib/qvl/"
done

qvl=$out/bin/qvl
"$qvl" man "$out/share/man/man1"
"$qvl" completions bash > "$out/share/bash-completion/completions/qvl"
"$qvl" completions zsh > "$out/share/zsh/site-functions/_qvl"
"$qvl" completions fish > "$out/share/fish/vendor_completions.d/qvl.fish"
cp -r README.md docs CHANGELOG.md SECURITY.md LICENSE-* "$out/share/doc/qvl/"
# What each dependency asks to be told with it.
cargo tree -e normal --prefix none -f '{p}	{l}' --features "dynamic-backends $devices" | sed 's/ (.*)//' | sort -u |
    while IFS=$'\t' read -r package licence; do
        printf '\n==== %s (%s)\n' "$package" "$licence"
        folder=$(compgen -G "${CARGO_HOME:-$HOME/.cargo}/registry/src/*/$(sed 's/ v/-/' <<< "$package")" || true)
        if [ -n "$folder" ]; then
            find $folder -maxdepth 2 \( -iname 'LICEN*' -o -iname 'COPYING*' -o -iname 'NOTICE*' \) -type f -exec cat {} +
        fi
    done > "$out/share/doc/qvl/THIRD-PARTY"
tar -C "$target" -czf "$target/$name.tar.gz" "$name"
mkdir -p out
mv "$target/$name.tar.gz" out/

# As a user of it: another place, no environment, none of this directory's files but a model and a picture.
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
tar -C "$room" -xzf "out/$name.tar.gz"
cp -r models/qvl-tiny "$room/checkpoint"
cp models/qvl-tiny/demo/shapes.png "$room"
cd "$room"
run() { env -i HOME="$room" PATH= "$room/$name/bin/$1" "${@:2}"; }
run qvl doctor
if grep -qw avx2 /proc/cpuinfo 2>/dev/null && run qvl doctor --json | grep -q '"decoding_kernels": *"ggml"'; then
    echo "error: ggml does not ask for our kernels" >&2
    exit 1
fi
run qvl-convert checkpoint -q -t q4_k_m --name m -o model
answer=$(run qvl ask -q -m model/m-Q4_K_M.gguf -i shapes.png --temp 0 "How many shapes are there?")
echo "$answer"
[ -n "$answer" ]
if ldd "$name"/bin/* | grep 'not found'; then
    echo "error: a library is missing" >&2
    exit 1
fi
echo "out/$name.tar.gz: $(du -h "$OLDPWD/out/$name.tar.gz" | cut -f1)"
