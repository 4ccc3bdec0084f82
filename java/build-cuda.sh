#!/bin/sh
# Builds libpenumbra_cuda where nvcc and CUTLASS's headers can be had, and puts it into INSTALL_DIR for its jar.
# Maven runs it; a build with nothing to do takes a moment.
# usage: build-cuda.sh MODE SOURCE_DIR BUILD_DIR BUILD_TYPE VERSION INSTALL_DIR
#   MODE auto     leaves the library out, with one line, where something is missing
#        require  fails there
#        off      leaves it out
set -eu

if [ $# -ne 6 ]; then
  echo "build-cuda.sh: expected MODE SOURCE_DIR BUILD_DIR BUILD_TYPE VERSION INSTALL_DIR, found $# arguments" >&2
  exit 2
fi
mode=$1
source_dir=$2
build_dir=$3
build_type=$4
version=$5
install_dir=$6

case $mode in
  auto | require) ;;
  off)
    rm -rf "$install_dir"
    exit 0
    ;;
  *)
    echo "build-cuda.sh: expected auto, require or off, found $mode" >&2
    exit 2
    ;;
esac

leave_out() {
  if [ "$mode" = require ]; then
    echo "penumbra: the CUDA library is required: $1" >&2
    exit 1
  fi
  rm -rf "$install_dir"
  echo "penumbra: built without CUDA: $1"
  exit 0
}

nvcc=${CUDACXX:-$(command -v nvcc || true)}
[ -n "$nvcc" ] || leave_out "nvcc 12.4 or newer was not found on the PATH."

# Configuring again with the same values changes nothing that Ninja looks at; a stamp of the values skips even that.
wanted="$source_dir|$build_type|$version|$nvcc|${CUTLASS_ROOT:-}"
stamp=$build_dir/.configured-with
if [ ! -f "$build_dir/build.ninja" ] || [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  mkdir -p "$build_dir"
  cmake -S "$source_dir" -B "$build_dir" -G Ninja \
    -DCMAKE_BUILD_TYPE="$build_type" \
    -DCMAKE_CUDA_COMPILER="$nvcc" \
    -DPENUMBRA_VERSION="$version" \
    -DPENUMBRA_TESTS=ON > "$build_dir/configure.log" 2>&1 || {
    [ "$mode" != require ] || sed -n '/CMake Error/,$p' "$build_dir/configure.log" | head -n 12 >&2
    leave_out "it needs nvcc 12.4 and the headers of CUTLASS 3.4.1 (set CUTLASS_ROOT to a checkout or an unpacked libcutlass-dev); $build_dir/configure.log has the whole output."
  }
  printf '%s' "$wanted" > "$stamp"
fi
cmake --build "$build_dir"
cmake --install "$build_dir" --prefix "$install_dir" --strip >/dev/null
