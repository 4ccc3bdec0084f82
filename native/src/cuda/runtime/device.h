// What kernels ask about the device they run on, and how CUDA's errors become ours.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "core/error.h"
#include "penumbra/penumbra.h"

namespace pnb::cuda {

// The architecture that the kernels were built for; a build for another one gets its own table of kernels.
enum class Arch { kSm90 };

struct Device {
  int ordinal;
  Arch arch;
  int multiprocessors;
  bool deterministic;  // equal inputs give equal bits
  std::string name;
};

// Selects the device's primary context on this thread and reads its properties.
// Throws PNB_ERROR_UNAVAILABLE where there is no driver or no such device, or one that no kernel was built for.
Device open_device(int ordinal, bool deterministic);

inline cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

// Throws unless result is cudaSuccess: OUT_OF_MEMORY for exhausted memory, DEVICE for all else.
void check(cudaError_t result, const char* what);

// After a kernel's launch: throws what the launch itself reports. It does not wait.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

// Lets a kernel use more than 48 KB of dynamic shared memory.
template <typename Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes, const char* name) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        name);
}

}  // namespace pnb::cuda
