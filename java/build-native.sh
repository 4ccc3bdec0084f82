#!/bin/sh
# Checks the tools, then configures and builds the native library, and puts the copy for the jar into INSTALL_DIR.
# Maven runs it; a build with nothing to do takes a moment.
# usage: build-native.sh SOURCE_DIR BUILD_DIR BUILD_TYPE VERSION DNNL_ROOT INSTALL_DIR
set -eu

if [ $# -ne 6 ]; then
  echo "build-native.sh: expected SOURCE_DIR BUILD_DIR BUILD_TYPE VERSION DNNL_ROOT INSTALL_DIR, found $# arguments" >&2
  exit 2
fi
source_dir=$1
build_dir=$2
build_type=$3
version=$4
dnnl_root=$5
install_dir=$6

refuse() {
  echo "penumbra: $1" >&2
  exit 1
}

command -v cmake >/dev/null 2>&1 ||
  refuse "CMake 3.25 or newer is needed to build the native library and was not found: install Debian's package cmake."
cmake_version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p')
if [ "${cmake_version%%.*}" -lt 3 ] || { [ "${cmake_version%%.*}" -eq 3 ] && [ "${cmake_version#*.}" -lt 25 ]; }; then
  refuse "CMake 3.25 or newer is needed to build the native library, found $cmake_version: install a newer version of Debian's package cmake."
fi
command -v ninja >/dev/null 2>&1 ||
  refuse "Ninja is needed to build the native library and was not found: install Debian's package ninja-build."
command -v "${CXX:-c++}" >/dev/null 2>&1 ||
  refuse "A C++20 compiler is needed to build the native library and ${CXX:-c++} was not found: install Debian's package g++."
command -v "${CC:-cc}" >/dev/null 2>&1 ||
  refuse "A C11 compiler is needed to build the native library and ${CC:-cc} was not found: install Debian's package gcc."

# Configuring again with the same values changes nothing that Ninja looks at; a stamp of the values skips even that.
wanted="$source_dir|$build_type|$version|$dnnl_root"
stamp=$build_dir/.configured-with
if [ ! -f "$build_dir/build.ninja" ] || [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  cmake -S "$source_dir" -B "$build_dir" -G Ninja \
    -DCMAKE_BUILD_TYPE="$build_type" \
    -DPENUMBRA_VERSION="$version" \
    -DPENUMBRA_DNNL_ROOT="$dnnl_root" \
    -DPENUMBRA_TESTS=ON
  printf '%s' "$wanted" > "$stamp"
fi
cmake --build "$build_dir"
cmake --install "$build_dir" --prefix "$install_dir" --strip >/dev/null
