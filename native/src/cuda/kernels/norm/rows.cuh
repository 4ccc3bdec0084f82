// Sums over several rows at once, for blocks in which a thread holds eight columns of each.
#pragma once

#include "cuda/kernels/bulk.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/reduce.cuh"

namespace pnb::cuda {

constexpr int kRowColumns = 8;
constexpr int kMostRowThreads = 1024;
constexpr int kMostRowWarps = kMostRowThreads / kWarp;
constexpr int kMostRowStages = 8;
constexpr int kRowPadding = 64;  // bytes behind a row in shared memory: the same columns of neighbours lie in different banks

// Rows of some operands on their way to a block, kRows of each at a stage. They lie at the start of dynamic shared memory.
template <typename T, int kRows, int kOperands>
class RowRing {
 public:
  __device__ RowRing(const T* const (&operands)[kOperands], const int64_t (&strides)[kOperands], int h, int stages, int64_t first,
                     int64_t end)
      : h_(h), pitch_(h * static_cast<int>(sizeof(T)) + kRowPadding), stages_(stages), next_(first), end_(end) {
#pragma unroll
    for (int k = 0; k < kOperands; ++k) operands_[k] = operands[k], strides_[k] = strides[k];
    if (threadIdx.x < kWarp) {
      int lane = static_cast<int>(threadIdx.x);
      if (lane < stages) barriers()[lane].init(1);
      fence_barrier_init();
      __syncwarp();
      // All stages at once, a row a lane: one thread would take longer to ask than the first row to come.
      int64_t rows = end - first - lane * kRows;
      if (lane < stages && rows > 0) expect(lane, rows);
      __syncwarp();
      if (lane < stages * kRows && first + lane < end) ask(lane / kRows, lane % kRows, first + lane);
    }
    next_ += stages * kRows;
    __syncthreads();
  }

  // Waits for a stage and reads the thread's columns of it.
  __device__ void take(Pack<T, kRowColumns> (&rows)[kOperands][kRows], int column) {
    barriers()[stage_].wait(phase_);
#pragma unroll
    for (int k = 0; k < kOperands; ++k) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) rows[k][i] = Pack<T, kRowColumns>::load(row(stage_, k, i) + column);
    }
  }

  // Once all threads have taken a stage, the rows that will be its next are asked for.
  __device__ void refill() {
    if (threadIdx.x < kWarp && next_ < end_) {
      int lane = static_cast<int>(threadIdx.x);
      if (lane == 0) expect(stage_, end_ - next_);
      __syncwarp();
      if (lane < kRows && next_ + lane < end_) ask(stage_, lane, next_ + lane);
    }
    next_ += kRows;
    if (++stage_ < stages_) return;
    stage_ = 0;
    phase_ ^= 1;
  }

  __device__ char* after() { return memory() + kRows * kOperands * stages_ * pitch_; }

 private:
  __device__ static Barrier* barriers() {
    __shared__ Barrier barriers[kMostRowStages];
    return barriers;
  }
  __device__ static char* memory() {
    extern __shared__ __align__(128) char row_memory[];
    return row_memory;
  }
  __device__ T* row(int stage, int operand, int i) {
    return reinterpret_cast<T*>(memory() + ((stage * kOperands + operand) * kRows + i) * pitch_);
  }

  // A stage's phase waits for so many rows, or for all that it has room for.
  __device__ void expect(int stage, int64_t rows) {
    auto bytes = static_cast<uint32_t>(h_ * sizeof(T)) * kOperands;
    barriers()[stage].arrive_and_expect(bytes * static_cast<uint32_t>(min(rows, static_cast<int64_t>(kRows))));
  }
  __device__ void ask(int stage, int i, int64_t row_of_matrix) {
#pragma unroll
    for (int k = 0; k < kOperands; ++k) {
      copy_bulk(row(stage, k, i), operands_[k] + row_of_matrix * strides_[k], static_cast<uint32_t>(h_ * sizeof(T)),
                barriers()[stage]);
    }
  }

  const T* operands_[kOperands];
  int64_t strides_[kOperands];
  int h_, pitch_, stages_, stage_ = 0;
  uint32_t phase_ = 0;
  int64_t next_, end_;  // rows that were not asked for
};

// What each warp found of each row. A block alternates between two of them: one barrier for each set of rows is then enough.
template <int kRows>
struct Statistics {
  float2 of[kMostRowWarps][kRows];
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
// are neighbours. `met` runs right after the barrier.
template <int kRows, typename Met>
__device__ void leave(float2 found, Statistics<kRows>& shared, Met met) {
  constexpr int kLanes = kWarp / kRows;
  int lane = threadIdx.x % kWarp;
  if (lane % kLanes == 0) shared.of[threadIdx.x / kWarp][lane / kLanes] = found;
  __syncthreads();
  met();
}

__device__ inline float2 lane_value(float2 v, int lane) {
  return make_float2(__shfl_sync(~0u, v.x, lane), __shfl_sync(~0u, v.y, lane));
}

// What a lane reads of what the warps left of row lane % kRows: of every kWarp / kRows warps one.
template <int kMostThreads, int kRows>
struct Found {
  static constexpr int kLanes = kWarp / kRows;
  static constexpr int kCount = (kMostThreads / kWarp + kLanes - 1) / kLanes;
  float2 of[kCount];
  bool any[kCount];

  __device__ explicit Found(const Statistics<kRows>& shared) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      int warp = i * kLanes + lane / kRows;
      any[i] = warp < static_cast<int>(blockDim.x) / kWarp;
      of[i] = any[i] ? shared.of[warp][lane % kRows] : make_float2(0.0f, 0.0f);
    }
  }

  // Over the lanes of a row.
  template <typename V>
  static __device__ V sum(V v) {
#pragma unroll
    for (int mask = kRows; mask < kWarp; mask *= 2) v = v + shuffle_xor(v, mask);
    return v;
  }
};

// scale times the sums of of[lane % kRows] over the block.
template <int kMostThreads, int kRows, typename Met>
__device__ float2 sums_of_rows(float2 (&of)[kRows], Statistics<kRows>& shared, float scale, Met met) {
  leave(combine_rows(of, [](float2 a, float2 b, int) { return a + b; }), shared, met);
  Found<kMostThreads, kRows> found(shared);
  float2 sum = found.of[0];
#pragma unroll
  for (int i = 1; i < found.kCount; ++i) sum = sum + found.of[i];
  sum = found.sum(sum);
  return make_float2(scale * sum.x, scale * sum.y);
}

// From the sum of a thread's kRowColumns values and the sum of their squared distances from their own mean, the mean and rstd
// of row lane % kRows, of 1 / inverse_h values. Two sets of n values each have together the sum of their squares about their
// own means, and the squared difference of their sums over 2 n (Chan, Golub, LeVeque): nothing large is subtracted from
// anything.
template <int kMostThreads, int kRows, typename Met>
__device__ float2 statistics_of_rows(float2 (&of)[kRows], Statistics<kRows>& shared, float inverse_h, float epsilon, Met met) {
  leave(combine_rows(of,
                     [](float2 a, float2 b, int lanes) {
                       float apart = a.x - b.x;
                       return make_float2(a.x + b.x, a.y + b.y + apart * apart * (0.5f / kRowColumns / static_cast<float>(lanes)));
                     }),
        shared, met);
  constexpr float kWarpValues = kRowColumns * kWarp;
  Found<kMostThreads, kRows> found(shared);
  float sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int i = 0; i < found.kCount; ++i) sum += found.of[i].x;
  float mean = found.sum(sum) * inverse_h;
#pragma unroll
  for (int i = 0; i < found.kCount; ++i) {
    float distance = found.of[i].x * (1.0f / kWarpValues) - mean;
    if (found.any[i]) squares += found.of[i].y + kWarpValues * distance * distance;
  }
  return make_float2(mean, 1.0f / sqrtf(found.sum(squares) * inverse_h + epsilon));
}

}  // namespace pnb::cuda
