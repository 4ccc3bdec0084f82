#include "cuda/kernels/loss/loss.h"

namespace pnb::cuda {

void linear_cross_entropy(const Device&, Gemm&, const pnb_linear_cross_entropy_params&) { fail(PNB_ERROR_UNSUPPORTED, "linear_cross_entropy: not computed on CUDA"); }
uint64_t linear_cross_entropy_workspace(const Device&, Gemm&, const pnb_linear_cross_entropy_params&) { fail(PNB_ERROR_UNSUPPORTED, "linear_cross_entropy_workspace: not computed on CUDA"); }

}  // namespace pnb::cuda
