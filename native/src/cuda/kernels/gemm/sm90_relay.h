// The product of sm_90's tensor cores that also takes lists of active blocks. Needed of the operands: bf16, rows (for b: rows
// or columns, which the names below tell apart) contiguous and a multiple of 16 bytes apart, every address a multiple of 16;
// d in bf16; where there is a mask, its rows a multiple of 4 bytes apart and of 32 columns. A weight's rows are gathered along
// n where b is contiguous along k, along k where it is contiguous along n.
#pragma once

#include "cuda/kernels/gemm/product.h"

namespace pnb::cuda::sm90 {

// Those without "dropout" in their names take terms without dropout only.

// b contiguous along k: a weight's forward product.
void relay_forward(const Product& p, int multiprocessors, cudaStream_t stream);
// With Gather::kColumns.
void relay_columns(const Product& p, int multiprocessors, cudaStream_t stream);
void relay_columns_dropout(const Product& p, int multiprocessors, cudaStream_t stream);

// b contiguous along n: a weight's backward product.
void relay_backward(const Product& p, int multiprocessors, cudaStream_t stream);
// With Gather::kSteps.
void relay_steps(const Product& p, int multiprocessors, cudaStream_t stream);
void relay_steps_dropout(const Product& p, int multiprocessors, cudaStream_t stream);

}  // namespace pnb::cuda::sm90
