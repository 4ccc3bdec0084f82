// Lists of active blocks as runs of neighbouring neurons.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "penumbra/blocks.h"

namespace pnb::cpu {

// Columns [column, column + count) of a compact matrix are neurons [neuron, neuron + count).
struct Run {
  int64_t column, neuron, count;
};

// Every list of a batch; without lists, one that names all neurons in their own places.
class BlockLists {
 public:
  // Refuses, in the operation's name, a list whose count or blocks are out of range or order.
  BlockLists(const char* op, const pnb_block_list& blocks, int64_t m, int64_t neurons);

  // The first row after `row` that another list begins with, at most `m`.
  int64_t end_of_list(int64_t row, int64_t m) const { return std::min(m, (row / rows_per_list_ + 1) * rows_per_list_); }

  std::span<const Run> runs(int64_t row) const {
    int64_t list = row / rows_per_list_;
    return {runs_.data() + first_run_[list], static_cast<size_t>(first_run_[list + 1] - first_run_[list])};
  }

  // Columns that the list of this row fills.
  int64_t columns(int64_t row) const { return columns_[row / rows_per_list_]; }

 private:
  int64_t rows_per_list_;
  std::vector<Run> runs_;  // of all lists
  std::vector<int64_t> first_run_;
  std::vector<int64_t> columns_;
};

}  // namespace pnb::cpu
