// Six rows times a strip of a packed weight: what products over strips are made of.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/avx512_bf16.h"
#include "cpu/weight.h"

// Six rows times 64 columns are 24 sums in registers; for each pair of rows of b, 256 bytes that lie together in the packed
// weight, every sum takes one vdpbf16ps. A strip over 768 rows is 98 KB: it stays in the second-level cache while the rows of a
// go by, and what follows it is brought there meanwhile.

namespace pnb::cpu {

constexpr int64_t kStripRows = 6;                // 6 x 4 sums, 4 columns of b and a pair of a: 29 of 32 registers
constexpr int64_t kPairBytes = kColumnTile * 4;  // a pair of rows of b in a tile

// Six rows of a, and how far from each the row lies that is read after it.
struct StripRows {
  const char* start[kStripRows];
  int64_t to_next;  // bytes

  // Rows [row, row + count) of a; where they are fewer, the last one again.
  StripRows(const void* a, int64_t row_bytes, int64_t row, int64_t count, int64_t to_next) : to_next(to_next) {
    for (int64_t i = 0; i < kStripRows; ++i) {
      start[i] = static_cast<const char*>(a) + (row + (i < count ? i : count - 1)) * row_bytes;
    }
  }
};

// What is read after a strip, piece by piece of 4 KB: while the rows of group `turn` of `groups` go by, their part of the lines.
struct Ahead {
  const char* b;
  int64_t turn, groups;
};

template <int W>
PNB_AVX512_BF16 inline __attribute__((always_inline)) void clear(__m512 (&sum)[kStripRows][W]) {
#pragma GCC unroll 6
  for (int i = 0; i < kStripRows; ++i) {
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) sum[i][w] = _mm512_setzero_ps();
  }
}

// One pair of columns of a, `a` bytes from the rows' start, times 16 * W columns of b.
template <int W>
PNB_AVX512_BF16 inline __attribute__((always_inline)) void add_pair(__m512 (&sum)[kStripRows][W], const StripRows& rows,
                                                                    int64_t a, const char* b) {
  __m512bh column[W];
#pragma GCC unroll 4
  for (int w = 0; w < W; ++w) column[w] = as_bf16(_mm512_loadu_si512(b + w * 64));
#pragma GCC unroll 6
  for (int i = 0; i < kStripRows; ++i) {
    int pair;
    std::memcpy(&pair, rows.start[i] + a, sizeof pair);
    __m512bh row = as_bf16(_mm512_set1_epi32(pair));
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) sum[i][w] = _mm512_dpbf16_ps(sum[i][w], row, column[w]);
  }
}

// sum += a * b over `pairs` pairs of columns of a, from `a` bytes behind the rows' start, and as many pairs of rows of b.
template <int W>
PNB_AVX512_BF16 inline __attribute__((always_inline)) void add_pairs(__m512 (&sum)[kStripRows][W], const StripRows& rows,
                                                                     int64_t a, const char* b, int64_t pairs, Ahead ahead) {
  constexpr int64_t kLine = 64, kPiece = kLine / 4 * kPairBytes;
  int64_t to_ahead = ahead.b - b, end = a + pairs * 4;
  for (; a + kLine <= end; a += kLine) {
#pragma GCC unroll 6
    for (int i = 0; i < kStripRows; ++i) _mm_prefetch(rows.start[i] + a + rows.to_next, _MM_HINT_T0);
    for (int64_t line = ahead.turn * kLine; line < kPiece; line += ahead.groups * kLine) {
      _mm_prefetch(b + to_ahead + line, _MM_HINT_T1);
    }
    for (int64_t k = 0; k < kLine; k += 4, b += kPairBytes) add_pair<W>(sum, rows, a + k, b);
  }
  for (; a < end; a += 4, b += kPairBytes) add_pair<W>(sum, rows, a, b);
}

}  // namespace pnb::cpu
