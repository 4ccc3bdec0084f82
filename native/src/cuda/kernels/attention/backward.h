// Attention's backward pass on the tensor cores: bf16, head sizes 64, 80 and 128. Two kernels, each of which recomputes the
// probabilities: one owns query rows and writes dq, the other owns key rows and writes dk and dv. Nothing is added up across
// blocks of threads, so equal inputs give equal bits, at the price of seven products a tile instead of five. Where all samples are
// equally long, all_gradients() may do with five; of short samples short_backward() has all in one kernel.
#pragma once

#include "cuda/kernels/attention/heads.cuh"
#include "cuda/runtime/device.h"

namespace pnb::cuda::attention {

// What a query row's probabilities and their gradients need, kept as [heads, tokens] between the two kernels. 16 bytes, so
// that the copy engine can begin at any row.
struct alignas(16) RowStats {
  float lse;    // of scores to base 2
  float delta;  // sum of o * d_o
};

uint64_t fast_backward_workspace(const pnb_attention_backward_params& p);

// Whether the call is one that fast_backward() computes.
bool takes_fast_backward(const Device& device, const pnb_attention_backward_params& p);

void fast_backward(const Device& device, const pnb_attention_backward_params& p);

// Writes dq and the statistics.
void query_gradient(const Device& device, const pnb_attention_backward_params& p);

// Writes dk, where it is asked for, and dv; reads the statistics.
void key_gradient(const Device& device, const pnb_attention_backward_params& p);

}  // namespace pnb::cuda::attention
