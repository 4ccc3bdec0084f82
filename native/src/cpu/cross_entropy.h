// The language-model head with its cross-entropy, a few hundred supervised rows at a time.
#pragma once

#include "cpu/gemm.h"
#include "penumbra/loss.h"

namespace pnb::cpu {

void linear_cross_entropy(Matmul& matmul, Gemm& gemm, const pnb_linear_cross_entropy_params& p, int threads);
uint64_t linear_cross_entropy_workspace(Matmul& matmul, const pnb_linear_cross_entropy_params& p, int threads);

}  // namespace pnb::cpu
