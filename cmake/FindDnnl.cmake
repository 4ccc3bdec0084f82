# oneDNN out of the Maven jars org.bytedeco:dnnl and org.bytedeco:opencl, unpacked under PENUMBRA_DNNL_ROOT.
# Defines the target Dnnl::dnnl. The jars hold versioned names only, so the files are named in full.
set(_dnnl_dir "${PENUMBRA_DNNL_ROOT}/org/bytedeco/dnnl/linux-x86_64")
set(_opencl_dir "${PENUMBRA_DNNL_ROOT}/org/bytedeco/opencl/linux-x86_64")

find_path(DNNL_INCLUDE_DIR oneapi/dnnl/dnnl.hpp PATHS "${_dnnl_dir}/include" NO_DEFAULT_PATH)
find_file(DNNL_LIBRARY libdnnl.so.3 PATHS "${_dnnl_dir}" NO_DEFAULT_PATH)
find_file(GOMP_LIBRARY libgomp.so.1 PATHS "${_dnnl_dir}" NO_DEFAULT_PATH)
find_file(OPENCL_LIBRARY libOpenCL.so.1 PATHS "${_opencl_dir}" NO_DEFAULT_PATH)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Dnnl
  REQUIRED_VARS DNNL_LIBRARY DNNL_INCLUDE_DIR GOMP_LIBRARY OPENCL_LIBRARY
  REASON_FAILURE_MESSAGE "set PENUMBRA_DNNL_ROOT to the folder that the jars of org.bytedeco:dnnl and org.bytedeco:opencl (classifier linux-x86_64) were unpacked into")

if(Dnnl_FOUND AND NOT TARGET Dnnl::dnnl)
  add_library(Dnnl::dnnl SHARED IMPORTED)
  set_target_properties(Dnnl::dnnl PROPERTIES
    IMPORTED_LOCATION "${DNNL_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${DNNL_INCLUDE_DIR}"
    # libdnnl.so.3 itself needs the other two; the linker has to see them although nothing here names them.
    INTERFACE_LINK_OPTIONS "-Wl,-rpath-link,${_dnnl_dir}:${_opencl_dir}")
  set(DNNL_RUNTIME_DIRS "${_dnnl_dir}" "${_opencl_dir}")
endif()
