// Elements of tensors as floats: one at a time, or as many as sixteen bytes hold.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/tensor.h"

namespace pnb::cuda {

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float to_float(__half v) { return __half2float(v); }

// Rounds to nearest even.
template <typename T>
__device__ inline T from_float(float v) {
  if constexpr (sizeof(T) == sizeof(float)) return v;
  else return __float2bfloat16_rn(v);
}

// Two neighbours, the first in memory low.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<uint32_t&>(pair);
}

// Elements that one 16-byte access holds.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

// kCount neighbours, moved sixteen bytes at a time where they fill that many, and then aligned so.
template <typename T, int kCount>
struct Pack {
  static constexpr int kBytes = kCount * sizeof(T);
  alignas(kBytes % 16 == 0 ? 16 : alignof(T)) T v[kCount];

  __device__ static Pack load(const T* p) {
    Pack pack;
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) reinterpret_cast<uint4*>(pack.v)[i] = reinterpret_cast<const uint4*>(p)[i];
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) pack.v[i] = p[i];
    }
    return pack;
  }

  __device__ void store(T* p) const {
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) reinterpret_cast<uint4*>(p)[i] = reinterpret_cast<const uint4*>(v)[i];
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) p[i] = v[i];
    }
  }
};

// Eight neighbours as floats, and back. bf16 is taken apart and put together by pairs: an instruction for each, and one for two.
__device__ inline void to_floats(const Pack<float, 8>& pack, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = pack.v[i];
}
__device__ inline void to_floats(const Pack<__nv_bfloat16, 8>& pack, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t pair = reinterpret_cast<const uint32_t*>(pack.v)[i];
    v[2 * i] = __uint_as_float(pair << 16);
    v[2 * i + 1] = __uint_as_float(pair & 0xffff0000u);
  }
}
__device__ inline void from_floats(const float (&v)[8], Pack<float, 8>& pack) {
#pragma unroll
  for (int i = 0; i < 8; ++i) pack.v[i] = v[i];
}
__device__ inline void from_floats(const float (&v)[8], Pack<__nv_bfloat16, 8>& pack) {
#pragma unroll
  for (int i = 0; i < 4; ++i) reinterpret_cast<uint32_t*>(pack.v)[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
}

// Whether every row of a matrix starts at a multiple of sixteen bytes. An absent matrix stops nobody.
inline bool rows_aligned(const pnb_tensor& t) {
  if (!present(t)) return true;
  bool stride = t.shape[0] <= 1 || t.stride[0] * dtype_size(t.dtype) % 16 == 0;
  return stride && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

inline bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Calls body with a value of the type that a dtype of computation stands for.
template <typename Body>
void with_type(int32_t dtype, Body&& body) {
  if (dtype == PNB_DTYPE_F32) body(float{});
  else body(__nv_bfloat16{});
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0 ? 1 : 0); }  // b may be the largest number
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace pnb::cuda
