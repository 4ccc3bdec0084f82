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
  lora::project(p.x, p.a, p.dropout, 1.0f, p.h, stream_of(p.stream));
}

void lora_gradients(const Device&, const pnb_lora_gradients_params& p) {
  cudaStream_t stream = stream_of(p.stream);
  lora::project(p.dy, transposed(p.b), pnb_dropout{}, p.scaling, p.dh, stream);
  lora::accumulate({{p.dy, p.h, transposed(p.db), pnb_dropout{}, p.scaling}, {p.x, p.dh, p.da, p.dropout, 1.0f}}, stream);
}

uint64_t lora_gradients_workspace(const Device&, const pnb_lora_gradients_params&) { return 0; }

}  // namespace pnb::cuda
