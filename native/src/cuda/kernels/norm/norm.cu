#include "cuda/kernels/norm/norm.h"

#include <algorithm>
#include <type_traits>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/lora/lora.h"
#include "cuda/kernels/lora/parts.cuh"
#include "cuda/kernels/lora/passes.h"
#include "cuda/kernels/norm/rows.cuh"
#include "cuda/kernels/reduce.cuh"

// Where a warp's columns divide a row, a block takes many rows and each of its threads the same eight columns of all of them:
// gamma and beta stay in registers, bulk copies bring the next rows while these are reduced, and one barrier serves several
// rows. A mean over the rows of a pool is then a sum that a thread keeps.
// Other rows are a block's each. Aligned ones lie in registers, up to four 16-byte vectors a thread, and are read once; the
// rest are read again for each sum. An operand that is written over has been read before.

namespace pnb::cuda {

namespace {

namespace cg = cooperative_groups;

constexpr int kVectors = 4;
constexpr int kThreads = 512;       // at most; 512 * 4 vectors hold 16384 elements of bf16, 8192 of f32
constexpr int kPlainThreads = 256;  // of the kernels for other rows
constexpr int kPoolRows = 16;       // of a block, where it has a cluster to share a pool with
constexpr int kProjectedRows = 16;  // of a block that projects them: the tensor cores' sixteen
constexpr size_t kMostProjectedBytes = 200 << 10;  // that these may fill

// Ranks that rows are projected on when they have been normed.
struct Projection {
  lora::RankOfProjection ranks[lora::kStreamRanks];
  int r;  // 0: none
};

struct Forward {
  const void* x;
  const float* gamma;
  const float* beta;
  void* y;
  float* mean;  // or NULL
  float* rstd;
  float* pooled;  // or NULL
  const int32_t* valid_rows;  // or NULL
  int64_t m, x_stride, y_stride, pool_rows;
  int64_t rows;  // of a block that takes several
  int stages;    // of rows on their way to it
  int h;
  float inverse_h, epsilon;
  bool parameters_aligned;
  Projection projection;

  // How many rows of the pool that starts at `first` count.
  __device__ int64_t pooled_rows(int64_t first) const {
    int64_t valid = valid_rows == nullptr ? m : min(m, static_cast<int64_t>(*valid_rows));
    return max(static_cast<int64_t>(0), min(pool_rows, valid - first));
  }
};

struct Backward {
  const void* dy;
  const void* x;
  const float* mean;
  const float* rstd;
  const float* gamma;
  const void* residual;  // or NULL
  void* dx;
  int64_t m, dy_stride, x_stride, residual_stride, dx_stride;
  int64_t rows;  // of a block that takes several
  int stages;    // of rows on their way to it
  int h;
  float inverse_h;
  bool parameters_aligned;
};

template <typename T>
__device__ const T* row_of(const void* data, int64_t stride) {
  return static_cast<const T*>(data) + blockIdx.x * stride;
}
template <typename T>
__device__ T* row_of(void* data, int64_t stride) {
  return static_cast<T*>(data) + blockIdx.x * stride;
}

// kCount floats of a parameter, starting where a 16-byte vector of T starts; the parameters themselves need not be aligned.
template <int kCount>
__device__ void load_parameter(const float* p, bool aligned, float (&v)[kCount]) {
  if (aligned) {
    auto pack = Pack<float, kCount>::load(p);
#pragma unroll
    for (int j = 0; j < kCount; ++j) v[j] = pack.v[j];
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) v[j] = p[j];
  }
}

__device__ void keep_statistics(const Forward& p, float mean, float rstd) {
  if (threadIdx.x != 0 || p.mean == nullptr) return;
  p.mean[blockIdx.x] = mean;
  p.rstd[blockIdx.x] = rstd;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) forward_vectors(Forward p) {
  constexpr int kCount = kVector<T>;
  __shared__ float shared[kWarp];
  const T* x = row_of<T>(p.x, p.x_stride);
  Pack<T, kCount> row[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    int at = (i * blockDim.x + threadIdx.x) * kCount;
    if (at < p.h) row[i] = Pack<T, kCount>::load(x + at);
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if ((i * blockDim.x + threadIdx.x) * kCount >= p.h) continue;
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum += to_float(row[i].v[j]);
  }
  float mean = block_sum(sum, shared) / p.h;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if ((i * blockDim.x + threadIdx.x) * kCount >= p.h) continue;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      float distance = to_float(row[i].v[j]) - mean;
      squares += distance * distance;
    }
  }
  float rstd = 1.0f / sqrtf(block_sum(squares, shared) / p.h + p.epsilon);
  T* y = row_of<T>(p.y, p.y_stride);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    int at = (i * blockDim.x + threadIdx.x) * kCount;
    if (at >= p.h) continue;
    float gamma[kCount], beta[kCount];
    load_parameter(p.gamma + at, p.parameters_aligned, gamma);
    load_parameter(p.beta + at, p.parameters_aligned, beta);
#pragma unroll
    for (int j = 0; j < kCount; ++j) row[i].v[j] = from_float<T>((to_float(row[i].v[j]) - mean) * rstd * gamma[j] + beta[j]);
    row[i].store(y + at);
  }
  keep_statistics(p, mean, rstd);
}

template <typename T>
__global__ void forward_plain(Forward p) {
  __shared__ float shared[kWarp];
  const T* x = row_of<T>(p.x, p.x_stride);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < p.h; i += blockDim.x) sum += to_float(x[i]);
  float mean = block_sum(sum, shared) / p.h;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < p.h; i += blockDim.x) squares += (to_float(x[i]) - mean) * (to_float(x[i]) - mean);
  float rstd = 1.0f / sqrtf(block_sum(squares, shared) / p.h + p.epsilon);
  T* y = row_of<T>(p.y, p.y_stride);
  for (int i = threadIdx.x; i < p.h; i += blockDim.x) y[i] = from_float<T>((to_float(x[i]) - mean) * rstd * p.gamma[i] + p.beta[i]);
  keep_statistics(p, mean, rstd);
}

// A block takes a pool's rows, one after another, and a thread adds up its own columns in memory.
template <typename T>
__global__ void forward_pooled_plain(Forward p) {
  __shared__ float shared[kWarp];
  int64_t first = blockIdx.x * p.pool_rows;
  int64_t counted = p.pooled_rows(first);
  float* pooled = p.pooled + static_cast<int64_t>(blockIdx.x) * p.h;
  for (int i = threadIdx.x; i < p.h; i += blockDim.x) pooled[i] = 0.0f;
  for (int64_t row = first; row < min(p.m, first + p.pool_rows); ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    T* y = static_cast<T*>(p.y) + row * p.y_stride;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.h; i += blockDim.x) sum += to_float(x[i]);
    float mean = block_sum(sum, shared) / p.h;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < p.h; i += blockDim.x) squares += (to_float(x[i]) - mean) * (to_float(x[i]) - mean);
    float rstd = 1.0f / sqrtf(block_sum(squares, shared) / p.h + p.epsilon);
    for (int i = threadIdx.x; i < p.h; i += blockDim.x) {
      float value = (to_float(x[i]) - mean) * rstd * p.gamma[i] + p.beta[i];
      y[i] = from_float<T>(value);
      if (row - first < counted) pooled[i] += value;
    }
    if (threadIdx.x == 0 && p.mean != nullptr) {
      p.mean[row] = mean;
      p.rstd[row] = rstd;
    }
  }
  for (int i = threadIdx.x; i < p.h; i += blockDim.x) pooled[i] = counted > 0 ? pooled[i] / static_cast<float>(counted) : 0.0f;
}

// A bit for each of kRows rows, of which so many are left. Comparisons would let the compiler write the rest of a loop again for
// every number of rows.
template <int kRows>
__device__ uint32_t rows_there(int left) {
  return left >= kRows ? (1u << kRows) - 1 : (1u << left) - 1;
}

// (v - mean) * rstd * gamma + beta. What rounds to bf16 takes the mean off in the product: its last bits are far below.
template <typename T>
__device__ void normalise(float (&v)[kRowColumns], float mean, float rstd, const float (&gamma)[kRowColumns],
                          const float (&beta)[kRowColumns]) {
#pragma unroll
  for (int j = 0; j < kRowColumns; ++j) {
    float normal;
    if constexpr (sizeof(T) == sizeof(float)) normal = (v[j] - mean) * rstd;
    else normal = v[j] * rstd - mean * rstd;
    v[j] = normal * gamma[j] + beta[j];
  }
}

// What the warps of a block find of their rows' projections.
__host__ __device__ constexpr int projection_bytes(int ranks, int threads) {
  return threads / kWarp * kProjectedRows * ranks * static_cast<int>(sizeof(float));
}

// h[first + i] = row i of sixteen in shared memory, of which `rows` are there, times the factors; every warp has some columns of
// all rows. `found_memory` has room for [warps][16][kRanks] floats.
template <int kRanks>
__device__ void project_rows(const Projection& p, const __nv_bfloat16* rows_of_tile, int pitch, int h, int64_t first, int rows,
                             char* found_memory) {
  using Form = lora::Parts<kRanks>;
  auto* found = reinterpret_cast<float*>(found_memory);
  int warps = static_cast<int>(blockDim.x) / kWarp;
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  float sums[Form::kTiles][4] = {};
  const char* upper = reinterpret_cast<const char*>(rows_of_tile + lane % 4 * lora::kRun) + lane / 4 * pitch;
  const char* lower = upper + 8 * pitch;
  __syncthreads();
#pragma unroll 2
  for (int from = warp * kWarp; from < h; from += warps * kWarp) {
    uint32_t factor[2][Form::kFactors][2];
    Form::load_factor(
        p.ranks, p.r,
        [&](const lora::RankOfProjection& rank, float(&v)[lora::kRun]) { rank.load(from + lane % 4 * lora::kRun, v); }, factor);
    Pack<__nv_bfloat16, lora::kRun> both[2] = {
        Pack<__nv_bfloat16, lora::kRun>::load(reinterpret_cast<const __nv_bfloat16*>(upper) + from),
        Pack<__nv_bfloat16, lora::kRun>::load(reinterpret_cast<const __nv_bfloat16*>(lower) + from)};
#pragma unroll
    for (int product = 0; product < 2; ++product) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = lora::word(both[i % 2], 2 * product + i / 2);
      Form::project(words, factor[product], sums);
    }
  }
  Form::store_low(sums, found + warp * kProjectedRows * kRanks);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < rows * kRanks; i += static_cast<int>(blockDim.x)) {
    int rank = i % kRanks;
    if (rank >= p.r) continue;
    float sum = 0.0f;
    for (int k = 0; k < warps; ++k) sum += found[k * kProjectedRows * kRanks + i];
    p.ranks[rank].h[(first + i / kRanks) * p.ranks[rank].h_row] = sum;
  }
}

// A block takes p.rows rows, of one pool where there are pools; the blocks of a cluster share a pool and their sums meet in
// shared memory. Where the rows are projected, on kRanks ranks, they stay where they were brought, normed.
template <typename T, int kRows, int kMostThreads, bool kPooled, int kRanks>
__global__ void __launch_bounds__(kMostThreads) forward_rows(const __grid_constant__ Forward p) {
  __shared__ Statistics<kRows> shared[2];
  after_previous();
  int64_t first = blockIdx.x * p.rows;
  int64_t end = min(p.m, first + p.rows);
  int64_t pool_first = 0, counted_end = 0;
  if constexpr (kPooled) {
    pool_first = blockIdx.x / cg::this_cluster().num_blocks() * p.pool_rows;
    first = pool_first + cg::this_cluster().block_rank() * p.rows;
    end = min(min(p.m, pool_first + p.pool_rows), first + p.rows);
    counted_end = pool_first + p.pooled_rows(pool_first);
  }
  int column = threadIdx.x * kRowColumns;
  RowRing<T, kRows, 1> ring({static_cast<const T*>(p.x)}, {p.x_stride}, p.h, p.stages, first, end);
  T* y = static_cast<T*>(p.y) + first * p.y_stride + column;
  float gamma[kRowColumns], beta[kRowColumns], sums[kRowColumns] = {};
  load_parameter(p.gamma + column, p.parameters_aligned, gamma);
  load_parameter(p.beta + column, p.parameters_aligned, beta);
  int rows = static_cast<int>(end - first);
  int counted = static_cast<int>(counted_end - first);
  int buffer = 0;
#pragma unroll 1
  for (int row = 0; row < rows; row += kRows, buffer ^= 1) {
    Pack<T, kRowColumns> now[1][kRows];
    ring.take(now, column);
    float2 of[kRows];  // sum, and sum of squared distances from the mean
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float v[kRowColumns], squares = 0.0f;
      to_floats(now[0][i], v);
      float sum = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
#pragma unroll
      for (int j = 0; j < kRowColumns; ++j) {
        float distance = v[j] - sum * (1.0f / kRowColumns);
        squares += distance * distance;
      }
      of[i] = make_float2(sum, squares);
    }
    float2 found = statistics_of_rows<kMostThreads>(of, shared[buffer], p.inverse_h, p.epsilon, [&] { ring.refill(); });
    int own = row + static_cast<int>(threadIdx.x);
    if (threadIdx.x < kRows && own < rows && p.mean != nullptr) {
      p.mean[first + own] = found.x;
      p.rstd[first + own] = found.y;
    }
    uint32_t there = rows_there<kRows>(rows - row), counts = rows_there<kRows>(max(0, counted - row));
#pragma unroll
    for (int i = 0; i < kRows; ++i, y += p.y_stride) {
      float2 statistics = lane_value(found, i);
      float v[kRowColumns];
      to_floats(now[0][i], v);
      normalise<T>(v, statistics.x, statistics.y, gamma, beta);
      if (kPooled && (counts >> i & 1)) {
#pragma unroll
        for (int j = 0; j < kRowColumns; ++j) sums[j] += v[j];
      }
      from_floats(v, now[0][i]);
      if (there >> i & 1) now[0][i].store(y);
      if constexpr (kRanks > 0) now[0][i].store(ring.place(row + i) + column);
    }
  }
  if constexpr (kRanks > 0) project_rows<kRanks>(p.projection, ring.place(0), ring.pitch(), p.h, first, rows, ring.after());
  if constexpr (kPooled) {
    cg::cluster_group cluster = cg::this_cluster();
    if (cluster.num_blocks() > 1) {
      float* pool_sums = reinterpret_cast<float*>(ring.after() + projection_bytes(kRanks, static_cast<int>(blockDim.x)));
#pragma unroll
      for (int j = 0; j < kRowColumns; ++j) pool_sums[column + j] = sums[j];
      cluster.sync();
      if (cluster.block_rank() == 0) {
        for (unsigned other = 1; other < cluster.num_blocks(); ++other) {
          const float* found = cluster.map_shared_rank(pool_sums + column, other);
#pragma unroll
          for (int j = 0; j < kRowColumns; ++j) sums[j] += found[j];
        }
      }
      cluster.sync();  // before a block ends, the first has read
    }
    if (cluster.block_rank() == 0) {
      int64_t pool_counted = counted_end - pool_first;
      Pack<float, kRowColumns> pooled;
#pragma unroll
      for (int j = 0; j < kRowColumns; ++j) pooled.v[j] = pool_counted > 0 ? sums[j] / static_cast<float>(pool_counted) : 0.0f;
      float* to = p.pooled + pool_first / p.pool_rows * p.h + column;
      if (p.parameters_aligned) {
        pooled.store(to);
      } else {
#pragma unroll
        for (int j = 0; j < kRowColumns; ++j) to[j] = pooled.v[j];
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) backward_vectors(Backward p) {
  constexpr int kCount = kVector<T>;
  __shared__ float2 shared[kWarp];
  const T* x = row_of<T>(p.x, p.x_stride);
  const T* dy = row_of<T>(p.dy, p.dy_stride);
  const T* residual = row_of<T>(p.residual, p.residual_stride);
  Pack<T, kCount> inputs[kVectors], gradients[kVectors], residuals[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    int at = (i * blockDim.x + threadIdx.x) * kCount;
    if (at >= p.h) continue;
    inputs[i] = Pack<T, kCount>::load(x + at);
    gradients[i] = Pack<T, kCount>::load(dy + at);
    if (p.residual != nullptr) residuals[i] = Pack<T, kCount>::load(residual + at);
  }
  float mean = p.mean[blockIdx.x];
  float rstd = p.rstd[blockIdx.x];
  float2 sums{};  // of g and of g times the normalised input, where g = dy * gamma
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    int at = (i * blockDim.x + threadIdx.x) * kCount;
    if (at >= p.h) continue;
    float gamma[kCount];
    load_parameter(p.gamma + at, p.parameters_aligned, gamma);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      float g = to_float(gradients[i].v[j]) * gamma[j];
      sums.x += g;
      sums.y += g * ((to_float(inputs[i].v[j]) - mean) * rstd);
    }
  }
  sums = block_sum(sums, shared);
  float mean_g = sums.x / p.h;
  float mean_gx = sums.y / p.h;
  T* dx = row_of<T>(p.dx, p.dx_stride);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    int at = (i * blockDim.x + threadIdx.x) * kCount;
    if (at >= p.h) continue;
    float gamma[kCount];
    load_parameter(p.gamma + at, p.parameters_aligned, gamma);
    Pack<T, kCount> result;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      float normalised = (to_float(inputs[i].v[j]) - mean) * rstd;
      float d = rstd * (to_float(gradients[i].v[j]) * gamma[j] - mean_g - normalised * mean_gx);
      result.v[j] = from_float<T>(p.residual != nullptr ? d + to_float(residuals[i].v[j]) : d);
    }
    result.store(dx + at);
  }
}

template <typename T>
__global__ void backward_plain(Backward p) {
  __shared__ float2 shared[kWarp];
  const T* x = row_of<T>(p.x, p.x_stride);
  const T* dy = row_of<T>(p.dy, p.dy_stride);
  const T* residual = row_of<T>(p.residual, p.residual_stride);
  T* dx = row_of<T>(p.dx, p.dx_stride);
  float mean = p.mean[blockIdx.x];
  float rstd = p.rstd[blockIdx.x];
  float2 sums{};
  for (int i = threadIdx.x; i < p.h; i += blockDim.x) {
    float g = to_float(dy[i]) * p.gamma[i];
    sums.x += g;
    sums.y += g * ((to_float(x[i]) - mean) * rstd);
  }
  sums = block_sum(sums, shared);
  float mean_g = sums.x / p.h;
  float mean_gx = sums.y / p.h;
  for (int i = threadIdx.x; i < p.h; i += blockDim.x) {
    float normalised = (to_float(x[i]) - mean) * rstd;
    float d = rstd * (to_float(dy[i]) * p.gamma[i] - mean_g - normalised * mean_gx);
    dx[i] = from_float<T>(p.residual != nullptr ? d + to_float(residual[i]) : d);
  }
}

template <typename T, int kRows, int kMostThreads, bool kResidual>
__global__ void __launch_bounds__(kMostThreads) backward_rows(const __grid_constant__ Backward p) {
  constexpr int kOperands = kResidual ? 3 : 2;
  __shared__ Statistics<kRows> shared[2];
  after_previous();
  int64_t first = blockIdx.x * p.rows;
  int64_t end = min(p.m, first + p.rows);
  int column = threadIdx.x * kRowColumns;
  const void* operands[] = {p.x, p.dy, p.residual};
  const int64_t strides[] = {p.x_stride, p.dy_stride, p.residual_stride};
  const T* from[kOperands];
  int64_t stride[kOperands];
#pragma unroll
  for (int k = 0; k < kOperands; ++k) from[k] = static_cast<const T*>(operands[k]), stride[k] = strides[k];
  RowRing<T, kRows, kOperands> ring(from, stride, p.h, p.stages, first, end);
  T* dx = static_cast<T*>(p.dx) + first * p.dx_stride + column;
  // The statistics of the rows of a stage, each in the lanes that will have their sums.
  auto statistics_of = [&](int64_t row) {
    row += threadIdx.x % kRows;
    return row < end ? make_float2(p.mean[row], p.rstd[row]) : make_float2(0.0f, 0.0f);
  };
  float2 next = statistics_of(first);
  float gamma[kRowColumns];
  load_parameter(p.gamma + column, p.parameters_aligned, gamma);
  int rows = static_cast<int>(end - first);
  int buffer = 0;
#pragma unroll 1
  for (int row = 0; row < rows; row += kRows, buffer ^= 1) {
    float2 statistics = next;
    next = statistics_of(first + row + kRows);
    Pack<T, kRowColumns> now[kOperands][kRows];
    ring.take(now, column);
    float2 of[kRows];  // sums of g and of g times the input's distance from its mean, where g = dy * gamma
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float mean = __shfl_sync(~0u, statistics.x, i), x[kRowColumns], g[kRowColumns];
      to_floats(now[0][i], x);
      to_floats(now[1][i], g);
      of[i] = make_float2(0.0f, 0.0f);
#pragma unroll
      for (int j = 0; j < kRowColumns; ++j) {
        g[j] *= gamma[j];
        of[i].x += g[j];
        of[i].y += g[j] * (x[j] - mean);
      }
    }
    float2 means = sums_of_rows<kMostThreads>(of, shared[buffer], p.inverse_h, [&] { ring.refill(); });
    // With n the normalised input, dx = rstd * (g - mean(g) - n * mean(g * n)) + residual.
    float slope = -statistics.y * statistics.y * statistics.y * means.y;
    float offset = -statistics.y * means.x;
    uint32_t there = rows_there<kRows>(rows - row);
#pragma unroll
    for (int i = 0; i < kRows; ++i, dx += p.dx_stride) {
      float mean = __shfl_sync(~0u, statistics.x, i), rstd = __shfl_sync(~0u, statistics.y, i);
      float row_slope = __shfl_sync(~0u, slope, i), row_offset = __shfl_sync(~0u, offset, i);
      float x[kRowColumns], g[kRowColumns], d[kRowColumns];
      to_floats(now[0][i], x);
      to_floats(now[1][i], g);
      if constexpr (kResidual) to_floats(now[kOperands - 1][i], d);
#pragma unroll
      for (int j = 0; j < kRowColumns; ++j) {
        float change = g[j] * gamma[j] * rstd + ((x[j] - mean) * row_slope + row_offset);
        d[j] = kResidual ? d[j] + change : change;
      }
      Pack<T, kRowColumns> result;
      from_floats(d, result);
      if (there >> i & 1) result.store(dx);
    }
  }
}

// Rows for each of about as many blocks as the device holds at once, a multiple of `step`.
int64_t rows_of_block(const Device& device, int64_t m, int threads, int step) {
  int64_t blocks = std::max(2, 512 / threads) * static_cast<int64_t>(device.multiprocessors);
  return round_up(ceil_div(m, blocks), step);
}

// Stages of so many bytes: what keeps the memory busy, and lets two blocks share a multiprocessor.
int stages_of(size_t bytes) {
  constexpr size_t kRing = 96 << 10;
  return static_cast<int>(std::clamp<size_t>(kRing / bytes, 2, 4));
}

template <typename T>
size_t row_bytes(int64_t h) {
  return static_cast<size_t>(h) * sizeof(T) + kRowPadding;
}

// Rows of a stage of the forward kernel.
int rows_of_stage(int64_t h) { return h <= kRowColumns * kMostRowThreads / 2 ? 4 : 2; }

// How many ranks a chain projects on where rows can be projected as they are normed; else 0.
int ranks_to_project(const pnb_lora_project_params* chain) {
  int64_t ranks = 0;
  for (const auto* one = chain; one != nullptr; one = one->next) {
    if (one->dropout.p > 0.0f) return 0;
    ranks += one->a.shape[0];
  }
  return ranks <= lora::kStreamRanks ? static_cast<int>(ranks) : 0;
}

// Calls body with the ranks that a kernel computes with.
template <typename T, typename Body>
void with_ranks(int ranks, Body&& body) {
  if constexpr (sizeof(T) != sizeof(float)) {
    if (ranks > 8) return body(std::integral_constant<int, 16>());
    if (ranks > 0) return body(std::integral_constant<int, 8>());
  }
  body(std::integral_constant<int, 0>());
}

template <typename T, bool kPooled, int kRanks>
void launch_forward(Forward args, int64_t blocks, int cluster, cudaStream_t stream) {
  int threads = args.h / kRowColumns, stage = rows_of_stage(args.h);
  args.stages = kRanks > 0 ? kProjectedRows / stage : stages_of(stage * row_bytes<T>(args.h));
  size_t shared = stage * args.stages * row_bytes<T>(args.h) + projection_bytes(kRanks, threads);
  if (cluster > 1) shared += args.h * sizeof(float);
  auto kernel = stage == 4 ? forward_rows<T, 4, kMostRowThreads / 2, kPooled, kRanks>
                           : forward_rows<T, 2, kMostRowThreads, kPooled, kRanks>;
  allow_shared_memory(kernel, shared, "layer_norm_forward");
  launch(kernel, {dim3(static_cast<unsigned>(blocks)), threads, shared, stream, cluster, true}, "layer_norm_forward", args);
}

// Whether the kernels that keep a thread at its columns can take rows of this length.
bool many_rows(int64_t h, bool rows_aligned) {
  return rows_aligned && h % (kRowColumns * kWarp) == 0 && h <= kRowColumns * kMostRowThreads;
}

// Threads a row, so that each has at most kVectors vectors; 0 where the row does not fit or is not aligned.
template <typename T>
int vector_threads(int64_t h, bool rows_aligned) {
  if (!rows_aligned || h % kVector<T> != 0) return 0;
  int64_t threads = round_up(ceil_div(h / kVector<T>, kVectors), kWarp);
  return threads <= kThreads ? static_cast<int>(threads) : 0;
}

}  // namespace

void layer_norm_forward(const Device& device, const pnb_layer_norm_forward_params& p) {
  int64_t m = p.x.shape[0];
  int64_t h = p.x.shape[1];
  if (m == 0 || h == 0) return;
  cudaStream_t stream = stream_of(p.stream);
  Forward args{};
  args.x = p.x.data;
  args.gamma = static_cast<const float*>(p.gamma.data);
  args.beta = static_cast<const float*>(p.beta.data);
  args.y = p.y.data;
  args.mean = static_cast<float*>(p.mean.data);
  args.rstd = static_cast<float*>(p.rstd.data);
  args.m = m;
  args.x_stride = p.x.stride[0];
  args.y_stride = p.y.stride[0];
  args.h = static_cast<int>(h);
  args.inverse_h = 1.0f / static_cast<float>(h);
  args.epsilon = p.epsilon;
  args.parameters_aligned = aligned(args.gamma) && aligned(args.beta);
  bool pooled = present(p.pooled);
  if (pooled) {
    args.pooled = static_cast<float*>(p.pooled.data);
    args.valid_rows = static_cast<const int32_t*>(p.valid_rows.data);
    args.pool_rows = p.pool_rows;
    args.parameters_aligned = args.parameters_aligned && aligned(args.pooled);
  }
  int64_t pools = pooled ? ceil_div(m, p.pool_rows) : 0;
  bool all_aligned = rows_aligned(p.x) && rows_aligned(p.y);
  bool projected = false;
  with_type(p.x.dtype, [&](auto type) {
    using T = decltype(type);
    if (many_rows(h, all_aligned)) {
      int ranks = sizeof(T) == sizeof(float) ? 0 : ranks_to_project(p.project);
      int64_t blocks;
      int cluster = 1;
      if (pooled) {
        cluster = cluster_for(pools, pools * ceil_div(std::min(m, p.pool_rows), kPoolRows));
        args.rows = ceil_div(p.pool_rows, cluster);
        blocks = pools * cluster;
      } else {
        args.rows = ranks > 0 ? kProjectedRows : rows_of_block(device, m, static_cast<int>(h / kRowColumns), rows_of_stage(h));
        blocks = ceil_div(m, args.rows);
      }
      if (args.rows > kProjectedRows || kProjectedRows * row_bytes<T>(h) > kMostProjectedBytes) ranks = 0;
      for (const auto* one = ranks > 0 ? p.project : nullptr; one != nullptr; one = one->next) {
        lora::add_ranks(*one, args.projection.ranks, args.projection.r);
      }
      with_ranks<T>(ranks, [&](auto kernel_ranks) {
        if (pooled) launch_forward<T, true, kernel_ranks>(args, blocks, cluster, stream);
        else launch_forward<T, false, kernel_ranks>(args, blocks, cluster, stream);
      });
      projected = ranks > 0;
      return;
    }
    if (pooled) {
      forward_pooled_plain<T><<<static_cast<unsigned>(pools), kPlainThreads, 0, stream>>>(args);
      return;
    }
    int threads = vector_threads<T>(h, all_aligned);
    if (threads > 0) forward_vectors<T><<<static_cast<unsigned>(m), threads, 0, stream>>>(args);
    else forward_plain<T><<<static_cast<unsigned>(m), kPlainThreads, 0, stream>>>(args);
  });
  check_launch("layer_norm_forward");
  if (p.project != nullptr && !projected) lora_project(device, *p.project);
}

void layer_norm_backward(const Device& device, const pnb_layer_norm_backward_params& p) {
  int64_t m = p.x.shape[0];
  int64_t h = p.x.shape[1];
  if (m == 0 || h == 0) return;
  cudaStream_t stream = stream_of(p.stream);
  Backward args{};
  args.dy = p.dy.data;
  args.x = p.x.data;
  args.mean = static_cast<const float*>(p.mean.data);
  args.rstd = static_cast<const float*>(p.rstd.data);
  args.gamma = static_cast<const float*>(p.gamma.data);
  args.residual = p.residual.data;
  args.dx = p.dx.data;
  args.m = m;
  args.dy_stride = p.dy.stride[0];
  args.x_stride = p.x.stride[0];
  args.residual_stride = p.residual.stride[0];
  args.dx_stride = p.dx.stride[0];
  args.h = static_cast<int>(h);
  args.inverse_h = 1.0f / static_cast<float>(h);
  args.parameters_aligned = aligned(args.gamma);
  bool all_aligned = rows_aligned(p.x) && rows_aligned(p.dy) && rows_aligned(p.residual) && rows_aligned(p.dx);
  with_type(p.x.dtype, [&](auto type) {
    using T = decltype(type);
    if (many_rows(h, all_aligned)) {
      int threads = static_cast<int>(h / kRowColumns);
      bool narrow = threads <= kMostRowThreads / 2;
      args.rows = rows_of_block(device, m, threads, narrow ? 2 : 1);
      auto kernel = present(p.residual)
                        ? (narrow ? backward_rows<T, 2, kMostRowThreads / 2, true> : backward_rows<T, 1, kMostRowThreads, true>)
                        : (narrow ? backward_rows<T, 2, kMostRowThreads / 2, false> : backward_rows<T, 1, kMostRowThreads, false>);
      size_t stage = (narrow ? 2 : 1) * (present(p.residual) ? 3 : 2) * row_bytes<T>(h);
      args.stages = stages_of(stage);
      allow_shared_memory(kernel, stage * args.stages, "layer_norm_backward");
      dim3 grid(static_cast<unsigned>(ceil_div(m, args.rows)));
      launch(kernel, {grid, threads, stage * args.stages, stream, 1, true}, "layer_norm_backward", args);
      return;
    }
    int threads = vector_threads<T>(h, all_aligned);
    if (threads > 0) backward_vectors<T><<<static_cast<unsigned>(m), threads, 0, stream>>>(args);
    else backward_plain<T><<<static_cast<unsigned>(m), kPlainThreads, 0, stream>>>(args);
  });
  check_launch("layer_norm_backward");
}

}  // namespace pnb::cuda
