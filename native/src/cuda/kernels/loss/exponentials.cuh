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

// to[i] = from[rows[i]], zero where a row is padding; the shifts of those rows' exponents; and left_out [parts, rows], the rows'
// targets counted from the first of each part's columns of the vocabulary. A target outside of the vocabulary makes its row's
// shift, and what follows from it, NaN.
static __global__ void gather_with_shifts(const __nv_bfloat16* from, int64_t from_stride, const int32_t* rows, int64_t m,
                                          const int32_t* targets, const __nv_bfloat16* weight, int64_t weight_stride,
                                          int64_t vocab, int64_t columns, int64_t parts, __nv_bfloat16* to, int64_t h,
                                          float* shifts, int32_t* left_out) {
  __shared__ float shared[kWarp];
  int64_t row = rows[blockIdx.x], target = targets[blockIdx.x];
  bool taken = row >= 0 && row < m, known = taken && target >= 0 && target < vocab;
  for (int64_t i = threadIdx.x; i < parts; i += kRowThreads) {
    left_out[i * gridDim.x + blockIdx.x] = known ? static_cast<int32_t>(target - i * columns) : -1;
  }
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

// The sums of a chunk's exponentials over tiles of columns: [rows, tiles of a part] for each part of the vocabulary.
struct Sums {
  const float* data;
  int tiles, tiles_of_part;  // all; of a part but for the last

  __device__ float get(int64_t row, int64_t rows, int tile) const {
    int first = tile / tiles_of_part * tiles_of_part;
    return data[first * rows + row * min(tiles_of_part, tiles - first) + tile - first];
  }
};

// A row's loss out of the sums of its exponentials, and its gradient out of the sum of weights that these made, `from`
// [ranges, rows, h]; no gradient where dx is absent.
template <typename From>
__global__ void finish_rows(Sums sums, const int32_t* rows, int64_t m, const int32_t* targets, const __nv_bfloat16* weight,
                            int64_t weight_stride, int64_t vocab, const float* grad_scale, const From* from, int ranges,
                            __nv_bfloat16* dx, int64_t dx_stride, int64_t h, float* losses) {
  __shared__ float shared[kWarp];
  int64_t row = rows[blockIdx.x], target = targets[blockIdx.x];
  if (row < 0 || row >= m) {
    if (threadIdx.x == 0) losses[blockIdx.x] = row < 0 ? 0.0f : NAN;
    return;
  }
  bool known = target >= 0 && target < vocab;
  float others = 0.0f;
  for (int i = threadIdx.x; i < sums.tiles; i += kRowThreads) others += sums.get(blockIdx.x, gridDim.x, i);
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
    float d[8] = {}, w[8] = {};
    for (int range = 0; range < ranges; ++range) {
      float of_range[8];
      to_floats(Pack<From, 8>::load(from + (static_cast<int64_t>(range) * gridDim.x + blockIdx.x) * h + i), of_range);
#pragma unroll
      for (int j = 0; j < 8; ++j) d[j] += of_range[j];
    }
    if (known) to_floats(Row::load(weight + target * weight_stride + i), w);
#pragma unroll
    for (int j = 0; j < 8; ++j) d[j] = scale * d[j] - of_target * w[j];
    Row out;
    from_floats(d, out);
    out.store(dx + row * dx_stride + i);
  }
}

}  // namespace pnb::cuda::loss
