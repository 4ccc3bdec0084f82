// AdamW with clipping.
#pragma once

#include "penumbra/optimizer.h"

namespace pnb::cpu {

void adamw(const pnb_adamw_params& p, int threads);
uint64_t adamw_workspace(const pnb_adamw_params& p, int threads);

}  // namespace pnb::cpu
