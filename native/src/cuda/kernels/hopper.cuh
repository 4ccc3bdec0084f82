// sm_90a's instructions as functions: bulk tensor copies, matrix products of a warpgroup.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>
#include <utility>

#include "cuda/kernels/bulk.cuh"
#include "cuda/kernels/elements.cuh"
#include "cute/arch/mma_sm90_gmma.hpp"

namespace pnb::cuda::hopper {

constexpr int kWarpgroup = 128;

// On a lambda: its arrays are registers only where it is inlined.
#define PNB_INLINE __attribute__((always_inline))

// A value that all lanes of a warp share, told to the compiler: it serialises products in branches that might diverge.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffff, x, 0); }

// A value of which the compiler knows nothing: what is made of it in a loop is made in each turn anew, rather than before
// the loop in registers that are not there.
__device__ __forceinline__ uint32_t opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

using pnb::cuda::Barrier;
using pnb::cuda::fence_async_proxy;
using pnb::cuda::fence_barrier_init;
using pnb::cuda::pack_bf16;
using pnb::cuda::shared_address;

// A slot of a ring of buffers, and the parity of its barriers' phase. Fillers wait for "empty" with the opposite parity, so
// that their first turn passes.
template <int kSlots>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// A barrier of some of a block's threads; number 0 is __syncthreads().
__device__ __forceinline__ void sync_threads(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Copies the map's box at these coordinates; the innermost one's bytes are a multiple of 16.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, Barrier& full, int x, int y) {
  uint32_t address = shared_address(to), barrier = shared_address(&full);
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(address), "l"(&map), "r"(barrier), "r"(x), "r"(y)
               : "memory");
}

__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, Barrier& full, int x, int y, int z) {
  uint32_t address = shared_address(to), barrier = shared_address(&full);
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
               ::"r"(address), "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
               : "memory");
}

// Products of a warpgroup: d[64, n] (+)= a[64, 16] b[16, n]. Thread t holds rows 16 (t / 32) + t % 32 / 4 and that + 8 of d:
// d[4 j + 0, 1] are columns 8 j + 2 (t % 4) + 0, 1 of the former, d[4 j + 2, 3] those of the latter.
namespace wgmma {

using cute::GMMA::Major;
using cute::GMMA::ScaleOut;

template <int kN, Major kB>
struct Atom;
template <Major kB>
struct Atom<16, kB> {
  using Shared = cute::SM90_64x16x16_F32BF16BF16_SS<Major::K, kB>;
  using Registers = cute::SM90_64x16x16_F32BF16BF16_RS<Major::K, kB>;
};
template <Major kB>
struct Atom<64, kB> {
  using Shared = cute::SM90_64x64x16_F32BF16BF16_SS<Major::K, kB>;
  using Registers = cute::SM90_64x64x16_F32BF16BF16_RS<Major::K, kB>;
};
template <Major kB>
struct Atom<128, kB> {
  using Shared = cute::SM90_64x128x16_F32BF16BF16_SS<Major::K, kB>;
  using Registers = cute::SM90_64x128x16_F32BF16BF16_RS<Major::K, kB>;
};
template <Major kB>
struct Atom<256, kB> {
  using Shared = cute::SM90_64x256x16_F32BF16BF16_SS<Major::K, kB>;
  using Registers = cute::SM90_64x256x16_F32BF16BF16_RS<Major::K, kB>;
};

template <typename Instruction, size_t... kI>
__device__ __forceinline__ void shared_step(float* d, uint64_t a, uint64_t b, bool add, std::index_sequence<kI...>) {
  Instruction::fma(a, b, d[kI]..., add ? ScaleOut::One : ScaleOut::Zero);
}

template <typename Instruction, size_t... kI>
__device__ __forceinline__ void register_step(float* d, const uint32_t* a, uint64_t b, bool add, std::index_sequence<kI...>) {
  Instruction::fma(a[0], a[1], a[2], a[3], b, d[kI]..., add ? ScaleOut::One : ScaleOut::Zero);
}

// One step of 16; a is a descriptor of shared memory, or four registers.
template <int kN, Major kB>
__device__ __forceinline__ void step(float* d, uint64_t a, uint64_t b, bool add) {
  shared_step<typename Atom<kN, kB>::Shared>(d, a, b, add, std::make_index_sequence<kN / 2>());
}

template <int kN, Major kB>
__device__ __forceinline__ void step(float* d, const uint32_t* a, uint64_t b, bool add) {
  register_step<typename Atom<kN, kB>::Registers>(d, a, b, add, std::make_index_sequence<kN / 2>());
}

// Keeps the compiler from moving uses of an accumulator into the time in which the tensor cores write it.
template <int kCount>
__device__ __forceinline__ void fence(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Before the first product that reads registers written by ordinary instructions.
__device__ __forceinline__ void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// d[64, 64] (+)= a * b, of which both operands have their columns contiguous: a is 16 rows of 64 columns, and so is b.
__device__ __forceinline__ void transposed_step(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  shared_step<cute::SM90_64x64x16_F32BF16BF16_SS<Major::MN, Major::MN>>(d, a, b, add, std::make_index_sequence<32>());
}

// Waits until at most so many committed groups are unfinished.
template <int kUnfinished>
__device__ __forceinline__ void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kUnfinished) : "memory");
}

}  // namespace wgmma

}  // namespace pnb::cuda::hopper
