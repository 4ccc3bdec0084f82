// The two streaming passes that low-rank adaptation is made of.
#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda::lora {

// h[m, r] = scale * dropout(x)[m, columns] * factor[r, columns]^T; factor and h with any strides, x's rows contiguous.
void project(const pnb_tensor& x, const pnb_tensor& factor, const pnb_dropout& dropout, float scale, const pnb_tensor& h,
             cudaStream_t stream);

// d[r, columns] += scale * left[m, r]^T * dropout(x)[m, columns]; left and d with any strides, x's rows contiguous.
struct Accumulation {
  pnb_tensor x, left, d;
  pnb_dropout dropout;
  float scale;
};

// Two of them over the same m and r, in one launch.
void accumulate(const Accumulation (&sums)[2], cudaStream_t stream);

// Both passes for few ranks over rows of whole 16-byte vectors, where they run at the memory's pace.
constexpr int kSmallRank = 8;
bool small_rank_projects(const pnb_tensor& x, int64_t rank);
void project_small_rank(const pnb_tensor& x, const pnb_tensor& factor, const pnb_dropout& dropout, float scale, const pnb_tensor& h,
                        cudaStream_t stream);
bool small_rank_accumulates(const Accumulation (&sums)[2]);
void accumulate_small_rank(const Accumulation (&sums)[2], cudaStream_t stream);

}  // namespace pnb::cuda::lora
