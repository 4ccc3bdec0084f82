// How up to sixteen ranks of floats fill the tensor cores' operands. A float is three bf16; where ranks are few, the parts of
// one rank lie beside each other in one operand instead of in three products.
#pragma once

#include "cuda/kernels/lora/fragment.cuh"

namespace pnb::cuda::lora {

// The transpose of an 8 x 8 matrix of bf16: lane 4 g + t holds row g, columns 2 t and 2 t + 1 of it, and gets rows 2 t and
// 2 t + 1 of column g.
__device__ inline uint32_t transpose(uint32_t v) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(v));
  return result;
}

__device__ inline uint32_t word(const Pack<__nv_bfloat16, kRun>& run, int i) { return reinterpret_cast<const uint32_t*>(run.v)[i]; }

template <int kRanks>
struct Parts {
  static_assert(kRanks == 4 || kRanks == 8 || kRanks == 16);

  // Products over columns: rows of x times the ranks' factors.
  static constexpr int kTiles = kRanks == 16 ? 2 : 1;                 // of eight columns of the result
  static constexpr int kFactors = kRanks == 4 ? 2 : kRanks == 8 ? 3 : 6;
  // Products over tokens: the ranks' left values times columns of x.
  static constexpr int kLefts = kRanks == 4 ? 1 : kRanks == 8 ? 2 : 3;

  // The factors of a lane's eight columns from `neuron` on, for both products that these make; zero outside.
  template <typename Rank>
  static __device__ void load_factor(const Rank* ranks, int r, int64_t neuron, bool inside, uint32_t (&factor)[2][kFactors][2]) {
    int group = threadIdx.x % 32 / 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      int rank = kRanks == 4 ? group % 4 : 8 * tile + group;
      float v[kRun];
      if (inside && rank < r) {
        const float* from = ranks[rank].factor + neuron * ranks[rank].factor_column;
        int64_t step = ranks[rank].factor_column;
        if (step == 1 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
          auto pack = Pack<float, kRun>::load(from);
#pragma unroll
          for (int i = 0; i < kRun; ++i) v[i] = pack.v[i];
        } else {
#pragma unroll
          for (int i = 0; i < kRun; ++i) v[i] = from[i * step];
        }
      } else {
#pragma unroll
        for (int i = 0; i < kRun; ++i) v[i] = 0.0f;
      }
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

  // sums += rows g and g + 8 of x times the factors.
  static __device__ void project(const Pack<__nv_bfloat16, kRun> (&rows)[2], const uint32_t (&factor)[2][kFactors][2], float (&sums)[kTiles][4]) {
#pragma unroll
    for (int product = 0; product < 2; ++product) {
      uint32_t a[4] = {word(rows[0], 2 * product), word(rows[1], 2 * product), word(rows[0], 2 * product + 1), word(rows[1], 2 * product + 1)};
#pragma unroll
      for (int i = 0; i < kFactors; ++i) mma(sums[kTiles == 1 ? 0 : i / kFloatParts], a, factor[product][i][0], factor[product][i][1]);
    }
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

  // The left operand for sixteen tokens, of lane `lane`; value(token, rank) for all kRanks of them.
  template <typename Value>
  static __device__ void make_left(int lane, Value value, uint4 (&left)[kLefts]) {
    int group = lane / 4, token = 2 * (lane % 4);
    uint32_t low[kTiles][kFloatParts], high[kTiles][kFloatParts];  // tokens from 0 and from 8 on
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      int rank = kRanks == 4 ? group % 4 : 8 * tile + group;
      split(value(token, rank), value(token + 1, rank), low[tile]);
      split(value(token + 8, rank), value(token + 9, rank), high[tile]);
    }
    if constexpr (kRanks == 4) {
      bool first = group < 4;
      left[0] = make_uint4(first ? low[0][0] : low[0][1], first ? low[0][2] : 0, first ? high[0][0] : high[0][1], first ? high[0][2] : 0);
    } else if constexpr (kRanks == 8) {
      left[0] = make_uint4(low[0][0], low[0][1], high[0][0], high[0][1]);
      left[1] = make_uint4(low[0][2], 0, high[0][2], 0);
    } else {
#pragma unroll
      for (int i = 0; i < kFloatParts; ++i) left[i] = make_uint4(low[0][i], low[1][i], high[0][i], high[1][i]);
    }
  }

  // sums[i] += left times columns 8 t + 2 i and 8 t + 2 i + 1 of sixteen tokens.
  static __device__ void accumulate(const Pack<__nv_bfloat16, kRun> (&rows)[2], const uint4 (&left)[kLefts], float (&sums)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t b0 = transpose(word(rows[0], i)), b1 = transpose(word(rows[1], i));
#pragma unroll
      for (int k = 0; k < kLefts; ++k) mma(sums[i], {left[k].x, left[k].y, left[k].z, left[k].w}, b0, b1);
    }
  }

  // Hands eight neighbouring columns of each rank that the lane holds to store(rank, values).
  template <typename Store>
  static __device__ void results(float (&sums)[4][4], Store store) {
    int group = threadIdx.x % 32 / 4;
    float first[kRun], second[kRun];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        float upper = sums[i][k], lower = sums[i][2 + k];
        if constexpr (kRanks == 4) upper += __shfl_xor_sync(~0u, upper, 16);  // rows four apart
        first[2 * i + k] = kRanks == 16 ? upper : upper + lower;
        second[2 * i + k] = lower;
      }
    }
    if (kRanks != 4 || group < 4) store(group, first);
    if constexpr (kRanks == 16) store(group + 8, second);
  }
};

}  // namespace pnb::cuda::lora
