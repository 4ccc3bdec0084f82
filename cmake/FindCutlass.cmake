# CUTLASS's headers: CUTLASS_ROOT (a checkout or an unpacked package), else a system install, else the upstream release.
# Sets CUTLASS_INCLUDE_DIR.
set(CUTLASS_MINIMUM 3.4.1)
set(CUTLASS_TAG v3.4.1)

find_path(CUTLASS_INCLUDE_DIR cutlass/cutlass.h
  HINTS "${CUTLASS_ROOT}" ENV CUTLASS_ROOT
  PATH_SUFFIXES include usr/include)

if(NOT CUTLASS_INCLUDE_DIR)
  message(STATUS "CUTLASS: no headers here, fetching ${CUTLASS_TAG}")
  include(FetchContent)
  FetchContent_Declare(cutlass GIT_REPOSITORY https://github.com/NVIDIA/cutlass.git GIT_TAG ${CUTLASS_TAG} GIT_SHALLOW TRUE)
  # Headers only: CUTLASS's own build is not added.
  FetchContent_Populate(cutlass)
  set(CUTLASS_INCLUDE_DIR "${cutlass_SOURCE_DIR}/include" CACHE PATH "CUTLASS's headers" FORCE)
endif()

file(STRINGS "${CUTLASS_INCLUDE_DIR}/cutlass/version.h" _cutlass_version REGEX "#define CUTLASS_(MAJOR|MINOR|PATCH) +[0-9]+")
string(REGEX REPLACE "[^0-9;]*([0-9]+)" "\\1" _cutlass_version "${_cutlass_version}")
list(JOIN _cutlass_version "." CUTLASS_VERSION)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Cutlass REQUIRED_VARS CUTLASS_INCLUDE_DIR VERSION_VAR CUTLASS_VERSION)
if(CUTLASS_VERSION VERSION_LESS CUTLASS_MINIMUM)
  message(FATAL_ERROR "expected CUTLASS ${CUTLASS_MINIMUM} or newer, found ${CUTLASS_VERSION} in ${CUTLASS_INCLUDE_DIR}")
endif()
