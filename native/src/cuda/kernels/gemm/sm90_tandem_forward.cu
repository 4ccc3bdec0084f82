// One instantiation a file, so that a build spreads over all cores.
#include "cuda/kernels/gemm/sm90_tandem.cuh"

namespace pnb::cuda::sm90 {

void tandem_forward(const Product& p, int multiprocessors, cudaStream_t stream) {
  run_tandem<true, Gather::kNone>(p, multiprocessors, stream);
}

}  // namespace pnb::cuda::sm90
