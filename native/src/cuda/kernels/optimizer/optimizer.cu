#include "cuda/kernels/optimizer/optimizer.h"

#include <cooperative_groups.h>

#include <algorithm>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/reduce.cuh"

// One cooperative launch: all blocks are resident at once, sum the squares of the gradient in pieces, meet, and then each
// adds up the same pieces in the same order, so that all know the norm before the first parameter changes.

namespace pnb::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kPiece = 4096;  // elements whose squares one block sums; the sum does not depend on the number of blocks

struct Args {
  float* param;
  const float* grad;
  float* m;
  float* v;
  const float* schedule;
  float* grad_norm;
  double* partial;  // a sum of squares for each piece
  int64_t n;
  float beta1, beta2, epsilon, weight_decay, max_norm;
};

struct Step {
  float clip, decay, step_size, inverse_root2, beta1, beta2, epsilon;
};

__device__ void update(float& param, float grad, float& m, float& v, const Step& s) {
  float g = grad * s.clip;
  m = s.beta1 * m + (1.0f - s.beta1) * g;
  v = s.beta2 * v + (1.0f - s.beta2) * g * g;
  param = param * s.decay - s.step_size * m / (sqrtf(v) * s.inverse_root2 + s.epsilon);
}

// kWidth 4: all four buffers are aligned to 16 bytes; 1: not.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) adamw_kernel(Args p) {
  __shared__ double shared[kWarp];
  using Values = Pack<float, kWidth>;
  int64_t pieces = ceil_div(p.n, kPiece);
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    int64_t end = min(p.n, (piece + 1) * kPiece);
    double sum = 0.0;
    for (int64_t i = piece * kPiece + threadIdx.x * kWidth; i < end; i += kThreads * kWidth) {
      if (i + kWidth <= end) {
        Values grad = Values::load(p.grad + i);
#pragma unroll
        for (float g : grad.v) sum += static_cast<double>(g) * g;
      } else {
        for (int64_t j = i; j < end; ++j) sum += static_cast<double>(p.grad[j]) * p.grad[j];
      }
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) p.partial[piece] = sum;
  }
  cooperative_groups::this_grid().sync();

  double total = 0.0;
  for (int64_t piece = threadIdx.x; piece < pieces; piece += kThreads) total += p.partial[piece];
  float norm = static_cast<float>(sqrt(block_sum(total, shared)));
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.grad_norm = norm;
  if (!isfinite(norm)) return;

  float lr = p.schedule[0];
  Step step{p.max_norm > 0.0f ? fminf(1.0f, p.max_norm / (norm + 1e-6f)) : 1.0f,
            1.0f - lr * p.weight_decay,
            lr / p.schedule[1],
            1.0f / sqrtf(p.schedule[2]),
            p.beta1,
            p.beta2,
            p.epsilon};
  int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kWidth;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth; i < p.n; i += stride) {
    if (i + kWidth <= p.n) {
      Values grad = Values::load(p.grad + i), param = Values::load(p.param + i);
      Values m = Values::load(p.m + i), v = Values::load(p.v + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) update(param.v[j], grad.v[j], m.v[j], v.v[j], step);
      param.store(p.param + i);
      m.store(p.m + i);
      v.store(p.v + i);
    } else {
      for (int64_t j = i; j < p.n; ++j) update(p.param[j], p.grad[j], p.m[j], p.v[j], step);
    }
  }
}

template <int kWidth>
void launch(const Device& device, Args args, cudaStream_t stream) {
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, adamw_kernel<kWidth>, kThreads, 0), "adamw");
  int64_t wanted = std::max<int64_t>(1, ceil_div(args.n, kThreads * kWidth));
  auto blocks = static_cast<unsigned>(std::min<int64_t>(wanted, static_cast<int64_t>(resident) * device.multiprocessors));
  void* arguments[] = {&args};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(adamw_kernel<kWidth>), dim3(blocks), dim3(kThreads), arguments, 0,
                                    stream),
        "adamw");
}

}  // namespace

uint64_t adamw_workspace(const Device&, const pnb_adamw_params& p) { return ceil_div(p.param.shape[0], kPiece) * sizeof(double); }

void adamw(const Device& device, const pnb_adamw_params& p) {
  Args args{static_cast<float*>(p.param.data),
            static_cast<const float*>(p.grad.data),
            static_cast<float*>(p.m.data),
            static_cast<float*>(p.v.data),
            static_cast<const float*>(p.schedule.data),
            static_cast<float*>(p.grad_norm.data),
            static_cast<double*>(p.workspace.data),
            p.param.shape[0],
            p.beta1,
            p.beta2,
            p.epsilon,
            p.weight_decay,
            p.max_norm};
  bool vectors = aligned(args.param) && aligned(args.grad) && aligned(args.m) && aligned(args.v);
  if (vectors) launch<4>(device, args, stream_of(p.stream));
  else launch<1>(device, args, stream_of(p.stream));
}

}  // namespace pnb::cuda
