#include "cuda/kernels/optimizer/optimizer.h"

namespace pnb::cuda {

void adamw(const Device&, const pnb_adamw_params&) { fail(PNB_ERROR_UNSUPPORTED, "adamw: not computed on CUDA"); }
uint64_t adamw_workspace(const Device&, const pnb_adamw_params&) { fail(PNB_ERROR_UNSUPPORTED, "adamw_workspace: not computed on CUDA"); }

}  // namespace pnb::cuda
