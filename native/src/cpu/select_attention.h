// Which blocks of keys are kept, head by head and sample by sample, and the lists that kernels read.
#pragma once

#include "cpu/scratch.h"
#include "penumbra/attention.h"

namespace pnb::cpu {

void select_attention(const pnb_select_attention_params& p, int threads, Scratch& scratch);

}  // namespace pnb::cpu
