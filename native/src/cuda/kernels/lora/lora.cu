#include "cuda/kernels/lora/lora.h"

#include <utility>

#include "cuda/kernels/lora/passes.h"

namespace pnb::cuda {

namespace {

pnb_tensor transposed(pnb_tensor t) {
  std::swap(t.shape[0], t.shape[1]);
  std::swap(t.stride[0], t.stride[1]);
  return t;
}

}  // namespace

void lora_project(const Device&, const pnb_lora_project_params& p) {
  if (lora::streams(p)) return lora::stream_project(p);
  for (const auto* one = &p; one != nullptr; one = one->next) {
    lora::project({one->x, one->a, one->h, one->x_blocks, one->dropout, 1.0f}, stream_of(p.stream));
  }
}

void lora_gradients(const Device& device, const pnb_lora_gradients_params& p) {
  if (lora::streams(p)) return lora::stream_gradients(device, p);
  cudaStream_t stream = stream_of(p.stream);
  for (const auto* one = &p; one != nullptr; one = one->next) {
    lora::project({one->dy, transposed(one->b), one->dh, one->dy_blocks, pnb_dropout{}, one->scaling}, stream);
    lora::accumulate({{one->dy, one->h, transposed(one->db), one->dy_blocks, pnb_dropout{}, pnb_layer_norm{}, one->scaling},
                      {one->x, one->dh, one->da, one->x_blocks, one->dropout, one->norm, 1.0f}},
                     stream);
  }
}

uint64_t lora_gradients_workspace(const Device& device, const pnb_lora_gradients_params& p) {
  return lora::streams(p) ? lora::stream_gradients_workspace(device, p) : 0;
}

}  // namespace pnb::cuda
