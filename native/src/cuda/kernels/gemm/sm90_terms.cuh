// Low-rank terms of a tile.
//
// Without dropout they are k steps of their own: of h and scale * b the bf16 nearest to each and the bf16 nearest to what that
// leaves, and all four products of these. Four ranks fill one instruction along k. What is lost is 2^-16 of a product, far
// below the rounding of d. Terms with dropout are multiply-adds in f32 on the accumulators.
#pragma once

#include "cuda/kernels/gemm/sm90_schedule.cuh"
#include "cuda/kernels/hopper.cuh"

namespace pnb::cuda::sm90 {

template <int kTileN>
struct Stage {
  char a[kTileM * kTileK * 2];
  char b[kTileN * kTileK * 2];
};

constexpr int kRanksASlice = 4;  // each with four products
static_assert(4 * kRanksASlice == kSliceK, "a slice holds the products of its ranks");

// Whether a term is made of k steps, and touches a tile. Where a list gathers columns they may lie anywhere.
template <Gather kGather, int kTileN>
__device__ bool folded(const LowRankTerm& term, int column) {
  if (term.dropout.active()) return false;
  return kGather == Gather::kColumns || (term.column < column + kTileN && term.column + term.columns > column);
}

// Slices of a tile's terms; a slice has ranks of one term.
template <Gather kGather, int kTileN>
__device__ int term_slices(const Epilogue& e, int column) {
  int slices = 0;
  for (int t = 0; t < e.term_count; ++t) {
    if (folded<kGather, kTileN>(e.terms[t], column)) slices += (e.terms[t].rank + kRanksASlice - 1) / kRanksASlice;
  }
  return slices;
}

// A step of terms has so many slices: what a thread can hold of them until a stage is free.
constexpr int kTermSlicesAStep = 2;

// Bytes from the start of a tile [rows, kTileK] whose rows are 128 bytes long and swizzled.
__device__ inline int row_place(int row, int k) { return row * 128 + (((k >> 3) ^ (row & 7)) << 4); }
// Likewise of [kTileK, columns] in panels of 64 columns.
__device__ inline int panel_place(int column, int k) { return (column >> 6) * (kTileK * 128) + row_place(k, column & 63); }

// Threads that write a step of terms into a stage.
constexpr int kTermThreads = 64;

// A load that stays where it is written: before a wait, not behind it.
__device__ __forceinline__ float fetched(const float* p) {
  float x;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(x) : "l"(p));
  return x;
}

// Two factors, and what rounding them leaves; split before a wait, too.
__device__ __forceinline__ void split(float x, float y, uint32_t& high, uint32_t& low) {
  high = hopper::pack_bf16(x, y);
  float2 rounded = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(high));
  low = hopper::pack_bf16(x - rounded.x, y - rounded.y);
  asm volatile("" : "+r"(high), "+r"(low));
}

// One thread's part of a tile's terms, step by step. After the wait for a stage only stores are left.
//
// A slice's columns along k are, for its four ranks: h's high, low, high, low beside b's high, high, low, low. A thread has
// rows t and t + 64 of h. Of b it has columns t, t + 64, ... where k runs along a line of 128 bytes; else one rank of eight
// neighbouring columns, which are the sixteen bytes that a store writes, of each 128.
template <bool kAlongK, Gather kGather, int kTileN>
class TermWriter {
 public:
  __device__ TermWriter(const Epilogue& e, int m, const TileInfo& tile, int thread) : e_(e), m_(m), tile_(tile), thread_(thread) {
    find();
  }

  __device__ void fetch() {
#pragma unroll
    for (int s = 0; s < kTermSlicesAStep; ++s) {
      if (term_ >= e_.term_count) continue;
      const LowRankTerm& term = e_.terms[term_];
      int ranks = min(kRanksASlice, term.rank - rank_);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int row = tile_.row + thread_ + i * kTermThreads;
        const float* from = term.h + row * term.h_stride + rank_;
        float x[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) x[r] = row < m_ && r < ranks ? fetched(from + r) : 0.0f;
        split(x[0], x[1], h_[s][i].x, h_[s][i].z);
        split(x[2], x[3], h_[s][i].y, h_[s][i].w);
      }
      if constexpr (kAlongK) {
#pragma unroll
        for (int i = 0; i < kLines; ++i) {
          int panel = (thread_ + i * kTermThreads) / kPanelColumns;
          int column = panel_origin<kGather>(tile_, panel) + thread_ % kPanelColumns - term.column;
          const float* from = term.b + column * term.b_column_stride + rank_ * term.b_rank_stride;
          bool inside = column >= 0 && column < term.columns;
          float x[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) x[r] = inside && r < ranks ? term.scale * fetched(from + r * term.b_rank_stride) : 0.0f;
          split(x[0], x[1], b_[s][i].x, b_[s][i].z);
          split(x[2], x[3], b_[s][i].y, b_[s][i].w);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kLines / 2; ++i) {
          int column = panel_origin<kGather>(tile_, eight(i) / kPanelColumns) + eight(i) % kPanelColumns - term.column;
          const float* from = term.b + column * term.b_column_stride + (rank_ + thread_ % 4) * term.b_rank_stride;
          float x[8];
#pragma unroll
          for (int c = 0; c < 8; ++c) {
            bool inside = column + c >= 0 && column + c < term.columns && thread_ % 4 < ranks;
            x[c] = inside ? term.scale * fetched(from + c * term.b_column_stride) : 0.0f;
          }
          uint4 &high = b_[s][2 * i], &low = b_[s][2 * i + 1];
          split(x[0], x[1], high.x, low.x);
          split(x[2], x[3], high.y, low.y);
          split(x[4], x[5], high.z, low.z);
          split(x[6], x[7], high.w, low.w);
        }
      }
      rank_ += kRanksASlice;
      if (rank_ >= term.rank) {
        rank_ = 0;
        ++term_;
        find();
      }
    }
  }

  __device__ void store(Stage<kTileN>& stage, int slices) const {
#pragma unroll
    for (int s = 0; s < kTermSlicesAStep; ++s) {
      if (s >= slices) continue;
      int k = s * kSliceK;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int line = thread_ + i * kTermThreads;
        at(stage.a, row_place(line, k)) = h_[s][i];
        at(stage.a, row_place(line, k + 8)) = h_[s][i];
      }
#pragma unroll
      for (int i = 0; i < kLines; ++i) {
        const uint4& b = b_[s][i];
        if constexpr (kAlongK) {
          int line = thread_ + i * kTermThreads;
          at(stage.b, row_place(line, k)) = make_uint4(b.x, b.y, b.x, b.y);
          at(stage.b, row_place(line, k + 8)) = make_uint4(b.z, b.w, b.z, b.w);
        } else {
#pragma unroll
          for (int copy = 0; copy < 2; ++copy) at(stage.b, panel_place(eight(i / 2), k + 8 * (i % 2) + 4 * copy + thread_ % 4)) = b;
        }
      }
    }
  }

 private:
  // The next term that is folded, from this on.
  __device__ void find() {
    while (term_ < e_.term_count && !(folded<kGather, kTileN>(e_.terms[term_], tile_.column) && e_.terms[term_].rank > 0)) ++term_;
  }

  // The first of the eight columns that this thread has one rank of, in the i-th 128.
  __device__ int eight(int i) const { return thread_ / 4 * 8 + i * 128; }

  __device__ static uint4& at(char* base, int bytes) { return *reinterpret_cast<uint4*>(base + bytes); }

  static constexpr int kLines = kTileN / kTermThreads;  // of sixteen bytes that a thread has of b

  const Epilogue& e_;
  int m_;
  const TileInfo& tile_;
  int thread_;
  int term_ = 0, rank_ = 0;
  uint4 h_[kTermSlicesAStep][2];  // of a row: ranks' highs, then their lows
  uint4 b_[kTermSlicesAStep][kLines];  // of a column likewise; or of eight columns: [2 i] highs, [2 i + 1] lows
};

}  // namespace pnb::cuda::sm90
