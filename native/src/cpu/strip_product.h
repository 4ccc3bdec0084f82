// bf16 products with a packed weight, whole or of listed neurons, and all that follows them while the sums are in registers.
#pragma once

#include <span>

#include "cpu/block_lists.h"
#include "cpu/weight.h"
#include "penumbra/gemm.h"

namespace pnb::cpu {

// Rows [first, first + rows) of a product of pnb_gemm, d = epilogue(a * B + terms + bias) + residual.
struct StripProduct {
  const pnb_gemm_params& p;
  const Matrix& b;                // a packed operand of p.weight in tiles
  int64_t first, rows;
  std::span<const Run> inner;     // columns of a, and the rows of b that they meet
  std::span<const Run> columns;   // columns of d, and the columns of b that they are
  bool compact_mask;              // whether the mask's bits lie as columns of d do, else as those of b
  const float* const* factors;    // each term's right factor as [r, n_t] times its scale

  // Whether this processor, these operands and this epilogue can be computed so.
  static bool serves(const pnb_gemm_params& p, const Matrix& b);

  void run(int threads) const;
};

}  // namespace pnb::cpu
