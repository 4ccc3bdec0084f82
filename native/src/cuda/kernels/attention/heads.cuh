// Rows of a [tokens, heads, head_dim] view, and the sample a row belongs to.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "penumbra/tensor.h"

namespace pnb::cuda::attention {

template <typename T>
struct Heads {
  T* data;
  int64_t token_stride, head_stride;

  Heads() = default;
  explicit Heads(const pnb_tensor& t) : data(static_cast<T*>(t.data)), token_stride(t.stride[0]), head_stride(t.stride[1]) {}

  __device__ bool present() const { return data != nullptr; }
  __device__ T* row(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

// Ascending borders of packed samples, on the device.
struct Borders {
  const int32_t* at;
  int32_t samples;

  Borders() = default;
  explicit Borders(const pnb_tensor& t)
      : at(static_cast<const int32_t*>(t.data)), samples(static_cast<int32_t>(t.shape[0] - 1)) {}

  // The sample that holds the row; `samples` for a row of none. Empty samples hold nothing.
  __device__ int32_t sample_of(int32_t row) const {
    int32_t low = 0, high = samples + 1;  // the first border above row lies in [low, high]
    while (low < high) {
      int32_t middle = (low + high) / 2;
      if (at[middle] > row) high = middle;
      else low = middle + 1;
    }
    return low == 0 ? samples : low - 1;
  }

  // Whether every sample has so many rows. Called by all threads of a block.
  __device__ bool are_all(int32_t length) const {
    bool same = true;
    for (int s = threadIdx.x; s <= samples; s += blockDim.x) same = same && at[s] == s * length;
    return __syncthreads_and(same) != 0;
  }
};

// Of eight bf16 each.
__device__ __forceinline__ float dot(const uint4& x, const uint4& y) {
  const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float2 u = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(xs[j]));
    float2 v = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(ys[j]));
    sum = fmaf(u.x, v.x, fmaf(u.y, v.y, sum));
  }
  return sum;
}

}  // namespace pnb::cuda::attention
