// Causal attention over packed rows, tile by tile; scores of more than a tile never exist.
#pragma once

#include "cpu/scratch.h"
#include "penumbra/attention.h"

namespace pnb::cpu {

void attention_forward(const pnb_attention_forward_params& p, int threads, Scratch& scratch);
void attention_backward(const pnb_attention_backward_params& p, int threads);
uint64_t attention_backward_workspace(const pnb_attention_backward_params& p, int threads);
void attention_mass(const pnb_attention_mass_params& p, int threads, Scratch& scratch);

}  // namespace pnb::cpu
