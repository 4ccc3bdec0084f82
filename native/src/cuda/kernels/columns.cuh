// What the columns of a compact matrix stand for.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "penumbra/blocks.h"

namespace pnb::cuda {

// A query for a workspace describes operands by their shapes alone.
inline bool described(const pnb_tensor& t) { return present(t) || t.rank != 0; }

// A block list as kernels take it; without one, every column stands for itself.
struct Columns {
  const int32_t* indices = nullptr;  // NULL: no list
  const int32_t* counts = nullptr;
  int64_t list_stride = 0;
  int64_t rows_per_list = 0;
  int32_t size = 1;

  Columns() = default;
  explicit Columns(const pnb_block_list& blocks) {
    if (!present(blocks.indices)) return;
    indices = static_cast<const int32_t*>(blocks.indices.data);
    counts = static_cast<const int32_t*>(blocks.counts.data);
    list_stride = blocks.indices.stride[0];
    rows_per_list = blocks.rows_per_list;
    size = blocks.size;
  }

  __host__ __device__ bool listed() const { return indices != nullptr; }

  __device__ int64_t list_of(int64_t row) const { return listed() ? row / rows_per_list : 0; }

  // How many of a list's `columns` are there.
  __device__ int64_t active(int64_t list, int64_t columns) const {
    return listed() ? min(columns, static_cast<int64_t>(counts[list]) * size) : columns;
  }

  // Of an active column; neighbours within a block stay neighbours.
  __device__ int64_t neuron(int64_t list, int64_t column) const {
    if (!listed()) return column;
    auto c = static_cast<uint32_t>(column);
    auto s = static_cast<uint32_t>(size);
    return static_cast<int64_t>(indices[list * list_stride + c / s]) * size + c % s;
  }
};

}  // namespace pnb::cuda
