// The streaming passes of LoRA: x A^T, and the gradients of A and B.
#pragma once

#include "cpu/scratch.h"
#include "penumbra/lora.h"

namespace pnb::cpu {

void lora_project(const pnb_lora_project_params& p, int threads, Scratch& scratch);
void lora_gradients(const pnb_lora_gradients_params& p, int threads);
uint64_t lora_gradients_workspace(const pnb_lora_gradients_params& p, int threads);

}  // namespace pnb::cpu
