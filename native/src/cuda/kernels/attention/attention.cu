#include "cuda/kernels/attention/attention.h"

#include "cuda/kernels/attention/plain.h"

namespace pnb::cuda {

void attention_forward(const Device&, const pnb_attention_forward_params& p) {
  if (p.q.shape[0] == 0) return;
  attention::plain_forward(p);
}

void attention_backward(const Device&, const pnb_attention_backward_params& p) {
  if (p.q.shape[0] == 0) return;
  attention::plain_backward(p);
}

uint64_t attention_backward_workspace(const Device&, const pnb_attention_backward_params& p) {
  return static_cast<uint64_t>(p.q.shape[0] * p.q.shape[1]) * sizeof(float);
}

}  // namespace pnb::cuda
