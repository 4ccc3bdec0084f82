// How up to sixteen ranks of floats fill the tensor cores' operands. A float is three bf16; where ranks are few, the parts of
// one rank lie beside each other in one operand instead of in three products.
#pragma once

#include "cuda/kernels/lora/fragment.cuh"

namespace pnb::cuda::lora {

// Four 8 x 8 matrices of bf16 from shared memory: lane l gives the address of row l % 8 of matrix l / 8. Lane 4 g + t gets row
// g, columns 2 t and 2 t + 1 of each; transposed, rows 2 t and 2 t + 1 of column g.
template <bool kTransposed>
__device__ inline void load_matrices(uint32_t address, uint32_t (&words)[4]) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  }
}

__device__ inline uint32_t word(const Pack<__nv_bfloat16, kRun>& run, int i) { return reinterpret_cast<const uint32_t*>(run.v)[i]; }

// The tokens whose left values a lane holds.
__device__ inline int token_of(int i) { return i / 2 * 8 + 2 * (threadIdx.x % 4) + i % 2; }

template <int kRanks>
struct Parts {
  static_assert(kRanks == 4 || kRanks == 8 || kRanks == 16);

  // Products over columns: rows of x times the ranks' factors.
  static constexpr int kTiles = kRanks == 16 ? 2 : 1;                 // of eight columns of the result
  static constexpr int kFactors = kRanks == 4 ? 2 : kRanks == 8 ? 3 : 6;
  // Products over tokens: the ranks' left values times columns of x.
  static constexpr int kLefts = kRanks == 4 ? 1 : kRanks == 8 ? 2 : 3;

  // The factors of a lane's eight columns, for both products that these make; load(rank, values) finds a rank's.
  template <typename Rank, typename Load>
  static __device__ void load_factor(const Rank* ranks, int r, Load load, uint32_t (&factor)[2][kFactors][2]) {
    int group = threadIdx.x % 32 / 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      int rank = kRanks == 4 ? group % 4 : 8 * tile + group;
      float v[kRun] = {};
      if (rank < r) load(ranks[rank], v);
#pragma unroll
      for (int product = 0; product < 2; ++product) {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          uint32_t parts[kFloatParts];
          split(v[4 * product + 2 * pair], v[4 * product + 2 * pair + 1], parts);
          if constexpr (kRanks == 4) {
            factor[product][0][pair] = group < 4 ? parts[0] : parts[1];
            factor[product][1][pair] = group < 4 ? parts[2] : 0;
          } else {
#pragma unroll
            for (int i = 0; i < kFloatParts; ++i) factor[product][tile * kFloatParts + i][pair] = parts[i];
          }
        }
      }
    }
  }

  // sums += sixteen rows of four columns a lane times the factors of these.
  static __device__ void project(const uint32_t (&rows)[4], const uint32_t (&factor)[kFactors][2], float (&sums)[kTiles][4]) {
#pragma unroll
    for (int i = 0; i < kFactors; ++i) mma(sums[kTiles == 1 ? 0 : i / kFloatParts], rows, factor[i][0], factor[i][1]);
  }

  // Leaves sums of sixteen rows as [16][kRanks].
  static __device__ void store_low(float (&sums)[kTiles][4], float* to) {
    int group = threadIdx.x % 32 / 4, lane = threadIdx.x % 4;
    if constexpr (kRanks == 4) {
      float v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = sums[0][k] + __shfl_xor_sync(~0u, sums[0][k], 2);  // columns four apart
      if (lane < 2) {
#pragma unroll
        for (int k = 0; k < 4; ++k) to[(8 * (k / 2) + group) * kRanks + 2 * lane + k % 2] = v[k];
      }
    } else {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int k = 0; k < 4; ++k) to[(8 * (k / 2) + group) * kRanks + 8 * tile + 2 * lane + k % 2] = sums[tile][k];
      }
    }
  }

  // The left operand for sixteen tokens; value(i, rank, tile) is asked for the lane's four tokens, token_of(0 .. 3).
  template <typename Value>
  static __device__ void make_left(Value value, uint4 (&left)[kLefts]) {
    int group = threadIdx.x % 32 / 4;
    uint32_t low[kTiles][kFloatParts], high[kTiles][kFloatParts];  // tokens from 0 and from 8 on
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      int rank = kRanks == 4 ? group % 4 : 8 * tile + group;
      split(value(0, rank, tile), value(1, rank, tile), low[tile]);
      split(value(2, rank, tile), value(3, rank, tile), high[tile]);
    }
    if constexpr (kRanks == 4) {
      bool first = group < 4;
      left[0] = make_uint4(first ? low[0][0] : low[0][1], first ? low[0][2] : 0, first ? high[0][0] : high[0][1],
                           first ? high[0][2] : 0);
    } else if constexpr (kRanks == 8) {
      left[0] = make_uint4(low[0][0], low[0][1], high[0][0], high[0][1]);
      left[1] = make_uint4(low[0][2], 0, high[0][2], 0);
    } else {
#pragma unroll
      for (int i = 0; i < kFloatParts; ++i) left[i] = make_uint4(low[0][i], low[1][i], high[0][i], high[1][i]);
    }
  }

  // sums += left times eight columns of sixteen tokens, of which `low` and `high` have eight each.
  static __device__ void accumulate(uint32_t low, uint32_t high, const uint4 (&left)[kLefts], float (&sums)[4]) {
#pragma unroll
    for (int k = 0; k < kLefts; ++k) mma(sums, {left[k].x, left[k].y, left[k].z, left[k].w}, low, high);
  }

  // Hands the two neighbouring columns of each rank that the lane holds of eight to store(rank, values).
  template <typename Store>
  static __device__ void results(const float (&sums)[4], Store store) {
    int group = threadIdx.x % 32 / 4;
    float2 upper = make_float2(sums[0], sums[1]), lower = make_float2(sums[2], sums[3]);
    if constexpr (kRanks == 4) {  // rows four apart
      upper.x += __shfl_xor_sync(~0u, upper.x, 16);
      upper.y += __shfl_xor_sync(~0u, upper.y, 16);
    }
    if constexpr (kRanks == 16) store(group + 8, lower);
    else upper = make_float2(upper.x + lower.x, upper.y + lower.y);
    if (kRanks != 4 || group < 4) store(group, upper);
  }
};

}  // namespace pnb::cuda::lora
