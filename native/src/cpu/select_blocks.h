// Lists of blocks from their scores.
#pragma once

#include "penumbra/sparse.h"

namespace pnb::cpu {

void select_blocks(const pnb_select_blocks_params& p);

}  // namespace pnb::cpu
