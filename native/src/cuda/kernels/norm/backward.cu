#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/norm/norm.h"
#include "cuda/kernels/norm/threads.cuh"
#include "cuda/kernels/reduce.cuh"

namespace pnb::cuda {

namespace {

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

}  // namespace

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
