// What the blocks of a cluster hand each other: sixteen bytes at a time into shared memory, counted by a barrier there. A
// barrier of the cluster that orders memory is dearer: every thread waits until whatever it has written can be seen by the device.
#pragma once

#include "cuda/kernels/bulk.cuh"

namespace pnb::cuda {

// By all threads of all blocks; after all_begun() every block is there to be written to.
__device__ inline void tell_begun() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ inline void all_begun() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// Writes to the place of another block's (or this one's) shared memory that `to` is in this one's, and tells its barrier. There
// are several blocks: compute-sanitizer takes it for an error in a cluster of one.
__device__ inline void send(const float4& v, void* to, Barrier& barrier, int block) {
  asm volatile(
      "{\n.reg .b32 to, barrier;\n"
      "mapa.shared::cluster.u32 to, %0, %2;\n"
      "mapa.shared::cluster.u32 barrier, %1, %2;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], {%3, %4, %5, %6}, [barrier];\n}" ::"r"(
          shared_address(to)),
      "r"(shared_address(&barrier.bits)), "r"(block), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
      : "memory");
}

}  // namespace pnb::cuda
