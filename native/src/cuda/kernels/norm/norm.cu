#include "cuda/kernels/norm/norm.h"

namespace pnb::cuda {

void layer_norm_forward(const Device&, const pnb_layer_norm_forward_params&) { fail(PNB_ERROR_UNSUPPORTED, "layer_norm_forward: not computed on CUDA"); }
void layer_norm_backward(const Device&, const pnb_layer_norm_backward_params&) { fail(PNB_ERROR_UNSUPPORTED, "layer_norm_backward: not computed on CUDA"); }

}  // namespace pnb::cuda
