// Launches with more to say than a grid: clusters whose blocks add up in each other's shared memory, and kernels that begin
// while the one before still ends.
#pragma once

#include <cooperative_groups.h>

#include "cuda/runtime/device.h"

namespace pnb::cuda {

constexpr int kMaxCluster = 8;  // the largest that every device of the architecture runs

struct Launch {
  dim3 grid;  // a multiple of cluster along x
  int threads;
  size_t shared_bytes;
  cudaStream_t stream;
  int cluster = 1;        // neighbours along x
  bool early = false;     // the kernel calls after_previous() before it touches what another kernel writes or reads
  bool together = false;  // blocks of the whole grid wait for each other: they run at the same time or not at all
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, const char* name, const Arguments&... arguments) {
  cudaLaunchAttribute attributes[3];
  unsigned count = 0;
  auto add = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
    attributes[count].id = id;
    return attributes[count++].val;
  };
  auto& cluster = add(cudaLaunchAttributeClusterDimension).clusterDim;
  cluster.x = static_cast<unsigned>(how.cluster);
  cluster.y = cluster.z = 1;
  if (how.early) add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
  if (how.together) add(cudaLaunchAttributeCooperative).cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

// Waits until the kernels before this one have ended and what they wrote can be seen; at once where the launch was not early.
__device__ inline void after_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets a kernel that is launched early begin where there is room for its blocks.
__device__ inline void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// The smallest power of two, at most kMaxCluster, that makes so many blocks of `groups`.
inline int cluster_for(int64_t groups, int64_t blocks) {
  int cluster = 1;
  while (cluster < kMaxCluster && groups * cluster < blocks) cluster *= 2;
  return cluster;
}

}  // namespace pnb::cuda
