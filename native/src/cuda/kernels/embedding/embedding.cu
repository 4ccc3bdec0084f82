#include "cuda/kernels/embedding/embedding.h"

#include <cmath>

#include "cuda/kernels/elements.cuh"

namespace pnb::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kCount = 8;  // elements a thread adds at a time where rows are aligned: 16 bytes of the narrower types

// Rows to add, one for each row of d: by index, or its own where there are no indices.
struct Term {
  const void* data;  // NULL: no such term
  const int32_t* indices;
  int32_t dtype;
  int32_t offset;  // added to an index
  int64_t rows, stride;
};

struct Args {
  Term terms[3];  // in the order of addition
  void* d;
  int64_t d_stride;
  int h;
};

template <typename T, int kWidth>
__device__ void add(const Term& term, int64_t at, float (&sum)[kWidth]) {
  auto pack = Pack<T, kWidth>::load(static_cast<const T*>(term.data) + at);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) sum[j] += to_float(pack.v[j]);
}

template <typename T, int kWidth>
__global__ void embedding_kernel(Args p) {
  int64_t row = blockIdx.x;
  int64_t sources[3];
  bool outside = false;
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const Term& term = p.terms[k];
    if (term.data == nullptr) continue;
    int64_t index = term.indices == nullptr ? row : static_cast<int64_t>(term.indices[row]) + term.offset;
    outside = outside || index < 0 || index >= term.rows;
    sources[k] = index * term.stride;
  }
  T* d = static_cast<T*>(p.d) + row * p.d_stride;
  for (int at = threadIdx.x * kWidth; at < p.h; at += blockDim.x * kWidth) {
    float sum[kWidth];
#pragma unroll
    for (float& value : sum) value = outside ? NAN : 0.0f;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const Term& term = p.terms[k];
      if (term.data == nullptr || outside) continue;
      if (term.dtype == PNB_DTYPE_F32) add<float>(term, sources[k] + at, sum);
      else if (term.dtype == PNB_DTYPE_BF16) add<__nv_bfloat16>(term, sources[k] + at, sum);
      else add<__half>(term, sources[k] + at, sum);
    }
    Pack<T, kWidth> result;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) result.v[j] = from_float<T>(sum[j]);
    result.store(d + at);
  }
}

Term term_of(const pnb_tensor& rows, const pnb_tensor* indices, int32_t offset) {
  if (!present(rows)) return {};
  return {rows.data, indices ? static_cast<const int32_t*>(indices->data) : nullptr, rows.dtype, offset, rows.shape[0],
          rows.stride[0]};
}

}  // namespace

void embedding(const Device&, const pnb_embedding_params& p) {
  int64_t m = p.d.shape[0];
  int64_t h = p.d.shape[1];
  if (m == 0 || h == 0) return;
  Args args{{term_of(p.table, &p.tokens, 0), term_of(p.position_table, &p.positions, p.position_offset),
             term_of(p.residual, nullptr, 0)},
            p.d.data,
            p.d.stride[0],
            static_cast<int>(h)};
  bool vectors = h % kCount == 0 && rows_aligned(p.table) && rows_aligned(p.position_table) && rows_aligned(p.residual) &&
                 rows_aligned(p.d);
  with_type(p.d.dtype, [&](auto type) {
    using T = decltype(type);
    if (vectors) embedding_kernel<T, kCount><<<m, kThreads, 0, stream_of(p.stream)>>>(args);
    else embedding_kernel<T, 1><<<m, kThreads, 0, stream_of(p.stream)>>>(args);
  });
  check_launch("embedding");
}

}  // namespace pnb::cuda
