#include "cuda/runtime/device.h"

namespace pnb::cuda {

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // a launch error stays set otherwise, and the next check would report it again
  fail(result == cudaErrorMemoryAllocation ? PNB_ERROR_OUT_OF_MEMORY : PNB_ERROR_DEVICE, "%s: %s (%s)", what,
       cudaGetErrorString(result), cudaGetErrorName(result));
}

Device open_device(int ordinal, bool deterministic) {
  int count = 0;
  cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    cudaGetLastError();
    fail(PNB_ERROR_UNAVAILABLE, "context: no CUDA device: %s",
         found == cudaSuccess ? "the driver lists none" : cudaGetErrorString(found));
  }
  if (ordinal >= count) {
    fail(PNB_ERROR_UNAVAILABLE, "context: expected a CUDA device below %d, found ordinal %d", count, ordinal);
  }
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, ordinal), "context");
  if (properties.major != 9 || properties.minor != 0) {
    fail(PNB_ERROR_UNAVAILABLE, "context: expected a GPU of compute capability 9.0 (H100, H200), found %s with %d.%d",
         properties.name, properties.major, properties.minor);
  }
  check(cudaSetDevice(ordinal), "context");
  return {ordinal, Arch::kSm90, properties.multiProcessorCount, deterministic, properties.name};
}

}  // namespace pnb::cuda
