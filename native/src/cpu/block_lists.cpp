#include "cpu/block_lists.h"

#include "core/error.h"
#include "core/tensor.h"

namespace pnb::cpu {

BlockLists::BlockLists(const char* op, const pnb_block_list& blocks, int64_t m, int64_t neurons) {
  if (!present(blocks.indices)) {
    rows_per_list_ = std::max<int64_t>(m, 1);
    runs_.push_back({0, 0, neurons});
    first_run_ = {0, 1};
    columns_ = {neurons};
    return;
  }
  rows_per_list_ = blocks.rows_per_list;
  int64_t room = blocks.indices.shape[1];
  int64_t most = neurons / blocks.size;
  const int32_t* counts = static_cast<const int32_t*>(blocks.counts.data);
  first_run_.push_back(0);
  for (int64_t list = 0; list < blocks.indices.shape[0]; ++list) {
    const int32_t* indices = static_cast<const int32_t*>(blocks.indices.data) + list * blocks.indices.stride[0];
    int32_t count = counts[list];
    if (count < 0 || count > room) {
      fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected 0 to %lld blocks in list %lld, found %d", op, static_cast<long long>(room),
           static_cast<long long>(list), count);
    }
    for (int32_t c = 0; c < count; ++c) {
      int32_t least = c == 0 ? 0 : indices[c - 1] + 1;
      if (indices[c] < least || indices[c] >= most) {
        fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected block %d of list %lld in [%d, %lld), found %d", op, c,
             static_cast<long long>(list), least, static_cast<long long>(most), indices[c]);
      }
      int64_t neuron = int64_t{indices[c]} * blocks.size;
      bool follows = c > 0 && runs_.back().neuron + runs_.back().count == neuron;
      if (follows) {
        runs_.back().count += blocks.size;
      } else {
        runs_.push_back({int64_t{c} * blocks.size, neuron, blocks.size});
      }
    }
    first_run_.push_back(static_cast<int64_t>(runs_.size()));
    columns_.push_back(int64_t{count} * blocks.size);
  }
}

}  // namespace pnb::cpu
