#include "cuda/kernels/attention/backward.h"

#include "cuda/kernels/attention/all_gradients.h"
#include "cuda/kernels/attention/schedule.cuh"
#include "cuda/kernels/attention/short_samples.h"
#include "cuda/kernels/attention/tile.cuh"

namespace pnb::cuda::attention {

bool takes_fast_backward(const Device& device, const pnb_attention_backward_params& p) {
  int64_t dim = p.q.shape[2], samples = p.cu_seqlens.shape[0] - 1;
  for (const pnb_tensor* t : {&p.q, &p.k, &p.v, &p.o, &p.d_o, &p.dq, &p.dv}) {
    if (!is_mappable(*t)) return false;
  }
  if (present(p.dk) && !is_mappable(p.dk)) return false;
  // The copy engine's coordinates have 32 bits.
  return p.q.dtype == PNB_DTYPE_BF16 && takes_fast_lists(device, p.blocks) && (dim == 64 || dim == 80 || dim == 128) &&
         p.scale > 0.0f && p.q.shape[0] * p.q.shape[1] <= INT32_MAX && unit_slots(p.q.shape[0], samples, kFewestRows) <= kMaxUnits;
}

uint64_t fast_backward_workspace(const pnb_attention_backward_params& p) {
  return static_cast<uint64_t>(p.q.shape[0] * p.q.shape[1]) * sizeof(RowStats) + all_gradients_workspace(p);
}

void fast_backward(const Device& device, const pnb_attention_backward_params& p) {
  if (has_short_samples(p)) return short_backward(p);
  if (all_gradients_length(device, p) > 0) all_gradients(device, p);
  query_gradient(device, p);
  key_gradient(device, p);
}

}  // namespace pnb::cuda::attention
