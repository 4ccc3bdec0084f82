#include "cuda/kernels/lora/lora.h"

namespace pnb::cuda {

void lora_project(const Device&, const pnb_lora_project_params&) { fail(PNB_ERROR_UNSUPPORTED, "lora_project: not computed on CUDA"); }
void lora_gradients(const Device&, const pnb_lora_gradients_params&) { fail(PNB_ERROR_UNSUPPORTED, "lora_gradients: not computed on CUDA"); }
uint64_t lora_gradients_workspace(const Device&, const pnb_lora_gradients_params&) { fail(PNB_ERROR_UNSUPPORTED, "lora_gradients_workspace: not computed on CUDA"); }

}  // namespace pnb::cuda
