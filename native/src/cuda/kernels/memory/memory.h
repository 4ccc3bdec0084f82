#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda {

void fill(const Device& device, const pnb_fill_params& p);
void convert(const Device& device, const pnb_convert_params& p);

}  // namespace pnb::cuda
