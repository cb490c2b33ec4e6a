#!/usr/bin/env bash
# Stands in for cmake while fuzz targets are built (CMAKE=fuzz/no-cmake.sh): no target calls C, so llama.cpp need not be
# compiled. An archive with nothing in it is all that the crate's build script looks for.
set -euo pipefail
for argument in "$@"; do
    case $argument in
        -DCMAKE_INSTALL_PREFIX=*)
            mkdir -p "${argument#*=}/lib"
            ar cr "${argument#*=}/lib/libllama.a"
            ;;
    esac
done
