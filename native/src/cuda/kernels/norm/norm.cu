#include "cuda/kernels/norm/norm.h"

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/reduce.cuh"

// A block takes a row. Where rows are aligned and short enough, a thread holds up to four 16-byte vectors of it in
// registers, so that memory is read once and four loads are in flight before the first is needed; an operand that is
// written over is read whole before. Other rows are read again for each sum.

namespace pnb::cuda {

namespace {

constexpr int kVectors = 4;
constexpr int kThreads = 512;       // at most; 512 * 4 vectors hold 16384 elements of bf16, 8192 of f32
constexpr int kPlainThreads = 256;  // of the kernels for other rows

struct Forward {
  const void* x;
  const float* gamma;
  const float* beta;
  void* y;
  float* mean;  // or NULL
  float* rstd;
  int64_t x_stride, y_stride;
  int h;
  float epsilon;
};

struct Backward {
  const void* dy;
  const void* x;
  const float* mean;
  const float* rstd;
  const float* gamma;
  const void* residual;  // or NULL
  void* dx;
  int64_t dy_stride, x_stride, residual_stride, dx_stride;
  int h;
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
__global__ void __launch_bounds__(kThreads) forward_vectors(Forward p, bool parameters_aligned) {
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
    load_parameter(p.gamma + at, parameters_aligned, gamma);
    load_parameter(p.beta + at, parameters_aligned, beta);
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

template <typename T>
__global__ void __launch_bounds__(kThreads) backward_vectors(Backward p, bool parameters_aligned) {
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
    load_parameter(p.gamma + at, parameters_aligned, gamma);
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
    load_parameter(p.gamma + at, parameters_aligned, gamma);
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

// Threads a row, so that each has at most kVectors vectors; 0 where the row does not fit or is not aligned.
template <typename T>
int vector_threads(int64_t h, bool rows_aligned) {
  if (!rows_aligned || h % kVector<T> != 0) return 0;
  int64_t threads = round_up(ceil_div(h / kVector<T>, kVectors), kWarp);
  return threads <= kThreads ? static_cast<int>(threads) : 0;
}

}  // namespace

void layer_norm_forward(const Device&, const pnb_layer_norm_forward_params& p) {
  int64_t m = p.x.shape[0];
  int64_t h = p.x.shape[1];
  if (m == 0 || h == 0) return;
  Forward args{p.x.data,
               static_cast<const float*>(p.gamma.data),
               static_cast<const float*>(p.beta.data),
               p.y.data,
               static_cast<float*>(p.mean.data),
               static_cast<float*>(p.rstd.data),
               p.x.stride[0],
               p.y.stride[0],
               static_cast<int>(h),
               p.epsilon};
  bool parameters_aligned = aligned(args.gamma) && aligned(args.beta);
  with_type(p.x.dtype, [&](auto type) {
    using T = decltype(type);
    int threads = vector_threads<T>(h, rows_aligned(p.x) && rows_aligned(p.y));
    if (threads > 0) forward_vectors<T><<<m, threads, 0, stream_of(p.stream)>>>(args, parameters_aligned);
    else forward_plain<T><<<m, kPlainThreads, 0, stream_of(p.stream)>>>(args);
  });
  check_launch("layer_norm_forward");
}

void layer_norm_backward(const Device&, const pnb_layer_norm_backward_params& p) {
  int64_t m = p.x.shape[0];
  int64_t h = p.x.shape[1];
  if (m == 0 || h == 0) return;
  Backward args{p.dy.data,
                p.x.data,
                static_cast<const float*>(p.mean.data),
                static_cast<const float*>(p.rstd.data),
                static_cast<const float*>(p.gamma.data),
                p.residual.data,
                p.dx.data,
                p.dy.stride[0],
                p.x.stride[0],
                p.residual.stride[0],
                p.dx.stride[0],
                static_cast<int>(h)};
  bool parameters_aligned = aligned(args.gamma);
  with_type(p.x.dtype, [&](auto type) {
    using T = decltype(type);
    bool all_aligned = rows_aligned(p.x) && rows_aligned(p.dy) && rows_aligned(p.residual) && rows_aligned(p.dx);
    int threads = vector_threads<T>(h, all_aligned);
    if (threads > 0) backward_vectors<T><<<m, threads, 0, stream_of(p.stream)>>>(args, parameters_aligned);
    else backward_plain<T><<<m, kPlainThreads, 0, stream_of(p.stream)>>>(args);
  });
  check_launch("layer_norm_backward");
}

}  // namespace pnb::cuda
