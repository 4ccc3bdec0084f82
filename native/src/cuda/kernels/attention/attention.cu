#include "cuda/kernels/attention/attention.h"

#include <algorithm>

#include "cuda/kernels/attention/backward.h"
#include "cuda/kernels/attention/forward.h"
#include "cuda/kernels/attention/plain.h"

namespace pnb::cuda {

namespace {

// A block of the fast kernel holds 128 query rows: with fewer in all, a warp for each of them is faster.
constexpr int64_t kFewQueries = 32;

}  // namespace

void attention_forward(const Device& device, const pnb_attention_forward_params& p) {
  if (p.q.shape[0] == 0) return;
  if (p.q.shape[0] > kFewQueries && attention::takes_fast_forward(device, p)) attention::fast_forward(device, p);
  else attention::plain_forward(p);
}

void attention_backward(const Device& device, const pnb_attention_backward_params& p) {
  if (p.q.shape[0] == 0) return;
  if (attention::takes_fast_backward(device, p)) attention::fast_backward(device, p);
  else attention::plain_backward(p);
}

// Enough for either path: which one it is depends on addresses, and a query comes without them.
uint64_t attention_backward_workspace(const Device&, const pnb_attention_backward_params& p) {
  return std::max(attention::fast_backward_workspace(p), attention::plain_backward_workspace(p));
}

}  // namespace pnb::cuda
