#include <algorithm>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/lora/lora.h"
#include "cuda/kernels/norm/norm.h"
#include "cuda/kernels/norm/threads.cuh"
#include "cuda/kernels/reduce.cuh"

namespace pnb::cuda {

namespace {

namespace cg = cooperative_groups;

constexpr int kPoolRows = 16;  // of a block, where it has a cluster to share a pool with

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

  // How many rows of the pool that starts at `first` count.
  __device__ int64_t pooled_rows(int64_t first) const {
    int64_t valid = valid_rows == nullptr ? m : min(m, static_cast<int64_t>(*valid_rows));
    return max(static_cast<int64_t>(0), min(pool_rows, valid - first));
  }
};

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

// A block takes p.rows rows, of one pool where there are pools; the blocks of a cluster share a pool and their sums meet in
// shared memory.
template <typename T, int kRows, int kMostThreads, bool kPooled>
__global__ void __launch_bounds__(kMostThreads) forward_rows(const __grid_constant__ Forward p) {
  __shared__ Statistics<kRows> shared[2];
  after_previous();
  if constexpr (kPooled) let_next_begin();  // the predictor of what is pooled fetches its weights until then
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
    }
  }
  if constexpr (kPooled) {
    cg::cluster_group cluster = cg::this_cluster();
    if (cluster.num_blocks() > 1) {
      float* pool_sums = reinterpret_cast<float*>(ring.after());
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

// Rows of a stage of the forward kernel.
int rows_of_stage(int64_t h) { return h <= kRowColumns * kMostRowThreads / 2 ? 4 : 2; }

template <typename T, bool kPooled>
void launch_forward(Forward args, int64_t blocks, int cluster, cudaStream_t stream) {
  int threads = args.h / kRowColumns, stage = rows_of_stage(args.h);
  args.stages = stages_of(stage * row_bytes<T>(args.h));
  size_t shared = stage * args.stages * row_bytes<T>(args.h);
  if (cluster > 1) shared += args.h * sizeof(float);
  auto kernel =
      stage == 4 ? forward_rows<T, 4, kMostRowThreads / 2, kPooled> : forward_rows<T, 2, kMostRowThreads, kPooled>;
  allow_shared_memory(kernel, shared, "layer_norm_forward");
  launch(kernel, {dim3(static_cast<unsigned>(blocks)), threads, shared, stream, cluster, true}, "layer_norm_forward", args);
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
  with_type(p.x.dtype, [&](auto type) {
    using T = decltype(type);
    if (many_rows(h, all_aligned)) {
      if (pooled) {
        int cluster = cluster_for(pools, pools * ceil_div(std::min(m, p.pool_rows), kPoolRows));
        args.rows = ceil_div(p.pool_rows, cluster);
        launch_forward<T, true>(args, pools * cluster, cluster, stream);
      } else {
        args.rows = rows_of_block(device, m, static_cast<int>(h / kRowColumns), rows_of_stage(h));
        launch_forward<T, false>(args, ceil_div(m, args.rows), 1, stream);
      }
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
  if (p.project != nullptr) lora_project(device, *p.project);
}

}  // namespace pnb::cuda
