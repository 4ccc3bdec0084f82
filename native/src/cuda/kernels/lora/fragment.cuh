// The tensor cores' 16 x 8 x 16 product of bf16, and operands for it made of floats without losing their precision.
//
// In a warp, lane 4 g + t holds: of a [16, 16], rows g and g + 8; of b [16, 8], column g; of c [16, 8], rows g and g + 8 in
// columns 2 t and 2 t + 1. Of the 16 products that are summed it holds four, and which four is free as long as a and b agree:
// the kernels here give each lane neighbours in memory.
#pragma once

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/philox.cuh"
#include "penumbra/norm.h"

namespace pnb::cuda::lora {

// c += a * b; a = {row g products 0 1, row g + 8 products 0 1, row g products 2 3, row g + 8 products 2 3}.
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A float is the sum of three bf16, to its last bit; a bf16 is one. A product of two sums leaves out what is below the
// precision of f32: part i of one times part j of the other for i + j > 2.
constexpr int kFloatParts = 3;
template <typename T>
constexpr int kParts = sizeof(T) == 4 ? kFloatParts : 1;

// The parts of a pair of floats; low is the first of the two in memory order.
__device__ inline void split(float low, float high, uint32_t (&parts)[kFloatParts]) {
#pragma unroll
  for (int i = 0; i < kFloatParts; ++i) {
    parts[i] = pack_bf16(low, high);
    low -= __uint_as_float(parts[i] << 16);
    high -= __uint_as_float(parts[i] & 0xffff0000u);
  }
}

// A pair out of two elements' own parts.
__device__ inline void split(__nv_bfloat16 low, __nv_bfloat16 high, uint32_t (&parts)[1]) {
  __nv_bfloat162 pair(low, high);
  parts[0] = *reinterpret_cast<uint32_t*>(&pair);
}

// Eight neighbours of a row.
constexpr int kRun = 8;

// Elements [column, column + 8) of a row with so many columns; zero past its end. kAligned: the rows start at multiples of 16
// bytes and columns is a multiple of 8.
template <bool kAligned, typename T>
__device__ Pack<T, kRun> load_run(const T* row, int64_t column, int64_t columns) {
  Pack<T, kRun> run;
  if constexpr (kAligned) {
    if (column < columns) return Pack<T, kRun>::load(row + column);
#pragma unroll
    for (T& v : run.v) v = T(0.0f);
  } else {
#pragma unroll
    for (int i = 0; i < kRun; ++i) run.v[i] = column + i < columns ? row[column + i] : T(0.0f);
  }
  return run;
}

// The layer norm between x and adapters, as kernels take it.
struct Norm {
  const float* mean = nullptr;  // NULL: no norm
  const float* rstd = nullptr;
  const float* gamma = nullptr;
  const float* beta = nullptr;

  Norm() = default;
  explicit Norm(const pnb_layer_norm& norm)
      : mean(static_cast<const float*>(norm.mean.data)), rstd(static_cast<const float*>(norm.rstd.data)),
        gamma(static_cast<const float*>(norm.gamma.data)), beta(static_cast<const float*>(norm.beta.data)) {}

  __host__ __device__ bool present() const { return mean != nullptr; }
  bool pairs_aligned() const { return reinterpret_cast<uintptr_t>(gamma) % 8 == 0 && reinterpret_cast<uintptr_t>(beta) % 8 == 0; }

  // Normalises eight neighbours of a row, whose gammas and betas these are.
  template <typename T>
  __device__ void apply(Pack<T, kRun>& run, int64_t row, const float (&gammas)[kRun], const float (&betas)[kRun]) const {
    float m = mean[row], s = rstd[row];
#pragma unroll
    for (int i = 0; i < kRun; ++i) run.v[i] = from_float<T>((to_float(run.v[i]) - m) * s * gammas[i] + betas[i]);
  }
};

// Zeroes what dropout drops of eight neighbours, the first of which is element `first` of the stream. What stays is not
// scaled: the whole sum is, at its end.
template <typename T>
__device__ void drop(Pack<T, kRun>& run, const DropoutMask& mask, uint64_t first) {
  if (first % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kRun; i += 4) {
      uint4 words = mask.words(first / 4 + i / 4);
      if (mask.dropped(words.x)) run.v[i] = T(0.0f);
      if (mask.dropped(words.y)) run.v[i + 1] = T(0.0f);
      if (mask.dropped(words.z)) run.v[i + 2] = T(0.0f);
      if (mask.dropped(words.w)) run.v[i + 3] = T(0.0f);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (mask.dropped(mask.word(first + i))) run.v[i] = T(0.0f);
    }
  }
}

}  // namespace pnb::cuda::lora
