// The softmax of rows of logits, where they are: a pass over rows that a product of any kind has written.
#pragma once

#include <cmath>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/reduce.cuh"

namespace pnb::cuda::loss {

constexpr int kThreads = 512;

// A maximum, and the sum of exponentials relative to it.
struct Softmax {
  float top, sum;
};

__device__ inline Softmax shuffle_xor(Softmax v, int mask) {
  return {__shfl_xor_sync(~0u, v.top, mask), __shfl_xor_sync(~0u, v.sum, mask)};
}

__device__ inline Softmax combine(Softmax a, Softmax b) {
  float top = fmaxf(a.top, b.top);
  // A NaN makes fmaxf take the other side; the sums carry it on.
  if (top == -INFINITY) return {top, a.sum + b.sum};
  return {top, a.sum * __expf(a.top - top) + b.sum * __expf(b.top - top)};
}

// One row of logits a block: its loss, and, where kGradient, its gradient in the logits' place. The second read comes from the
// cache: the rows that are under way on all multiprocessors take 13 MB.
template <typename T, bool kGradient>
__global__ void __launch_bounds__(kThreads) softmax_loss(T* logits, int64_t stride, int64_t vocab, const int32_t* rows, int64_t m,
                                                         const int32_t* targets, const float* grad_scale, float* losses) {
  constexpr int kWidth = kVector<T>;
  __shared__ Softmax shared[kWarp];
  T* z = logits + blockIdx.x * stride;
  int64_t row = rows[blockIdx.x];
  if (row < 0 || row >= m) {
    // Padding's input is zero, and so must its gradient be.
    if (threadIdx.x == 0) losses[blockIdx.x] = row < 0 ? 0.0f : NAN;
    if (kGradient) {
      for (int64_t i = threadIdx.x; i < vocab; i += kThreads) z[i] = T(0.0f);
    }
    return;
  }
  int64_t whole = vocab / kWidth * kWidth;
  Softmax found{-INFINITY, 0.0f};
  for (int64_t i = threadIdx.x * kWidth; i < whole; i += kThreads * kWidth) {
    auto pack = Pack<T, kWidth>::load(z + i);
    float values[kWidth];
    float top = found.top;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      values[j] = to_float(pack.v[j]);
      top = fmaxf(top, values[j]);
    }
    float sum = found.sum * __expf(found.top - top);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += __expf(values[j] - top);
    found = {top, sum};
  }
  for (int64_t i = whole + threadIdx.x; i < vocab; i += kThreads) found = combine(found, {to_float(z[i]), 1.0f});
  found = block_combine(found, Softmax{-INFINITY, 0.0f}, shared, [](Softmax a, Softmax b) { return combine(a, b); });
  float lse = found.top + __logf(found.sum);

  int64_t target = targets[blockIdx.x];
  bool known = target >= 0 && target < vocab;
  if (threadIdx.x == 0) losses[blockIdx.x] = known ? lse - to_float(z[target]) : NAN;
  if (!kGradient) return;
  __syncthreads();  // the target's logit has been read
  float scale = *grad_scale;
  for (int64_t i = threadIdx.x * kWidth; i < whole; i += kThreads * kWidth) {
    auto pack = Pack<T, kWidth>::load(z + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      pack.v[j] = from_float<T>(scale * (__expf(to_float(pack.v[j]) - lse) - (i + j == target ? 1.0f : 0.0f)));
    }
    pack.store(z + i);
  }
  for (int64_t i = whole + threadIdx.x; i < vocab; i += kThreads) {
    z[i] = from_float<T>(scale * (__expf(to_float(z[i]) - lse) - (i == target ? 1.0f : 0.0f)));
  }
}

}  // namespace pnb::cuda::loss
