#pragma once

#include "cuda/kernels/gemm/gemm.h"
#include "cuda/runtime/device.h"

namespace pnb::cuda {

// The head's products run on gemm.
void linear_cross_entropy(const Device& device, Gemm& gemm, const pnb_linear_cross_entropy_params& p);
uint64_t linear_cross_entropy_workspace(const Device& device, Gemm& gemm, const pnb_linear_cross_entropy_params& p);

}  // namespace pnb::cuda
