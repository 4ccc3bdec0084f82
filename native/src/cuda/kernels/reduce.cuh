// Sums over a warp and over a block, in an order that depends on nothing but the block's size.
#pragma once

#include <cuda_runtime.h>

namespace pnb::cuda {

constexpr int kWarp = 32;

__device__ inline float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }

template <typename T>
__device__ T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(~0u, v, mask);
}
__device__ inline float2 shuffle_xor(float2 v, int mask) { return make_float2(shuffle_xor(v.x, mask), shuffle_xor(v.y, mask)); }

// Every lane gets the combination of all lanes' values.
template <typename T, typename Combine>
__device__ T warp_combine(T v, Combine combine) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) v = combine(v, shuffle_xor(v, mask));
  return v;
}

// Every thread of a block gets the combination of all threads' values; `identity` changes nothing it is combined with.
// `shared` holds 32 values and may be used again at once: the first barrier protects what is still being read.
template <typename T, typename Combine>
__device__ T block_combine(T v, T identity, T* shared, Combine combine) {
  v = warp_combine(v, combine);
  if (blockDim.x <= kWarp) return v;
  int lane = threadIdx.x % kWarp;
  __syncthreads();
  if (lane == 0) shared[threadIdx.x / kWarp] = v;
  __syncthreads();
  v = lane < blockDim.x / kWarp ? shared[lane] : identity;
  return warp_combine(v, combine);
}

template <typename T>
__device__ T block_sum(T v, T* shared) {
  return block_combine(v, T{}, shared, [](T a, T b) { return a + b; });
}

}  // namespace pnb::cuda
