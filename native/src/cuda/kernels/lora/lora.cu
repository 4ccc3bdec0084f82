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
  for (const auto* one = &p; one != nullptr; one = one->next) {
    lora::project(one->x, one->a, one->dropout, 1.0f, one->h, stream_of(p.stream));
  }
}

void lora_gradients(const Device&, const pnb_lora_gradients_params& p) {
  cudaStream_t stream = stream_of(p.stream);
  for (const auto* one = &p; one != nullptr; one = one->next) {
    lora::project(one->dy, transposed(one->b), pnb_dropout{}, one->scaling, one->dh, stream);
    lora::accumulate({{one->dy, one->h, transposed(one->db), pnb_dropout{}, one->scaling}, {one->x, one->dh, one->da, one->dropout, 1.0f}}, stream);
  }
}

uint64_t lora_gradients_workspace(const Device&, const pnb_lora_gradients_params&) { return 0; }

}  // namespace pnb::cuda
