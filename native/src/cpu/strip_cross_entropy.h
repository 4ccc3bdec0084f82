// The head's cross-entropy on AVX-512's bf16 products, without logits that leave the caches.
#pragma once

#include "cpu/matmul.h"
#include "penumbra/loss.h"

namespace pnb::cpu {

// Whether this processor and these operands can be computed so. Takes a weight's description, too.
bool serves_strip_cross_entropy(Matmul& matmul, const pnb_linear_cross_entropy_params& p);

uint64_t strip_cross_entropy_workspace(const pnb_linear_cross_entropy_params& p, int threads);

// Of the first `supervised` of rows and targets, which are valid: returns the sum of their losses and writes their rows of dx.
double strip_cross_entropy(const pnb_linear_cross_entropy_params& p, int64_t supervised, int threads);

}  // namespace pnb::cpu
