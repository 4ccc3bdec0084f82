// Cross-entropy without a pass over logits: what is a row's own comes out of the sums in both products.
//
// The row's gradient is scale * (sum over v of p_v W_v - W_t), t its target, p_v = e_v / (e_t + S), S the sum of all e_v but the
// target's. The head's product leaves, instead of logits, 2^(z_v log2(e) - shift) with 0 in the target's place, and the sums of
// these; the second product takes them back to the rows; and what is left for a pass over rows of x's width is
//
//   dx = scale / (e_t + S) * sum over v of e_v W_v - scale * S / (e_t + S) * W_t.
//
// A shift has to be known before the product is: it makes e_t 2^-kTargetBelow, whatever the logits. What is 2^-34 of the
// target's probability is then 0, and a loss of up to 133 is exact: beyond, powers stop at 2^kMostExponent, and a logit counts as
// that far above the target's only.
#pragma once

#include <cmath>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/gemm/product.h"
#include "cuda/kernels/reduce.cuh"

namespace pnb::cuda::loss {

using Row = Pack<__nv_bfloat16, 8>;

constexpr int kRowThreads = 256;  // of the passes that move rows
constexpr float kTargetBelow = 92.0f;  // binary orders

// to[i] = from[rows[i]], zero where a row is padding, and the shifts of those rows' exponents. A target outside of the vocabulary
// makes its row's shift, and what follows from it, NaN.
static __global__ void gather_with_shifts(const __nv_bfloat16* from, int64_t from_stride, const int32_t* rows, int64_t m,
                                          const int32_t* targets, const __nv_bfloat16* weight, int64_t weight_stride,
                                          int64_t vocab, __nv_bfloat16* to, int64_t h, float* shifts) {
  __shared__ float shared[kWarp];
  int64_t row = rows[blockIdx.x], target = targets[blockIdx.x];
  bool taken = row >= 0 && row < m, known = taken && target >= 0 && target < vocab;
  float logit = 0.0f;
  for (int64_t i = threadIdx.x * 8; i < h; i += kRowThreads * 8) {
    float x[8] = {}, w[8] = {};
    if (taken) to_floats(Row::load(from + row * from_stride + i), x);
    if (known) to_floats(Row::load(weight + target * weight_stride + i), w);
#pragma unroll
    for (int j = 0; j < 8; ++j) logit += x[j] * w[j];
    Row out;
    from_floats(x, out);
    out.store(to + blockIdx.x * h + i);
  }
  logit = block_sum(logit, shared);
  if (threadIdx.x == 0) shifts[blockIdx.x] = taken && !known ? NAN : logit * 1.4426950408889634f + kTargetBelow;
}

// A row's loss out of the sums of its exponentials, and its gradient out of the sum of weights that these made; no gradient
// where dx is absent.
static __global__ void finish_rows(const float* sums, int tiles, const int32_t* rows, int64_t m, const int32_t* targets,
                                   const __nv_bfloat16* weight, int64_t weight_stride, int64_t vocab, const float* grad_scale,
                                   const __nv_bfloat16* from, __nv_bfloat16* dx, int64_t dx_stride, int64_t h, float* losses) {
  __shared__ float shared[kWarp];
  int64_t row = rows[blockIdx.x], target = targets[blockIdx.x];
  if (row < 0 || row >= m) {
    if (threadIdx.x == 0) losses[blockIdx.x] = row < 0 ? 0.0f : NAN;
    return;
  }
  bool known = target >= 0 && target < vocab;
  float others = 0.0f;
  for (int i = threadIdx.x; i < tiles; i += kRowThreads) others += sums[static_cast<int64_t>(blockIdx.x) * tiles + i];
  others = block_sum(others, shared);
  float all = others + exp2f(-kTargetBelow);
  if (threadIdx.x == 0) {
    // Where it is small, what the target is short of certainty by.
    losses[blockIdx.x] = others < 1.0f ? log1pf(others * exp2f(kTargetBelow)) : logf(all) + kTargetBelow * 0.6931471805599453f;
    if (!known) losses[blockIdx.x] = NAN;
  }
  if (dx == nullptr) return;
  float scale = *grad_scale / all, of_target = *grad_scale * (others / all);
  for (int64_t i = threadIdx.x * 8; i < h; i += kRowThreads * 8) {
    float d[8], w[8] = {};
    to_floats(Row::load(from + blockIdx.x * h + i), d);
    if (known) to_floats(Row::load(weight + target * weight_stride + i), w);
#pragma unroll
    for (int j = 0; j < 8; ++j) d[j] = scale * d[j] - of_target * w[j];
    Row out;
    from_floats(d, out);
    out.store(dx + row * dx_stride + i);
  }
}

}  // namespace pnb::cuda::loss
