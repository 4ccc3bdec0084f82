// The end of a product where a thread holds eight neighbouring columns of a row, that is, one byte of the mask.
#pragma once

#include <cuda_bf16.h>

#include "cuda/kernels/gemm/product.h"

namespace pnb::cuda {

__device__ inline float widened(float x) { return x; }
__device__ inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float value, float* d) { *d = value; }
__device__ inline void narrow(float value, __nv_bfloat16* d) { *d = __float2bfloat16_rn(value); }

__device__ inline void add_low_rank(const LowRankTerm& term, int row, int column, int count, float (&values)[8]) {
  if (column + count <= term.column || column >= term.column + term.columns) return;
  float sums[8] = {};
  const float* h = term.h + row * term.h_stride;
  for (int r = 0; r < term.rank; ++r) {
    float factor = h[r];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      int64_t j = column + i - term.column;
      if (i < count && j >= 0 && j < term.columns) sums[i] += factor * term.b[j * term.b_column_stride + r * term.b_rank_stride];
    }
  }
  if (term.dropout.active()) {
    DropoutMask mask(term.dropout);
    int64_t first = static_cast<int64_t>(row) * term.columns + column - term.column;
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = mask(sums[i], static_cast<uint64_t>(first + i));
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] += term.scale * sums[i];
}

// Writes columns [column, column + 8) of a row, as far as the product has them; column is a multiple of 8. Terms, bias and
// a mask that is not compact are those of columns [origin, origin + 8).
template <typename D>
__device__ void finish_row(const Product& p, int row, int column, int origin, float (&values)[8]) {
  if (row >= p.m || column >= p.n) return;
  const Epilogue& e = p.epilogue;
  int count = min(8, p.n - column);
  for (int t = 0; t < e.term_count; ++t) add_low_rank(e.terms[t], row, origin, count, values);
  uint8_t* mask = e.mask == nullptr ? nullptr : e.mask + row * e.mask_stride + (e.mask_compact ? column : origin) / 8;
  unsigned bits = e.kind == PNB_EPILOGUE_DRELU ? *mask : 0u;
  const D* residual = p.residual.data == nullptr ? nullptr
                                                 : static_cast<const D*>(p.residual.data) + row * p.residual.row_stride + column;
  D* d = static_cast<D*>(p.d.data) + row * p.d.row_stride + column;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= count) continue;
    float value = values[i];
    if (e.bias != nullptr) value += e.bias[origin + i];
    if (e.kind == PNB_EPILOGUE_RELU) {
      bits |= static_cast<unsigned>(value > 0.0f) << i;
      value = value < 0.0f ? 0.0f : value;  // NaN stays
    } else if (e.kind == PNB_EPILOGUE_DRELU) {
      value = (bits >> i) & 1 ? value : 0.0f;
    }
    if (residual != nullptr) value += widened(residual[i]);
    narrow(value, d + i);
  }
  if (e.kind == PNB_EPILOGUE_RELU && mask != nullptr) *mask = static_cast<uint8_t>(bits);
}

}  // namespace pnb::cuda
