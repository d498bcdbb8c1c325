#!/bin/sh
# Builds the emulated GPU: three libraries in place of NVIDIA's, which do their work on the processor (x86-64, Linux, g++ 10 or later).
#
#     tests/device/emulated/build.sh FOLDER
#     FOLDER/faults    whether it finds what it is there to find
#     LD_LIBRARY_PATH=FOLDER DIAGNOSE_DEVICE_TESTS=1 cargo test --release --lib kernels::
#     LD_LIBRARY_PATH=FOLDER diagnose data/demo.jsonl --device cuda
#
#     device.h     what the parts know of each other
#     driver.cpp   libcuda.so.1: memory, streams, modules, launches
#     fibres.cpp   blocks of threads, in the same library
#     nvrtc.cpp    libnvrtc.so.13 and .12: g++ compiles the kernels behind kernel.h, CUDA's language for g++
#     cublas.cpp   libcublasLt.so.13 and .12
#
# It finds: access out of bounds (pages that nobody may touch behind every allocation and behind dynamic shared memory, red zones behind
# shared variables), numbers that nobody wrote (memory is full of NaN), reading before an asynchronous copy was waited for, host memory
# used before the stream has come to it, misaligned access, lanes and threads that wait for each other in vain, calls without a context,
# too much shared memory, rows whose bits depend on how many others a product has, and races (EMULATED_ORDER=reverse, random, random:SEED). It does not find what only a card can show: speed,
# registers, what its compiler makes of a kernel, and the last bits of its sums.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
sources=$(cat "$here"/*.h "$here"/*.cpp | sha256sum | cut -c 1-8)
compile() { ${CXX:-g++} -std=gnu++17 -O3 -march=native -fPIC -shared -Wall -Wextra -Wl,-rpath,'$ORIGIN' "$@"; }
compile -Wl,-soname,libcuda.so.1 -DEMULATED_SOURCES="\"$sources\"" "$here/driver.cpp" "$here/fibres.cpp" -o libcuda.so.1 -ldl -pthread
compile -Wl,-soname,libnvrtc.so.13 "$here/nvrtc.cpp" -o libnvrtc.so.13 -ldl
compile -Wl,-soname,libcublasLt.so.13 "$here/cublas.cpp" -o libcublasLt.so.13 -L. -l:libcuda.so.1
for library in libnvrtc.so libcublasLt.so; do cp $library.13 $library.12; done
cp "$here/device.h" "$here/kernel.h" .
${CXX:-g++} -std=gnu++17 -O1 -Wall "$here/faults.cpp" -o faults -L. -l:libcuda.so.1 -l:libnvrtc.so.13 -Wl,-rpath,'$ORIGIN'
