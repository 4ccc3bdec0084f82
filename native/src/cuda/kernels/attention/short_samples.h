// Attention where no sample has more than 128 tokens: bf16, head size 64. A warpgroup of its own for each sample of a head,
// several on a multiprocessor, holds all that there is of it: nothing is recomputed, and the backward pass is one kernel.
#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda::attention {

// Whether a call that the kernels for samples of any length compute is one of these.
bool has_short_samples(const pnb_attention_forward_params& p);
bool has_short_samples(const pnb_attention_backward_params& p);

void short_forward(const pnb_attention_forward_params& p);
void short_backward(const pnb_attention_backward_params& p);

}  // namespace pnb::cuda::attention
