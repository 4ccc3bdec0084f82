// Clusters whose size is chosen at the launch: blocks that add up in each other's shared memory.
#pragma once

#include <cooperative_groups.h>

#include "cuda/runtime/device.h"

namespace pnb::cuda {

constexpr int kMaxCluster = 8;  // the largest that every device of the architecture runs

// Neighbours along x form a cluster; grid.x is a multiple of `cluster`.
template <typename... Parameters, typename... Arguments>
void launch_clusters(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, int cluster, cudaStream_t stream,
                     const char* name, Arguments... arguments) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

// The smallest power of two, at most kMaxCluster, that makes so many blocks of `groups`.
inline int cluster_for(int64_t groups, int64_t blocks) {
  int cluster = 1;
  while (cluster < kMaxCluster && groups * cluster < blocks) cluster *= 2;
  return cluster;
}

}  // namespace pnb::cuda
