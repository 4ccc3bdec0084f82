// One instantiation a file, so that a build spreads over all cores.
#include "cuda/kernels/gemm/sm90_tile.cuh"

namespace pnb::cuda::sm90 {

void backward_wide_f32(const Product& p, int multiprocessors, cudaStream_t stream) {
  TileGemm<Contiguous::kAlongN, float, CooperativeRanges>::run(p, multiprocessors, stream);
}

}  // namespace pnb::cuda::sm90
