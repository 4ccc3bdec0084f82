// Low-rank terms of a tile.
//
// Without dropout they are k steps of their own: of h and scale * b the bf16 nearest to each and the bf16 nearest to what that
// leaves, and all four products of these. Four ranks fill one instruction along k. What is lost is 2^-16 of a product, far
// below the rounding of d. Terms with dropout are multiply-adds in f32 on the accumulators.
#pragma once

#include "cuda/kernels/attention/hopper.cuh"
#include "cuda/kernels/gemm/sm90_schedule.cuh"

namespace pnb::cuda::sm90 {

namespace hopper = attention;

constexpr int kRanksASlice = 4;  // each with four products
static_assert(4 * kRanksASlice == kSliceK, "a slice holds the products of its ranks");

// Whether a term is made of k steps, and touches a tile. Where a list gathers columns they may lie anywhere.
template <Gather kGather>
__device__ bool folded(const LowRankTerm& term, int column) {
  if (term.dropout.active()) return false;
  return kGather == Gather::kColumns || (term.column < column + kTileN && term.column + term.columns > column);
}

// Slices of a tile's terms; a slice has ranks of one term.
template <Gather kGather>
__device__ int term_slices(const Epilogue& e, int column) {
  int slices = 0;
  for (int t = 0; t < e.term_count; ++t) {
    if (folded<kGather>(e.terms[t], column)) slices += (e.terms[t].rank + kRanksASlice - 1) / kRanksASlice;
  }
  return slices;
}

// Bytes from the start of a tile [rows, kTileK] whose rows are 128 bytes long and swizzled.
__device__ inline int row_place(int row, int k) { return row * 128 + (((k >> 3) ^ (row & 7)) << 4) + (k & 7) * 2; }
// Likewise of [kTileK, kTileN] in panels of 64 columns.
__device__ inline int panel_place(int column, int k) { return (column >> 6) * (kTileK * 128) + row_place(k, column & 63); }

// Threads that write a step of terms into a stage; each has two rows and two columns.
constexpr int kTermThreads = 64;
static_assert(kTileM == 2 * kTermThreads && kTileN == 2 * kTermThreads, "two rows and two columns a thread");

// Four factors, split.
struct Split {
  uint32_t high[2], low[2];

  __device__ void set(const float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      high[i] = hopper::pack_bf16(x[2 * i], x[2 * i + 1]);
      float2 rounded = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(high[i]));
      low[i] = hopper::pack_bf16(x[2 * i] - rounded.x, x[2 * i + 1] - rounded.y);
    }
  }
};

// The rank-th halves of two pairs of words, side by side.
__device__ inline uint32_t beside(const uint32_t (&x)[2], const uint32_t (&y)[2], int rank) {
  return __byte_perm(x[rank / 2], y[rank / 2], rank % 2 == 0 ? 0x5410 : 0x7632);
}

// One thread's part of a tile's terms, slice by slice.
template <bool kAlongK, Gather kGather>
class TermWriter {
 public:
  static constexpr int kBatch = 2;  // slices whose loads are under way together

  __device__ TermWriter(const Epilogue& e, int m, int tile_row, int tile_column, const int (&columns)[2], int thread)
      : e_(e), m_(m), tile_column_(tile_column), row_(tile_row + 2 * thread), line_(2 * thread), columns_{columns[0], columns[1]} {
    find();
  }

  __device__ void fetch() {
#pragma unroll
    for (int s = 0; s < kBatch; ++s) {
      if (term_ >= e_.term_count) continue;
      const LowRankTerm& term = e_.terms[term_];
      int ranks = min(kRanksASlice, term.rank - rank_);
      float h[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* h_row = term.h + (row_ + i) * term.h_stride + rank_;
        int column = columns_[i] - term.column;
        const float* b_column = term.b + column * term.b_column_stride + rank_ * term.b_rank_stride;
        bool in_rows = row_ + i < m_, in_columns = column >= 0 && column < term.columns;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          h[i][r] = in_rows && r < ranks ? __ldg(h_row + r) : 0.0f;
          b[i][r] = in_columns && r < ranks ? __ldg(b_column + r * term.b_rank_stride) : 0.0f;
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int r = 0; r < 4; ++r) b[i][r] *= term.scale;
        h_[s][i].set(h[i]);
        b_[s][i].set(b[i]);
      }
      rank_ += kRanksASlice;
      if (rank_ >= term.rank) {
        rank_ = 0;
        ++term_;
        find();
      }
    }
  }

  // Writes `count` of the slices that were fetched to a stage, from slice `first` on.
  __device__ void store(char* a, char* b, int first, int count) const {
#pragma unroll
    for (int s = 0; s < kBatch; ++s) {
      if (s >= count) continue;
      int k = (first + s) * kSliceK;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Split& h = h_[s][i];
        uint4 both = make_uint4(h.high[0], h.high[1], h.low[0], h.low[1]);
        at<uint4>(a, row_place(line_ + i, k)) = both;
        at<uint4>(a, row_place(line_ + i, k + 8)) = both;
        if constexpr (kAlongK) {
          const Split& y = b_[s][i];
          at<uint4>(b, row_place(line_ + i, k)) = make_uint4(y.high[0], y.high[1], y.high[0], y.high[1]);
          at<uint4>(b, row_place(line_ + i, k + 8)) = make_uint4(y.low[0], y.low[1], y.low[0], y.low[1]);
        }
      }
      if constexpr (!kAlongK) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          uint32_t high = beside(b_[s][0].high, b_[s][1].high, r), low = beside(b_[s][0].low, b_[s][1].low, r);
          at<uint32_t>(b, panel_place(line_, k + r)) = high;
          at<uint32_t>(b, panel_place(line_, k + 4 + r)) = high;
          at<uint32_t>(b, panel_place(line_, k + 8 + r)) = low;
          at<uint32_t>(b, panel_place(line_, k + 12 + r)) = low;
        }
      }
    }
  }

 private:
  // The next term that is folded, from this on.
  __device__ void find() {
    while (term_ < e_.term_count && !(folded<kGather>(e_.terms[term_], tile_column_) && e_.terms[term_].rank > 0)) ++term_;
  }

  template <typename T>
  __device__ static T& at(char* base, int bytes) {
    return *reinterpret_cast<T*>(base + bytes);
  }

  const Epilogue& e_;
  int m_, tile_column_, row_, line_;
  int columns_[2];  // of bias and terms
  int term_ = 0, rank_ = 0;
  Split h_[kBatch][2], b_[kBatch][2];
};

}  // namespace pnb::cuda::sm90
