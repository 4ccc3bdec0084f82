// Attention's forward pass on the tensor cores: bf16, head sizes 64, 80 and 128.
#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda::attention {

// Whether the call is one that fast_forward() computes.
bool takes_fast_forward(const Device& device, const pnb_attention_forward_params& p);

void fast_forward(const Device& device, const pnb_attention_forward_params& p);

}  // namespace pnb::cuda::attention
