// What the kernels of attention share: one task is one head of one sample.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/tensor.h"
#include "cpu/bf16.h"

namespace pnb::cpu {

constexpr int64_t kTile = 64;  // queries, and keys, that are looked at together: a tile of f32 scores is 16 KB

// Rows of one head of a [tokens, heads, head_dim] tensor.
struct Head {
  char* data = nullptr;
  int32_t dtype = 0;
  int64_t row_bytes = 0;

  Head() = default;
  Head(const pnb_tensor& t, int64_t first, int64_t head)
      : data(static_cast<char*>(t.data) + (first * t.stride[0] + head * t.stride[1]) * dtype_size(t.dtype)),
        dtype(t.dtype),
        row_bytes(t.stride[0] * dtype_size(t.dtype)) {}
  // Of an operand that may be absent; then nothing may be read or written.
  static Head optional(const pnb_tensor& t, int64_t first, int64_t head) { return present(t) ? Head(t, first, head) : Head(); }

  char* row(int64_t i) const { return data + i * row_bytes; }
};

struct ForwardHead {
  Head q, k, v, o;
  float* lse;  // null where no backward follows
};

struct BackwardHead {
  Head q, k, v, o, d_o, dq, dk, dv;  // dk: without data where it is not asked for
  const float* lse;
};

struct HeadSizes {
  int64_t queries, keys, dim;

  // How many keys query `query` sees: the last query sees all.
  int64_t seen_by(int64_t query) const { return query + keys - queries + 1; }

  // As above, of the tile that starts at `key`.
  int64_t visible(int64_t query, int64_t key) const {
    int64_t in_tile = std::min(kTile, keys - key);
    return std::clamp<int64_t>(seen_by(query) - key, 0, in_tile);
  }
};

inline __attribute__((always_inline)) void store_row(const float* s, const Head& d, int64_t row, int64_t count) {
  if (d.dtype == PNB_DTYPE_F32) {
    std::memcpy(d.row(row), s, count * sizeof(float));
  } else {
    uint16_t* values = reinterpret_cast<uint16_t*>(d.row(row));
    for (int64_t i = 0; i < count; ++i) values[i] = float_to_bf16(s[i]);
  }
}

// The tiles that a tile meets, ascending: all from `from` to `limit`, or those of them that lie in listed blocks.
class TileWalk {
 public:
  inline __attribute__((always_inline)) TileWalk(int64_t from, int64_t limit) : row_(from), limit_(limit) {}

  inline __attribute__((always_inline)) TileWalk(const int32_t* list, int64_t count, int64_t block_rows, int64_t from,
                                                 int64_t limit)
      : limit_(limit), next_(list), end_(list + count), block_rows_(block_rows) {
    enter_block();
    while (row_ < from) next();
  }

  bool done() const { return row_ >= limit_; }
  int64_t row() const { return row_; }

  inline __attribute__((always_inline)) void next() {
    row_ += kTile;
    if (block_rows_ != 0 && row_ % block_rows_ == 0) enter_block();
  }

 private:
  inline __attribute__((always_inline)) void enter_block() { row_ = next_ == end_ ? limit_ : *next_++ * block_rows_; }

  int64_t row_ = 0;
  int64_t limit_;
  const int32_t* next_ = nullptr;
  const int32_t* end_ = nullptr;
  int64_t block_rows_ = 0;
};

// What a head's blocks in one sample meet: the lists of key blocks, or the transposed ones of query blocks.
struct HeadLists {
  const int32_t* indices = nullptr;  // [blocks, width]; null: no lists
  const int32_t* counts = nullptr;
  int64_t width = 0;
  int64_t block_rows = 0;  // a multiple of kTile

  inline __attribute__((always_inline)) TileWalk walk(int64_t row, int64_t from, int64_t limit) const {
    if (indices == nullptr) return TileWalk(from, limit);
    int64_t block = row / block_rows;
    return TileWalk(indices + block * width, counts[block], block_rows, from, limit);
  }
};

// What blocks of keys weigh with blocks of queries.
struct MassHead {
  Head q, k;
  const float* lse;
  float* mass;  // [blocks, width]: +=
  int64_t width, block_rows, query_stride;

  // Whether a query of a sample of so many rows is looked at.
  bool sampled(int64_t row, int64_t rows) const { return (row + 1) % query_stride == 0 || row + 1 == rows; }
};

// One way to compute heads. Buffers belong to one task at a time and need no initial values; no sample is longer than
// `longest`.
struct HeadKernels {
  uint64_t (*forward_bytes)(int64_t longest, int64_t dim);
  void (*forward)(const ForwardHead& h, const HeadSizes& sizes, const HeadLists& lists, float scale, int64_t longest, void* buffer);
  bool backward_by_queries;  // whether backward walks the forward pass's lists too, or the transposed ones
  uint64_t (*backward_bytes)(int64_t longest, int64_t dim);
  void (*backward)(const BackwardHead& h, const HeadSizes& sizes, const HeadLists& lists, float scale, int64_t longest,
                   void* buffer);
  uint64_t (*mass_bytes)(int64_t longest, int64_t dim);
  void (*mass)(const MassHead& h, const HeadSizes& sizes, float scale, int64_t longest, void* buffer);
};

// f32 arithmetic, for operands of any dtype.
const HeadKernels& f32_heads();

// Products of bf16 pairs with f32 sums (AVX512_BF16), for operands that are all bf16.
const HeadKernels& bf16_heads();

}  // namespace pnb::cpu
