// One instantiation a file, so that a build spreads over all cores.
#include "cuda/kernels/gemm/sm90_tile.cuh"

namespace pnb::cuda::sm90 {

void forward_exponentials(const Product& p, int multiprocessors, cudaStream_t stream) {
  TileGemm<Contiguous::kAlongK, cutlass::bfloat16_t, PingPong, true>::run(p, multiprocessors, stream);
}

}  // namespace pnb::cuda::sm90
