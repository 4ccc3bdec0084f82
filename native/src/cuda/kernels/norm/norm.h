#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda {

void layer_norm_forward(const Device& device, const pnb_layer_norm_forward_params& p);
void layer_norm_backward(const Device& device, const pnb_layer_norm_backward_params& p);

}  // namespace pnb::cuda
