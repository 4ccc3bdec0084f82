// Low-rank terms of a tile.
//
// Without dropout they are k steps of their own: h and scale * b, each split into the bf16 nearest to it and the bf16 nearest
// to what that leaves, meet in the tensor cores as high * high + low * high + high * low. What is lost is 2^-16 of a product,
// far below the rounding of d. Terms with dropout are multiply-adds in f32 on the accumulators.
#pragma once

#include "cuda/kernels/attention/hopper.cuh"
#include "cuda/kernels/gemm/sm90_schedule.cuh"

namespace pnb::cuda::sm90 {

namespace hopper = attention;

constexpr int kSlicesOfRanks = 3;                            // of k that hold kRanks ranks
constexpr int kRanks = kSlicesOfRanks * kSliceK / 3;         // a step of terms
constexpr int kSlicesAStep = kTileK / kSliceK;
static_assert(kSlicesOfRanks <= kSlicesAStep, "ranks fit a step");

// Whether a term is made of k steps, and touches a tile. Where a list gathers columns they may lie anywhere.
template <Gather kGather>
__device__ bool folded(const LowRankTerm& term, int column) {
  if (term.dropout.active() || term.rank == 0) return false;
  return kGather == Gather::kColumns || (term.column < column + kTileN && term.column + term.columns > column);
}

template <Gather kGather>
__device__ int folded_ranks(const Epilogue& e, int column) {
  int ranks = 0;
  for (int t = 0; t < e.term_count; ++t) ranks += folded<kGather>(e.terms[t], column) ? e.terms[t].rank : 0;
  return ranks;
}

__device__ inline int term_steps(int ranks) { return (ranks + kRanks - 1) / kRanks; }

// Slices of the step that starts with rank `from`.
__device__ inline int term_slices(int ranks, int from) { return (3 * min(kRanks, ranks - from) + kSliceK - 1) / kSliceK; }

// Bytes from the start of a tile [rows, kTileK] whose rows are 128 bytes long and swizzled.
__device__ inline int row_place(int row, int k) { return row * 128 + (((k >> 3) ^ (row & 7)) << 4) + (k & 7) * 2; }
// Likewise of [kTileK, kTileN] in panels of 64 columns.
__device__ inline int panel_place(int column, int k) { return (column >> 6) * (kTileK * 128) + row_place(k, column & 63); }

// Threads that write a step of terms into a stage.
constexpr int kTermThreads = 64;

template <bool kAlongK, Gather kGather>
class TermWriter {
 public:
  __device__ TermWriter(const Epilogue& e, int m, int tile_row, int tile_column, const int (&origin)[kTileN / kTermThreads])
      : e_(e), m_(m), row_(tile_row), column_(tile_column), origin_(origin) {
    while (term_ < e.term_count && !folded<kGather>(e.terms[term_], column_)) ++term_;
  }

  // Ranks that are fetched at once: their loads are under way together.
  static constexpr int kBatch = 8;

  __device__ void fetch(int thread) {
#pragma unroll
    for (int x = 0; x < kBatch; ++x) {
      bool more = term_ < e_.term_count;
      const LowRankTerm& term = e_.terms[more ? term_ : 0];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        int row = row_ + thread + i * kTermThreads;
        int column = origin_[i] - term.column;
        h_[x][i] = more && row < m_ ? __ldg(term.h + row * term.h_stride + rank_) : 0.0f;
        b_[x][i] = more && column >= 0 && column < term.columns
                       ? term.scale * __ldg(term.b + column * term.b_column_stride + rank_ * term.b_rank_stride)
                       : 0.0f;
      }
      if (more && ++rank_ == term.rank) {
        rank_ = 0;
        do ++term_;
        while (term_ < e_.term_count && !folded<kGather>(e_.terms[term_], column_));
      }
    }
  }

  // Writes what was fetched to columns [3 from, 3 (from + kBatch)) of a step.
  __device__ void store(char* a, char* b, int from, int thread) const {
#pragma unroll
    for (int x = 0; x < kBatch; ++x) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        int line = thread + i * kTermThreads;
        int k = 3 * (from + x);
        __nv_bfloat16 h = __float2bfloat16_rn(h_[x][i]), h_rest = __float2bfloat16_rn(h_[x][i] - __bfloat162float(h));
        __nv_bfloat16 y = __float2bfloat16_rn(b_[x][i]), y_rest = __float2bfloat16_rn(b_[x][i] - __bfloat162float(y));
        at(a, row_place(line, k)) = h;
        at(a, row_place(line, k + 1)) = h_rest;
        at(a, row_place(line, k + 2)) = h;
        at(b, place(line, k)) = y;
        at(b, place(line, k + 1)) = y;
        at(b, place(line, k + 2)) = y_rest;
      }
    }
  }

 private:
  static constexpr int kPerThread = kTileN / kTermThreads;
  static_assert(kTileM == kTileN, "a thread's rows are as many as its columns");

  __device__ static __nv_bfloat16& at(char* base, int bytes) { return *reinterpret_cast<__nv_bfloat16*>(base + bytes); }
  __device__ static int place(int column, int k) { return kAlongK ? row_place(column, k) : panel_place(column, k); }

  const Epilogue& e_;
  int m_, row_, column_;
  const int (&origin_)[kPerThread];
  int term_ = 0, rank_ = 0;
  float h_[kBatch][kPerThread], b_[kBatch][kPerThread];
};

}  // namespace pnb::cuda::sm90
