#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda {

void lora_project(const Device& device, const pnb_lora_project_params& p);
void lora_gradients(const Device& device, const pnb_lora_gradients_params& p);
uint64_t lora_gradients_workspace(const Device& device, const pnb_lora_gradients_params& p);

}  // namespace pnb::cuda
