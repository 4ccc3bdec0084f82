#include "cuda/kernels/loss/loss.h"

#include <algorithm>
#include <cmath>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/reduce.cuh"

// The supervised rows are gathered into chunks. A chunk's logits are one product; a pass over them finds each row's loss and
// turns them into their own gradient; a second product takes that back to the rows, which are scattered. The chunk's inputs
// are not needed after the first product, so the second writes over them.

namespace pnb::cuda {

namespace {

// Rows of a chunk: 8 x 393 tiles of 128 x 128 over OPT's vocabulary fill 132 multiprocessors to 99%, and 8 x 16 tiles over a
// width of 2048 to 97%; the logits take 98 MiB of bf16.
constexpr int64_t kChunk = 1024;

constexpr int kThreads = 512;
constexpr int kRowThreads = 256;  // of the passes that move rows
constexpr int64_t kAlignment = 256;

// What a call's workspace is divided into.
struct Plan {
  int64_t chunk, logits_stride;
  int64_t rows_bytes, logits_bytes, losses_bytes;
  uint64_t gemm_bytes;

  uint64_t bytes() const { return static_cast<uint64_t>(rows_bytes + logits_bytes + losses_bytes) + gemm_bytes; }
};

pnb_tensor matrix(void* data, int32_t dtype, int64_t rows, int64_t columns, int64_t stride) {
  return {data, dtype, 2, {rows, columns}, {stride, 1}};
}

pnb_gemm_params product(const pnb_linear_cross_entropy_params& p, int32_t use, const pnb_tensor& a, const pnb_tensor& d) {
  pnb_gemm_params g{};
  g.struct_size = sizeof g;
  g.stream = p.stream;
  g.a = a;
  g.weight = p.weight;
  g.weight_use = use;
  g.d = d;
  return g;
}

Plan plan(Gemm& gemm, const pnb_linear_cross_entropy_params& p) {
  int64_t h = p.x.shape[1];
  int64_t vocab = p.weight->out;
  int size = dtype_size(p.x.dtype);
  Plan plan{};
  plan.chunk = std::min(kChunk, std::max<int64_t>(1, p.rows.shape[0]));
  plan.logits_stride = round_up(vocab, 16 / size);
  plan.rows_bytes = round_up(plan.chunk * h * size, kAlignment);
  plan.logits_bytes = round_up(plan.chunk * plan.logits_stride * size, kAlignment);
  plan.losses_bytes = round_up(p.rows.shape[0] * static_cast<int64_t>(sizeof(float)), kAlignment);
  pnb_tensor x = matrix(p.x.data, p.x.dtype, plan.chunk, h, h);
  pnb_tensor z = matrix(p.x.data, p.x.dtype, plan.chunk, vocab, plan.logits_stride);
  plan.gemm_bytes = gemm.workspace(product(p, PNB_WEIGHT_FORWARD, x, z));
  if (present(p.dx)) plan.gemm_bytes = std::max(plan.gemm_bytes, gemm.workspace(product(p, PNB_WEIGHT_BACKWARD, z, x)));
  return plan;
}

// to[i] = from[rows[i]], zero where a row is padding; kWidth neighbours at a time.
template <typename T, int kWidth>
__global__ void gather(const T* from, int64_t from_stride, const int32_t* rows, int64_t m, T* to, int64_t h) {
  int64_t row = rows[blockIdx.x];
  bool taken = row >= 0 && row < m;
  for (int64_t i = threadIdx.x * kWidth; i < h; i += blockDim.x * kWidth) {
    Pack<T, kWidth> pack;
    if (taken) {
      pack = Pack<T, kWidth>::load(from + row * from_stride + i);
    } else {
#pragma unroll
      for (T& v : pack.v) v = T(0.0f);
    }
    pack.store(to + blockIdx.x * h + i);
  }
}

// to[rows[i]] = from[i]; padding goes nowhere.
template <typename T, int kWidth>
__global__ void scatter(const T* from, const int32_t* rows, int64_t m, T* to, int64_t to_stride, int64_t h) {
  int64_t row = rows[blockIdx.x];
  if (row < 0 || row >= m) return;
  for (int64_t i = threadIdx.x * kWidth; i < h; i += blockDim.x * kWidth) {
    Pack<T, kWidth>::load(from + blockIdx.x * h + i).store(to + row * to_stride + i);
  }
}

// A maximum, and the sum of exponentials relative to it.
struct Softmax {
  float top, sum;
};

__device__ inline Softmax shuffle_xor(Softmax v, int mask) {
  return {__shfl_xor_sync(~0u, v.top, mask), __shfl_xor_sync(~0u, v.sum, mask)};
}

__device__ inline Softmax combine(Softmax a, Softmax b) {
  float top = fmaxf(a.top, b.top);
  // A NaN makes fmaxf take the other side; the sums carry it on.
  if (top == -INFINITY) return {top, a.sum + b.sum};
  return {top, a.sum * __expf(a.top - top) + b.sum * __expf(b.top - top)};
}

// One row of logits a block: its loss, and, where kGradient, its gradient in the logits' place. The second read comes from the
// cache: the rows that are under way on all multiprocessors take 13 MB.
template <typename T, bool kGradient>
__global__ void __launch_bounds__(kThreads) softmax_loss(T* logits, int64_t stride, int64_t vocab, const int32_t* rows, int64_t m,
                                                         const int32_t* targets, const float* grad_scale, float* losses) {
  constexpr int kWidth = kVector<T>;
  __shared__ Softmax shared[kWarp];
  T* z = logits + blockIdx.x * stride;
  int64_t row = rows[blockIdx.x];
  if (row < 0 || row >= m) {
    // Padding's input is zero, and so must its gradient be.
    if (threadIdx.x == 0) losses[blockIdx.x] = row < 0 ? 0.0f : NAN;
    if (kGradient) {
      for (int64_t i = threadIdx.x; i < vocab; i += kThreads) z[i] = T(0.0f);
    }
    return;
  }
  int64_t whole = vocab / kWidth * kWidth;
  Softmax found{-INFINITY, 0.0f};
  for (int64_t i = threadIdx.x * kWidth; i < whole; i += kThreads * kWidth) {
    auto pack = Pack<T, kWidth>::load(z + i);
    float values[kWidth];
    float top = found.top;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      values[j] = to_float(pack.v[j]);
      top = fmaxf(top, values[j]);
    }
    float sum = found.sum * __expf(found.top - top);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += __expf(values[j] - top);
    found = {top, sum};
  }
  for (int64_t i = whole + threadIdx.x; i < vocab; i += kThreads) found = combine(found, {to_float(z[i]), 1.0f});
  found = block_combine(found, Softmax{-INFINITY, 0.0f}, shared, [](Softmax a, Softmax b) { return combine(a, b); });
  float lse = found.top + __logf(found.sum);

  int64_t target = targets[blockIdx.x];
  bool known = target >= 0 && target < vocab;
  if (threadIdx.x == 0) losses[blockIdx.x] = known ? lse - to_float(z[target]) : NAN;
  if (!kGradient) return;
  __syncthreads();  // the target's logit has been read
  float scale = *grad_scale;
  for (int64_t i = threadIdx.x * kWidth; i < whole; i += kThreads * kWidth) {
    auto pack = Pack<T, kWidth>::load(z + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      pack.v[j] = from_float<T>(scale * (__expf(to_float(pack.v[j]) - lse) - (i + j == target ? 1.0f : 0.0f)));
    }
    pack.store(z + i);
  }
  for (int64_t i = whole + threadIdx.x; i < vocab; i += kThreads) {
    z[i] = from_float<T>(scale * (__expf(to_float(z[i]) - lse) - (i == target ? 1.0f : 0.0f)));
  }
}

// loss += the rows' losses, in one order.
__global__ void __launch_bounds__(kThreads) add_losses(const float* losses, int64_t n, float* loss) {
  __shared__ double shared[kWarp];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += losses[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) *loss = static_cast<float>(*loss + sum);
}

template <typename T>
void run(Gemm& gemm, const pnb_linear_cross_entropy_params& p) {
  cudaStream_t stream = stream_of(p.stream);
  int64_t m = p.x.shape[0], h = p.x.shape[1], n = p.rows.shape[0], vocab = p.weight->out;
  Plan space = plan(gemm, p);
  char* memory = static_cast<char*>(p.workspace.data);
  T* chunk_rows = reinterpret_cast<T*>(memory);
  T* logits = reinterpret_cast<T*>(memory + space.rows_bytes);
  float* losses = reinterpret_cast<float*>(memory + space.rows_bytes + space.logits_bytes);
  pnb_workspace gemm_space{memory + space.rows_bytes + space.logits_bytes + space.losses_bytes, space.gemm_bytes};
  const auto* rows = static_cast<const int32_t*>(p.rows.data);
  const auto* targets = static_cast<const int32_t*>(p.targets.data);
  const T* x = static_cast<const T*>(p.x.data);
  T* dx = static_cast<T*>(p.dx.data);
  bool gradient = present(p.dx);
  bool vectors = h % kVector<T> == 0 && rows_aligned(p.x) && rows_aligned(p.dx);

  if (gradient) {
    check(cudaMemset2DAsync(dx, p.dx.stride[0] * sizeof(T), 0, h * sizeof(T), m, stream), "linear_cross_entropy: zeroing dx");
  }
  for (int64_t first = 0; first < n; first += space.chunk) {
    int64_t count = std::min(space.chunk, n - first);
    auto blocks = static_cast<unsigned>(count);
    pnb_tensor inputs = matrix(chunk_rows, p.x.dtype, count, h, h);
    pnb_tensor z = matrix(logits, p.x.dtype, count, vocab, space.logits_stride);
    if (vectors) gather<T, kVector<T>><<<blocks, kRowThreads, 0, stream>>>(x, p.x.stride[0], rows + first, m, chunk_rows, h);
    else gather<T, 1><<<blocks, kRowThreads, 0, stream>>>(x, p.x.stride[0], rows + first, m, chunk_rows, h);
    check_launch("linear_cross_entropy: gather");
    pnb_gemm_params forward = product(p, PNB_WEIGHT_FORWARD, inputs, z);
    forward.workspace = gemm_space;
    gemm.run(forward);
    const auto* scale = static_cast<const float*>(p.grad_scale.data);
    auto loss_kernel = gradient ? softmax_loss<T, true> : softmax_loss<T, false>;
    loss_kernel<<<blocks, kThreads, 0, stream>>>(logits, space.logits_stride, vocab, rows + first, m, targets + first, scale,
                                                 losses + first);
    check_launch("linear_cross_entropy: softmax");
    if (!gradient) continue;
    pnb_gemm_params backward = product(p, PNB_WEIGHT_BACKWARD, z, inputs);
    backward.workspace = gemm_space;
    gemm.run(backward);
    if (vectors) scatter<T, kVector<T>><<<blocks, kRowThreads, 0, stream>>>(chunk_rows, rows + first, m, dx, p.dx.stride[0], h);
    else scatter<T, 1><<<blocks, kRowThreads, 0, stream>>>(chunk_rows, rows + first, m, dx, p.dx.stride[0], h);
    check_launch("linear_cross_entropy: scatter");
  }
  if (n > 0) {
    add_losses<<<1, kThreads, 0, stream>>>(losses, n, static_cast<float*>(p.loss.data));
    check_launch("linear_cross_entropy: sum");
  }
}

}  // namespace

void linear_cross_entropy(const Device&, Gemm& gemm, const pnb_linear_cross_entropy_params& p) {
  with_type(p.x.dtype, [&](auto type) { run<decltype(type)>(gemm, p); });
}

uint64_t linear_cross_entropy_workspace(const Device&, Gemm& gemm, const pnb_linear_cross_entropy_params& p) {
  return plan(gemm, p).bytes();
}

}  // namespace pnb::cuda
