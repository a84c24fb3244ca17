#!/bin/sh
# Builds and runs native_kernels.cc with g++ on an x86-64 machine: benchmarks/native_kernels.sh [threads] [isa] [rows of x] [format]
set -e
here=$(dirname "$0")
source="$here/../src/gemmary/csrc"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags="-std=c++20 -O3 -ffp-contract=off -fno-math-errno -I$source"
for file in formats activations packed pack unpack kernels; do g++ $flags -c "$source/$file.cc" -o "$build/$file.o"; done
g++ $flags -O2 -c "$source/isa_scalar.cc" -o "$build/scalar.o"
g++ $flags -mavx2 -mfma -mf16c -c "$source/isa_avx2.cc" -o "$build/avx2.o"
g++ $flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -c "$source/isa_avx512.cc" -o "$build/avx512.o"
g++ $flags -c "$here/native_kernels.cc" -o "$build/main.o"
g++ "$build"/*.o -pthread -o "$build/native_kernels"
"$build/native_kernels" "$@"
