// A small f32 matrix product on tiles that lie in the first- or second-level cache.
#pragma once

#include <cstdint>

#include "cpu/lanes.h"

namespace pnb::cpu {

// Columns [0, 16 * W) of four rows of c: = or += a * b. a(i, k) lies at a[i * a_row + k * a_column].
template <int W>
inline __attribute__((always_inline)) void tile_rows(float* c, int64_t c_row, const float* a, int64_t a_row, int64_t a_column,
                                                     const float* b, int64_t b_row, int64_t depth, bool add) {
  Vector sum[4][W];
  for (int i = 0; i < 4; ++i) {
    for (int w = 0; w < W; ++w) {
      sum[i][w] = add ? *reinterpret_cast<const Vector*>(c + i * c_row + w * kLanes) : Vector{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    const float* b_start = b + k * b_row;
    const float* a_start = a + k * a_column;
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) {
      Vector column = *reinterpret_cast<const Vector*>(b_start + w * kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i][w] += column * a_start[i * a_row];
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int w = 0; w < W; ++w) *reinterpret_cast<Vector*>(c + i * c_row + w * kLanes) = sum[i][w];
  }
}

// c[rows, columns] = or += a[rows, depth] * b[depth, columns]; rows a multiple of 4, columns of 16.
inline __attribute__((always_inline)) void tile_product(float* c, int64_t c_row, const float* a, int64_t a_row, int64_t a_column,
                                                        const float* b, int64_t b_row, int64_t rows, int64_t columns,
                                                        int64_t depth, bool add) {
  for (int64_t i = 0; i < rows; i += 4) {
    float* c_start = c + i * c_row;
    const float* a_start = a + i * a_row;
    int64_t j = 0;
    for (; j + 4 * kLanes <= columns; j += 4 * kLanes) {
      tile_rows<4>(c_start + j, c_row, a_start, a_row, a_column, b + j, b_row, depth, add);
    }
    for (; j < columns; j += kLanes) {
      tile_rows<1>(c_start + j, c_row, a_start, a_row, a_column, b + j, b_row, depth, add);
    }
  }
}

}  // namespace pnb::cpu
