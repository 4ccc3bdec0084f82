// Where a thread's accumulators lie in a tile, and ReLU's mask of them.
#pragma once

#include <cute/tensor.hpp>

#include "cuda/kernels/gemm/product.h"

namespace pnb::cuda::sm90 {

// In wgmma's 64 x n block a thread has rows r and r + 8, columns c, c + 1, c + 8, c + 9, ...: element (x, y, j) of the
// fragment is row r + 8 y, column c + x + 8 j. Four neighbouring threads share their rows and split each eight columns.
constexpr int kRowGap = 8;
constexpr int kColumnGap = 8;

struct Tile {
  int row, column;                // of its first element in d
  int m, n;                       // of d
  int thread_row, thread_column;  // of this thread's first element in the tile
};

// The mask's bits of this thread's rows of a tile, 32 columns a word.
template <int kRowBlocks, int kTileM, int kTileN>
class TileMask {
 public:
  __device__ void load(const Epilogue& e, const Tile& tile) {
    CUTLASS_PRAGMA_UNROLL
    for (int row = 0; row < kRows; ++row) {
      int at = row_of(row, tile);
      const uint8_t* bytes = e.mask + at * e.mask_stride + tile.column / 8;
      if (at < tile.m && whole(e, tile)) {
        CUTLASS_PRAGMA_UNROLL
        for (int w = 0; w < kWords; w += 4) {
          uint4 four = *reinterpret_cast<const uint4*>(bytes + 4 * w);
          words_[row][w] = four.x;
          words_[row][w + 1] = four.y;
          words_[row][w + 2] = four.z;
          words_[row][w + 3] = four.w;
        }
      } else {
        CUTLASS_PRAGMA_UNROLL
        for (int w = 0; w < kWords; ++w) {
          words_[row][w] = 0;
          for (int i = 0; i < 4; ++i) {
            if (at < tile.m && tile.column + w * 32 + i * 8 < tile.n) {
              words_[row][w] |= static_cast<uint32_t>(bytes[w * 4 + i]) << (8 * i);
            }
          }
        }
      }
    }
  }

  // Zeroes the accumulators whose bit is not set.
  template <class Accumulators>
  __device__ void keep(Accumulators& accumulators, const Tile& tile) const {
    CUTLASS_PRAGMA_UNROLL
    for (int row = 0; row < kRows; ++row) {
      CUTLASS_PRAGMA_UNROLL
      for (int w = 0; w < kWords; ++w) {
        uint32_t bits = words_[row][w] >> (tile.thread_column % kColumnGap);
        CUTLASS_PRAGMA_UNROLL
        for (int e = 0; e < 8; ++e) {
          float& value = accumulators(cute::make_coord(e % 2, row % 2, w * 4 + e / 2), row / 2, 0);
          value = (bits >> (e / 2 * kColumnGap + e % 2)) & 1 ? value : 0.0f;
        }
      }
    }
  }

  // Writes which accumulators are above 0.
  template <class Accumulators>
  __device__ static void store(const Epilogue& e, const Accumulators& accumulators, const Tile& tile) {
    int lane = tile.thread_column % kColumnGap / 2;
    uint32_t mine[kWords];  // of the row that this thread writes: the lane-th, where four threads have four rows
    CUTLASS_PRAGMA_UNROLL
    for (int row = 0; row < kRows; ++row) {
      CUTLASS_PRAGMA_UNROLL
      for (int w = 0; w < kWords; ++w) {
        uint32_t bits = 0;
        CUTLASS_PRAGMA_UNROLL
        for (int x = 0; x < 8; ++x) {
          bool above = accumulators(cute::make_coord(x % 2, row % 2, w * 4 + x / 2), row / 2, 0) > 0.0f;
          bits |= (above ? 1u : 0u) << (x / 2 * kColumnGap + x % 2);
        }
        bits <<= 2 * lane;
        bits |= __shfl_xor_sync(0xffffffffu, bits, 1);
        bits |= __shfl_xor_sync(0xffffffffu, bits, 2);
        mine[w] = row == 0 || lane == row ? bits : mine[w];
      }
    }
    if (lane >= kRows) return;
    int at = row_of(lane, tile);
    if (at >= tile.m) return;
    uint8_t* bytes = e.mask + at * e.mask_stride + tile.column / 8;
    if (whole(e, tile)) {
      CUTLASS_PRAGMA_UNROLL
      for (int w = 0; w < kWords; w += 4) {
        *reinterpret_cast<uint4*>(bytes + 4 * w) = make_uint4(mine[w], mine[w + 1], mine[w + 2], mine[w + 3]);
      }
    } else {
      CUTLASS_PRAGMA_UNROLL
      for (int w = 0; w < kWords; ++w) {
        for (int i = 0; i < 4; ++i) {
          if (tile.column + w * 32 + i * 8 < tile.n) bytes[w * 4 + i] = static_cast<uint8_t>(mine[w] >> (8 * i));
        }
      }
    }
  }

 private:
  static constexpr int kRows = 2 * kRowBlocks;
  static constexpr int kWords = kTileN / 32;
  static_assert(kRows <= 4 && kWords % 4 == 0, "a thread writes one row at most, 16 bytes at a time");

  __device__ static int row_of(int row, const Tile& tile) {
    return tile.row + tile.thread_row + row / 2 * (kTileM / kRowBlocks) + row % 2 * kRowGap;
  }

  // Whether the tile's part of a row can be moved 16 bytes at a time.
  __device__ static bool whole(const Epilogue& e, const Tile& tile) {
    return tile.column + kTileN <= tile.n &&
           (reinterpret_cast<uintptr_t>(e.mask) | static_cast<uintptr_t>(e.mask_stride)) % 16 == 0;
  }

  uint32_t words_[kRows][kWords];
};

}  // namespace pnb::cuda::sm90
