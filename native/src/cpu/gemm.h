// pnb_gemm on oneDNN, with the epilogues that oneDNN cannot fuse.
#pragma once

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
    return product_.size() + terms_.size() + wide_a_.size() + wide_b_.size() + wide_d_.size() + copied_a_.size() + copied_b_.size();
  }

 private:
  void run_fused(const pnb_gemm_params& p, const Matrix& b);
  void run_in_pieces(const pnb_gemm_params& p, const Matrix& b);
  // t itself where oneDNN's fast kernels read it in place, else a row-major copy.
  pnb_tensor readable(const pnb_tensor& t, Scratch& scratch);
  Matrix widened(const Matrix& source, Scratch& scratch);

  Matmul& matmul_;
  int threads_;
  Scratch product_;  // f32 rows of a product before their epilogue
  Scratch terms_;    // the low-rank terms' right factors, transposed
  Scratch wide_a_, wide_b_, wide_d_;
  Scratch copied_a_, copied_b_;
};

}  // namespace pnb::cpu
