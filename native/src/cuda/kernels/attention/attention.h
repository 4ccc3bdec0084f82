#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda {

void attention_forward(const Device& device, const pnb_attention_forward_params& p);
void attention_backward(const Device& device, const pnb_attention_backward_params& p);
uint64_t attention_backward_workspace(const Device& device, const pnb_attention_backward_params& p);

void attention_mass(const pnb_attention_mass_params& p);
void predict_attention(const Device& device, const pnb_predict_attention_params& p);
uint64_t predict_attention_workspace(const Device& device, const pnb_predict_attention_params& p);
void select_attention(const Device& device, const pnb_select_attention_params& p);
uint64_t select_attention_workspace(const pnb_select_attention_params& p);

}  // namespace pnb::cuda
