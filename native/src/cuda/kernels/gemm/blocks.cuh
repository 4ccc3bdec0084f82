// A list of active blocks as a kernel reads it.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/gemm/product.h"

namespace pnb::cuda {

class ActiveBlocks {
 public:
  // Of the list that a row uses.
  __device__ ActiveBlocks(const Blocks& blocks, int row)
      : indices_(blocks.indices + (row / blocks.rows_per_list) * blocks.stride),
        bits_(blocks.size_bits),
        count_(min(__ldg(blocks.counts + row / blocks.rows_per_list), blocks.capacity)) {}

  __device__ int columns() const { return count_ << bits_; }
  __device__ int count() const { return count_; }

  // The block at a place of the list; places past its end give its last block, so that what is read there is a weight.
  __device__ int block(int place) const { return count_ == 0 ? 0 : __ldg(indices_ + min(place, count_ - 1)); }

  // Brings a place into the first cache.
  __device__ void touch(int place) const {
    asm volatile("{\n.reg .b32 unused;\nld.global.nc.b32 unused, [%0];\n}" ::"l"(indices_ + place));
  }

  // The neuron behind a compact column.
  __device__ int neuron(int column) const { return (block(column >> bits_) << bits_) + (column & ((1 << bits_) - 1)); }

 private:
  const int32_t* indices_;
  int bits_;
  int count_;
};

}  // namespace pnb::cuda
