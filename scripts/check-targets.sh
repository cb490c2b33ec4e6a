#!/usr/bin/env bash
# Type-checks the Rust code for systems that are not at hand: macOS on ARM, and Windows without the tests, some of which are
# Unix's. C and C++ are not compiled, which would take their makers' headers; bindings are made from this system's, whose
# types are as wide where llama.cpp's headers use them.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
# A compiler that leaves empty files, and an archiver.
cat > "$tools/cc" <<'END'
#!/usr/bin/env bash
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && : > "$2"
    shift
done
END
printf '%s\n' '#!/usr/bin/env bash' 'printf "!<arch>\n" > "$2"' > "$tools/ar"
chmod +x "$tools/cc" "$tools/ar"

export RUSTFLAGS="-D warnings" CMAKE=$PWD/fuzz/no-cmake.sh SDKROOT=/ CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/check}
for target in aarch64-apple-darwin x86_64-pc-windows-gnu; do
    rustup target add "$target"
    export "CC_${target//-/_}=$tools/cc" "CXX_${target//-/_}=$tools/cc" "AR_${target//-/_}=$tools/ar"
    export "BINDGEN_EXTRA_CLANG_ARGS_${target//-/_}=--target=$(uname -m)-linux-gnu"
    echo "checking $target" >&2
    case $target in
        *windows*) cargo check --target "$target" --lib --bins ;;
        *) cargo check --target "$target" --all-targets ;;
    esac
done
