#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda {

void adamw(const Device& device, const pnb_adamw_params& p);
uint64_t adamw_workspace(const Device& device, const pnb_adamw_params& p);

}  // namespace pnb::cuda
