#include "cuda/kernels/gemm/gemm.h"

namespace pnb::cuda {

uint64_t weight_storage(const pnb_weight_params&) { fail(PNB_ERROR_UNSUPPORTED, "weight_storage: not computed on CUDA"); }
std::unique_ptr<pnb_weight> weight_create(const Device&, const pnb_weight_params&) { fail(PNB_ERROR_UNSUPPORTED, "weight_create: not computed on CUDA"); }
void Gemm::run(const pnb_gemm_params&) { fail(PNB_ERROR_UNSUPPORTED, "void Gemm::run(: not computed on CUDA"); }
uint64_t Gemm::workspace(const pnb_gemm_params&) { fail(PNB_ERROR_UNSUPPORTED, "uint64_t Gemm::workspace(: not computed on CUDA"); }

}  // namespace pnb::cuda
