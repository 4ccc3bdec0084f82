#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda {

void attention_forward(const Device& device, const pnb_attention_forward_params& p);
void attention_backward(const Device& device, const pnb_attention_backward_params& p);
uint64_t attention_backward_workspace(const Device& device, const pnb_attention_backward_params& p);

}  // namespace pnb::cuda
