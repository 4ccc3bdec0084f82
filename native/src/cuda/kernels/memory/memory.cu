#include "cuda/kernels/memory/memory.h"

namespace pnb::cuda {

void fill(const Device&, const pnb_fill_params&) { fail(PNB_ERROR_UNSUPPORTED, "fill: not computed on CUDA"); }
void convert(const Device&, const pnb_convert_params&) { fail(PNB_ERROR_UNSUPPORTED, "convert: not computed on CUDA"); }

}  // namespace pnb::cuda
