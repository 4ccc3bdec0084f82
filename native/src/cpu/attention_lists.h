// Samples' borders and lists of blocks: data, which only the backend can look at.
#pragma once

#include <cstdint>

#include "penumbra/attention_blocks.h"

namespace pnb::cpu {

// The borders, found to ascend from 0 within the tokens in steps of at most `longest`.
const int32_t* borders(const char* op, const char* name, const pnb_tensor& t, int64_t tokens, int64_t longest);

// A sample's blocks, whose slots are neighbours.
struct SampleBlocks {
  int64_t first_slot, count;

  SampleBlocks(const int32_t* cu, int64_t sample, int64_t size)
      : first_slot(cu[sample] / size + sample), count((cu[sample + 1] - cu[sample] + size - 1) / size) {}
};

// Refuses, in the operation's name, lists whose counts or blocks are out of range or order: of key blocks, or the transposed
// ones of query blocks.
void check_lists(const char* op, const pnb_attention_blocks& blocks, bool transposed, const int32_t* cu, int64_t samples);

}  // namespace pnb::cpu
