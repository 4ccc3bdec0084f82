// In which order, and by whom, lists of blocks are worked off.
#pragma once

#include <cstdint>

#include "cuda/runtime/device.h"

namespace pnb::cuda::attention {

// What was chosen for one head of one sample.
struct Outcome {
  double covered, whole;  // sums of masses
  int kept, possible, cut, lists;
};

struct Orders {
  const int32_t *counts, *t_counts;  // of lists; 0: it has no block
  int32_t* order;                    // [2, lists], as penumbra/attention_blocks.h says
  int64_t lists;
  int most;  // blocks of a list
  const Outcome* outcomes;
  int64_t outcome_count;
  float* summary;  // or NULL
};

// Writes the orders and the summary; launched early, it waits for the kernel that makes the lists.
void write_orders(const Device& device, const Orders& p, cudaStream_t stream, const char* op);

}  // namespace pnb::cuda::attention
