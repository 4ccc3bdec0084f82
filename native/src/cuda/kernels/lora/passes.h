// The passes that low-rank adaptation is made of.
#pragma once

#include "cuda/kernels/columns.cuh"
#include "cuda/runtime/device.h"

namespace pnb::cuda::lora {

// h[m, r] = scale * dropout(x)[m, columns] * factor[r, width]^T; factor and h with any strides, x's rows contiguous. Columns of
// x are all `width` of them, or compact.
struct Projection {
  pnb_tensor x, factor, h;
  pnb_block_list blocks;
  pnb_dropout dropout;
  float scale;
};

void project(const Projection& p, cudaStream_t stream);

// d[r, width] += scale * left[m, r]^T * dropout(norm(x))[m, columns], or of x itself where there is no norm; left and d with any
// strides, x's rows contiguous.
struct Accumulation {
  pnb_tensor x, left, d;
  pnb_block_list blocks;
  pnb_dropout dropout;
  pnb_layer_norm norm;
  float scale;
};

// Two of them over the same m and r, in one launch where neither has lists.
void accumulate(const Accumulation (&sums)[2], cudaStream_t stream);

// The same for bf16 rows of whole 16-byte vectors and few ranks, at the memory's pace: every row is read once for all adapters
// of a chain.
bool streams(const pnb_lora_project_params& p);
void stream_project(const pnb_lora_project_params& p);
bool streams(const pnb_lora_gradients_params& p);
uint64_t stream_gradients_workspace(const Device& device, const pnb_lora_gradients_params& p);
void stream_gradients(const Device& device, const pnb_lora_gradients_params& p);

// Ranks that the streaming kernels take: the tensor cores' sixteen rows.
constexpr int kStreamRanks = 16;
// Whether they can read such rows.
bool streams(const pnb_tensor& x);

}  // namespace pnb::cuda::lora
