#include "cuda/kernels/embedding/embedding.h"

namespace pnb::cuda {

void embedding(const Device&, const pnb_embedding_params&) { fail(PNB_ERROR_UNSUPPORTED, "embedding: not computed on CUDA"); }

}  // namespace pnb::cuda
