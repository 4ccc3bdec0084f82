#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda {

void embedding(const Device& device, const pnb_embedding_params& p);

}  // namespace pnb::cuda
