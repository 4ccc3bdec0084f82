// Bulk copies into shared memory: one thread asks for them, a barrier tells when they have come.
#pragma once

#include <cstdint>

namespace pnb::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// A barrier of shared memory whose phase ends when all expected arrivals and copied bytes have come in.
struct Barrier {
  uint64_t bits;

  __device__ void init(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&bits)), "r"(arrivals) : "memory");
  }
  __device__ void arrive() { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&bits)) : "memory"); }
  // By a warp's lanes together, for all of them. A lane that has not seen the phase it waits for when another one arrives can find
  // it over and the next but one, of the same parity, begun: it would go on waiting, and the others meet the next instruction
  // of a whole warp without it.
  __device__ void arrive_together() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive();
  }
  __device__ void arrive_and_expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&bits)), "r"(bytes) : "memory");
  }
  // Waits for the end of the phase of this parity.
  __device__ void wait(uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra DONE;\n"
        "bra WAIT;\n"
        "DONE:\n"
        "}" ::"r"(shared_address(&bits)),
        "r"(parity)
        : "memory");
  }
};

// Makes barriers that one thread has initialised known to the copy engine; a __syncthreads() must follow.
__device__ __forceinline__ void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Orders this thread's accesses of shared memory before those of the copy engine and the tensor cores.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies bytes that lie one after another; addresses and their number are multiples of sixteen.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, uint32_t bytes, Barrier& full) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(&full))
               : "memory");
}

}  // namespace pnb::cuda
