// The streaming passes of low-rank adaptation.
#pragma once

#include "penumbra/lora.h"

namespace pnb::cpu {

void lora_project(const pnb_lora_project_params& p, int threads);
void lora_gradients(const pnb_lora_gradients_params& p, int threads);
inline uint64_t lora_gradients_workspace(const pnb_lora_gradients_params&, int) { return 0; }

}  // namespace pnb::cpu
