// One instantiation a file, so that a build spreads over all cores.
#include "cuda/kernels/gemm/sm90_relay.cuh"

namespace pnb::cuda::sm90 {

void relay_steps_dropout(const Product& p, int multiprocessors, cudaStream_t stream) {
  run_relay<false, Gather::kSteps, true>(p, multiprocessors, stream);
}

}  // namespace pnb::cuda::sm90
