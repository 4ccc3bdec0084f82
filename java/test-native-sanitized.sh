#!/bin/sh
# Builds the native tests with AddressSanitizer and UndefinedBehaviorSanitizer in a folder of their own and runs them.
# mvn verify runs it; by hand, after a first build:
#   java/test-native-sanitized.sh native java/target/native-sanitized java/target/native-deps
# usage: test-native-sanitized.sh SOURCE_DIR BUILD_DIR DNNL_ROOT
set -eu

if [ $# -ne 3 ]; then
  echo "test-native-sanitized.sh: expected SOURCE_DIR BUILD_DIR DNNL_ROOT, found $# arguments" >&2
  exit 2
fi
source_dir=$1
build_dir=$2
dnnl_root=$(CDPATH= cd -- "$3" && pwd)

cmake -S "$source_dir" -B "$build_dir" -G Ninja -DPENUMBRA_DNNL_ROOT="$dnnl_root" -DPENUMBRA_SANITIZE=address,undefined
cmake --build "$build_dir"
ctest --test-dir "$build_dir" --output-on-failure
