// Sums over several rows at once, for blocks in which a thread holds eight columns of each.
#pragma once

#include "cuda/kernels/bulk.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/reduce.cuh"

namespace pnb::cuda {

constexpr int kRowColumns = 8;
constexpr int kMostRowThreads = 1024;
constexpr int kMostRowWarps = kMostRowThreads / kWarp;

// Rows of some operands on their way to a block, kRows of each at a stage. They lie at the start of dynamic shared memory.
template <typename T, int kRows, int kOperands>
class RowRing {
 public:
  __device__ RowRing(const T* const (&operands)[kOperands], const int64_t (&strides)[kOperands], int h, int stages, int64_t first, int64_t end)
      : h_(h), stages_(stages), next_(first), end_(end) {
#pragma unroll
    for (int k = 0; k < kOperands; ++k) operands_[k] = operands[k], strides_[k] = strides[k];
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages; ++i) barrier_init(barriers() + i);
      barrier_init_visible();
      for (int i = 0; i < stages; ++i) fill(i);
    }
    __syncthreads();
  }

  // Waits for a stage and reads the thread's columns of it.
  __device__ void take(Pack<T, kRowColumns> (&rows)[kOperands][kRows], int column) {
    barrier_wait(barriers() + stage_, phase_);
#pragma unroll
    for (int k = 0; k < kOperands; ++k) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) rows[k][i] = Pack<T, kRowColumns>::load(row(stage_, k, i) + column);
    }
  }

  // Once all threads have taken a stage, the rows that will be its next are asked for.
  __device__ void refill() {
    if (threadIdx.x == 0) fill(stage_);
    if (++stage_ < stages_) return;
    stage_ = 0;
    phase_ ^= 1;
  }

  __device__ char* after() { return memory() + sizeof(T) * kRows * kOperands * stages_ * h_; }

 private:
  static constexpr int kMostStages = 4;

  __device__ static uint64_t* barriers() {
    __shared__ uint64_t barriers[kMostStages];
    return barriers;
  }
  __device__ static char* memory() {
    extern __shared__ __align__(128) char row_memory[];
    return row_memory;
  }
  __device__ T* row(int stage, int operand, int i) {
    return reinterpret_cast<T*>(memory()) + static_cast<int64_t>((stage * kOperands + operand) * kRows + i) * h_;
  }

  // By one thread.
  __device__ void fill(int stage) {
    if (next_ >= end_) return;
    int rows = static_cast<int>(min(static_cast<int64_t>(kRows), end_ - next_));
    uint32_t bytes = static_cast<uint32_t>(h_ * sizeof(T));
    barrier_expect(barriers() + stage, bytes * rows * kOperands);
    for (int i = 0; i < rows; ++i) {
#pragma unroll
      for (int k = 0; k < kOperands; ++k) copy_bulk(row(stage, k, i), operands_[k] + (next_ + i) * strides_[k], bytes, barriers() + stage);
    }
    next_ += kRows;
  }

  const T* operands_[kOperands];
  int64_t strides_[kOperands];
  int h_, stages_, stage_ = 0;
  uint32_t phase_ = 0;
  int64_t next_, end_;  // rows that were not asked for; next_ counts in thread 0
};

// What each warp found of each row. A block alternates between two of them: one barrier for each set of rows is then enough.
template <int kRows>
struct Statistics {
  float2 of[kMostRowWarps][kRows];
};

struct Moments {
  float mean, variance;
};

// Rows change places with lanes: lane l ends with row l / (32 / kRows) of the warp's kRows rows, combined over all lanes.
// combine(a, b, n) combines what n lanes found with what n others did.
template <int kRows, typename Combine>
__device__ float2 combine_rows(float2 (&of)[kRows], Combine combine) {
  static_assert(kRows == 1 || kRows == 2 || kRows == 4);
  int lane = threadIdx.x % kWarp;
  int lanes = 1;
#pragma unroll
  for (int rows = kRows; rows > 1; rows /= 2) {
    int mask = kWarp * rows / (2 * kRows);
    bool upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < rows / 2; ++i) {
      float2 give = upper ? of[i] : of[i + rows / 2];
      float2 keep = upper ? of[i + rows / 2] : of[i];
      of[i] = combine(keep, shuffle_xor(give, mask), lanes);
    }
    lanes *= 2;
  }
#pragma unroll
  for (int mask = kWarp / kRows / 2; mask > 0; mask /= 2) {
    of[0] = combine(of[0], shuffle_xor(of[0], mask), lanes);
    lanes *= 2;
  }
  return of[0];
}

// Leaves what the warp found of its rows to the block. The first mask above halves the lanes by kWarp / 2, so lanes of a row
// are neighbours.
// `met` runs right after the barrier.
template <int kRows, typename Met>
__device__ void leave(float2 found, Statistics<kRows>& shared, Met met) {
  constexpr int kLanes = kWarp / kRows;
  int lane = threadIdx.x % kWarp;
  if (lane % kLanes == 0) shared.of[threadIdx.x / kWarp][lane / kLanes] = found;
  __syncthreads();
  met();
}

__device__ inline float2 lane_value(float2 v, int lane) { return make_float2(__shfl_sync(~0u, v.x, lane), __shfl_sync(~0u, v.y, lane)); }

// of[i] becomes the sum of of[i] over the block, for every thread.
template <int kRows, typename Met>
__device__ void sums_of_rows(float2 (&of)[kRows], Statistics<kRows>& shared, Met met) {
  leave(combine_rows(of, [](float2 a, float2 b, int) { return a + b; }), shared, met);
  int lane = threadIdx.x % kWarp;
  int warps = static_cast<int>(blockDim.x) / kWarp;
  float2 sum = make_float2(0.0f, 0.0f);
  for (int warp = lane / kRows; warp < warps; warp += kWarp / kRows) sum = sum + shared.of[warp][lane % kRows];
#pragma unroll
  for (int mask = kRows; mask < kWarp; mask *= 2) sum = sum + shuffle_xor(sum, mask);
#pragma unroll
  for (int i = 0; i < kRows; ++i) of[i] = lane_value(sum, i);
}

// From the sum of a thread's kRowColumns values and the sum of their squared distances from their own mean, the mean and the
// biased variance of whole rows of h values. Two sets of n values each have together the sum of their squares about their own
// means, and the squared difference of their sums over 2 n (Chan, Golub, LeVeque): nothing large is subtracted from anything.
template <int kRows, typename Met>
__device__ void moments_of_rows(float2 (&of)[kRows], Statistics<kRows>& shared, int h, Moments (&moments)[kRows], Met met) {
  leave(combine_rows(of,
                     [](float2 a, float2 b, int lanes) {
                       float apart = a.x - b.x;
                       return make_float2(a.x + b.x, a.y + b.y + apart * apart * (0.5f / kRowColumns / static_cast<float>(lanes)));
                     }),
        shared, met);
  constexpr float kWarpValues = kRowColumns * kWarp;
  int lane = threadIdx.x % kWarp;
  int warps = static_cast<int>(blockDim.x) / kWarp;
  float sum = 0.0f;
  for (int warp = lane / kRows; warp < warps; warp += kWarp / kRows) sum += shared.of[warp][lane % kRows].x;
#pragma unroll
  for (int mask = kRows; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
  float mean = sum / static_cast<float>(h);
  float squares = 0.0f;
  for (int warp = lane / kRows; warp < warps; warp += kWarp / kRows) {
    float2 found = shared.of[warp][lane % kRows];
    float distance = found.x * (1.0f / kWarpValues) - mean;
    squares += found.y + kWarpValues * distance * distance;
  }
#pragma unroll
  for (int mask = kRows; mask < kWarp; mask *= 2) squares += shuffle_xor(squares, mask);
  float variance = squares / static_cast<float>(h);
#pragma unroll
  for (int i = 0; i < kRows; ++i) moments[i] = {__shfl_sync(~0u, mean, i), __shfl_sync(~0u, variance, i)};
}

}  // namespace pnb::cuda
