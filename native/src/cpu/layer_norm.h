// Layer normalisation, a row at a time in f32.
#pragma once

#include "penumbra/norm.h"

namespace pnb::cpu {

void layer_norm_forward(const pnb_layer_norm_forward_params& p, int threads);
void layer_norm_backward(const pnb_layer_norm_backward_params& p, int threads);

}  // namespace pnb::cpu
