#include "cuda/kernels/attention/attention.h"

namespace pnb::cuda {

void attention_forward(const Device&, const pnb_attention_forward_params&) { fail(PNB_ERROR_UNSUPPORTED, "attention_forward: not computed on CUDA"); }
void attention_backward(const Device&, const pnb_attention_backward_params&) { fail(PNB_ERROR_UNSUPPORTED, "attention_backward: not computed on CUDA"); }
uint64_t attention_backward_workspace(const Device&, const pnb_attention_backward_params&) { fail(PNB_ERROR_UNSUPPORTED, "attention_backward_workspace: not computed on CUDA"); }

}  // namespace pnb::cuda
