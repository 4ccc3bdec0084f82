// Dropout's masks on the device against the CPU's, bit for bit.
#include "cpu/philox.h"
#include "cuda/harness.cuh"
#include "cuda/kernels/philox.cuh"

using namespace test;

namespace {

__global__ void draw(pnb::cuda::DropoutParams params, int64_t first, int64_t count, float* d) {
  pnb::cuda::DropoutMask mask(params);
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    d[i] = mask(1.0f, static_cast<uint64_t>(first + i));
  }
}

void same_mask(float p, uint32_t stream, uint64_t seed, uint64_t offset, int64_t first) {
  int64_t count = 4099;
  uint64_t state[2] = {seed, offset};
  pnb_dropout dropout{p, stream, {state, PNB_DTYPE_U64, 1, {2}, {1}}};
  std::vector<float> expected(count, 1.0f), found(count);
  pnb::cpu::DropoutMask(dropout).apply(expected.data(), first, count);

  void* device_state = nullptr;
  cuda(cudaMalloc(&device_state, sizeof state));
  cuda(cudaMemcpy(device_state, state, sizeof state, cudaMemcpyHostToDevice));
  dropout.state.data = device_state;
  Tensor d(PNB_DTYPE_F32, {count}, 0.0);
  draw<<<4, 256>>>(pnb::cuda::DropoutParams(dropout), first, count, static_cast<float*>(d.t.data));
  cuda(cudaMemcpy(found.data(), d.t.data, count * sizeof(float), cudaMemcpyDeviceToHost));
  cudaFree(device_state);
  expect(found == expected, "dropout p " + std::to_string(p) + " stream " + std::to_string(stream) + " from " +
                                std::to_string(first) + ": the mask differs from the CPU's");
}

}  // namespace

int main() {
  backend();
  same_mask(0.1f, 0, 0, 0, 0);
  same_mask(0.25f, 5, 99, 3, 1);
  same_mask(0.999f, 0xffffffffu, ~0ull, ~0ull, (1ll << 34) - 7);
  return finish("philox");
}
