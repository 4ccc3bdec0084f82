// The products that sm_90's tensor cores compute out of bulk copies. Needed of the operands: bf16, rows (for b: rows or
// columns, which the names below tell apart) contiguous and a multiple of 16 bytes apart, every address a multiple of 16.
#pragma once

#include "cuda/kernels/gemm/product.h"

namespace pnb::cuda::sm90 {

using TileProduct = void (*)(const Product& p, int multiprocessors, cudaStream_t stream);

// b contiguous along k: a weight's forward product. d in bf16 or f32.
void forward_bf16(const Product& p, int multiprocessors, cudaStream_t stream);
void forward_exponentials(const Product& p, int multiprocessors, cudaStream_t stream);  // the only one that makes them
void forward_f32(const Product& p, int multiprocessors, cudaStream_t stream);

// b contiguous along n: a weight's backward product.
void backward_bf16(const Product& p, int multiprocessors, cudaStream_t stream);
void backward_f32(const Product& p, int multiprocessors, cudaStream_t stream);
void backward_wide_f32(const Product& p, int multiprocessors, cudaStream_t stream);  // the only one that takes ranges

}  // namespace pnb::cuda::sm90
