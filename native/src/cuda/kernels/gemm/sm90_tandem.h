// The product of sm_90's tensor cores that takes the least energy. Needed of the operands: what sm90_relay.h says; terms without
// dropout only.
#pragma once

#include "cuda/kernels/gemm/product.h"

namespace pnb::cuda::sm90 {

// b contiguous along k: a weight's forward product.
void tandem_forward(const Product& p, int multiprocessors, cudaStream_t stream);
// With Gather::kColumns.
void tandem_columns(const Product& p, int multiprocessors, cudaStream_t stream);

// b contiguous along n: a weight's backward product.
void tandem_backward(const Product& p, int multiprocessors, cudaStream_t stream);
// With Gather::kSteps.
void tandem_steps(const Product& p, int multiprocessors, cudaStream_t stream);

}  // namespace pnb::cuda::sm90
