// The backward pass in five products a tile, where all samples are equally long: one kernel owns key rows and adds dq up across
// blocks of threads, in an order that does not depend on which of them is faster.
#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda::attention {

// The length that samples have to have, all of them, or 0 where the call is none for all_gradients(). Whether they have it is
// known on the device alone: there, either all_gradients() ends at once or the other kernels do.
int all_gradients_length(const Device& device, const pnb_attention_backward_params& p);

// Bytes behind the statistics. They follow from the rows, heads and their size alone: who asks for the workspace of the largest
// batch has enough for smaller ones, however their samples are laid out.
uint64_t all_gradients_workspace(const pnb_attention_backward_params& p);

// Writes dq, dk, where it is asked for, and dv.
void all_gradients(const Device& device, const pnb_attention_backward_params& p);

}  // namespace pnb::cuda::attention
