// pnb_gemm on oneDNN, with the epilogues that oneDNN cannot fuse.
#pragma once

#include <span>

#include "cpu/block_lists.h"
#include "cpu/matmul.h"
#include "penumbra/gemm.h"

namespace pnb::cpu {

class Gemm {
 public:
  Gemm(Matmul& matmul, int threads) : matmul_(matmul), threads_(threads) {}

  void run(const pnb_gemm_params& p);

  // d = a * W or a * W^T, all plain or packed; bf16 operands are widened where the processor has no bf16 product.
  void product(const Matrix& a, const Matrix& b, const Matrix& d, const Fusion& fusion = {});

  size_t memory() const {
    return product_.size() + terms_.size() + wide_a_.size() + wide_b_.size() + wide_d_.size() + copied_a_.size() +
           copied_b_.size() + listed_.size() + bias_.size() + bits_.size();
  }

 private:
  // Rows [first, first + rows) of a product: all rows, or some that share a list.
  struct Part {
    int64_t first, rows;
    int64_t inner, columns;      // columns of a, and of d, that are read and written
    std::span<const Run> runs;   // what those of d stand for
    Matrix b;                    // not read where inner is 0
    bool split;                  // whether columns of d come in so many widths that a product is made of two
    bool compact_mask;           // whether its bits lie as columns of d do
  };

  // The low-rank terms' right factors as [r, n_t] times their scale, so that the sums run along contiguous columns.
  struct Factors {
    const float* of[PNB_MAX_LOW_RANK] = {};
    int64_t widest = 0;
  };

  void run_fused(const pnb_gemm_params& p, const Part& part);
  void run_in_pieces(const pnb_gemm_params& p, const Part& part, const Factors& factors);
  Factors factors(const pnb_gemm_params& p);
  void finish_row(const pnb_gemm_params& p, const Part& part, const Factors& factors, int64_t i, float* row, float* term_row,
                  uint8_t* bits) const;
  void product(const Part& part, const Matrix& a, const Matrix& d, const Fusion& fusion = {});
  const float* listed_bias(const pnb_gemm_params& p, const Part& part);
  // t itself where oneDNN's fast kernels read it in place, else a row-major copy.
  pnb_tensor readable(const pnb_tensor& t, Scratch& scratch);
  Matrix widened(const Matrix& source, Scratch& scratch);

  Matmul& matmul_;
  int threads_;
  Scratch product_;  // f32 rows of a product before their epilogue
  Scratch terms_;    // the low-rank terms' right factors, transposed
  Scratch listed_;   // the listed blocks of a frozen weight
  Scratch bias_;     // and of a bias
  Scratch bits_;     // and of a row of a mask that is not compact, for each thread
  Scratch wide_a_, wide_b_, wide_d_;
  Scratch copied_a_, copied_b_;
};

}  // namespace pnb::cpu
