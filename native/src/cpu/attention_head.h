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
  char* data;
  int32_t dtype;
  int64_t row_bytes;

  Head(const pnb_tensor& t, int64_t first, int64_t head)
      : data(static_cast<char*>(t.data) + (first * t.stride[0] + head * t.stride[1]) * dtype_size(t.dtype)),
        dtype(t.dtype),
        row_bytes(t.stride[0] * dtype_size(t.dtype)) {}

  char* row(int64_t i) const { return data + i * row_bytes; }
};

struct ForwardHead {
  Head q, k, v, o;
  float* lse;  // null where no backward follows
};

struct BackwardHead {
  Head q, k, v, o, d_o, dq, dk, dv;
  const float* lse;
};

struct HeadSizes {
  int64_t queries, keys, dim;

  // How many keys of the tile that starts at `key` query `query` sees: the last query sees all keys.
  int64_t visible(int64_t query, int64_t key) const {
    int64_t in_tile = std::min(kTile, keys - key);
    return std::clamp<int64_t>(query + keys - queries - key + 1, 0, in_tile);
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

// One way to compute heads. Buffers belong to one task at a time and need no initial values; no sample is longer than
// `longest`.
struct HeadKernels {
  uint64_t (*forward_bytes)(int64_t longest, int64_t dim);
  void (*forward)(const ForwardHead& h, const HeadSizes& sizes, float scale, int64_t longest, void* buffer);
  uint64_t (*backward_bytes)(int64_t longest, int64_t dim);
  void (*backward)(const BackwardHead& h, const HeadSizes& sizes, float scale, int64_t longest, void* buffer);
};

// f32 arithmetic, for operands of any dtype.
const HeadKernels& f32_heads();

// Products of bf16 pairs with f32 sums (AVX512_BF16), for operands that are all bf16.
const HeadKernels& bf16_heads();

}  // namespace pnb::cpu
