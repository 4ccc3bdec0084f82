// Attention for any head size, dtype and alignment: no tensor cores, one block a row. Used where attention is not worth
// more (float32, a few query rows before a long cache) or where the fast kernels do not apply.
#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda::attention {

void plain_forward(const pnb_attention_forward_params& p);

// f32 [heads, tokens].
inline uint64_t plain_backward_workspace(const pnb_attention_backward_params& p) {
  return static_cast<uint64_t>(p.q.shape[0] * p.q.shape[1]) * sizeof(float);
}

void plain_backward(const pnb_attention_backward_params& p);

}  // namespace pnb::cuda::attention
