#include "cuda/kernels/loss/loss.h"

#include <algorithm>
#include <type_traits>

#include "cuda/kernels/loss/exponentials.cuh"
#include "cuda/kernels/loss/softmax.cuh"

// The supervised rows are gathered into chunks. A chunk's logits are one product; a pass over them finds each row's loss and
// turns them into their own gradient; a second product takes that back to the rows, which are scattered. The chunk's inputs
// are not needed after the first product, so the second writes over them. Where the first product can exponentiate, there is no
// such pass (exponentials.cuh).

namespace pnb::cuda {

namespace {

using namespace loss;

// Rows of a chunk: 16 x 393 tiles of 128 x 128 over OPT's vocabulary fill 132 multiprocessors to 99%, and 16 x 8 of the wide
// tiles over a width of 2048 to 97%, where half as many rows would leave half of them idle; the logits take 196 MiB of bf16.
constexpr int64_t kChunk = 2048;

constexpr int64_t kAlignment = 256;

// What a call's workspace is divided into.
struct Plan {
  int64_t chunk, logits_stride;
  int64_t tiles;  // sums of a row's exponentials, where there may be some
  int64_t rows_bytes, logits_bytes, losses_bytes, shifts_bytes, sums_bytes;
  uint64_t gemm_bytes;

  uint64_t bytes() const {
    return static_cast<uint64_t>(rows_bytes + logits_bytes + losses_bytes + shifts_bytes + sums_bytes) + gemm_bytes;
  }
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
  // Whether the product can exponentiate depends on addresses, too, and a query comes without them.
  plan.tiles = p.x.dtype == PNB_DTYPE_BF16 ? ceil_div(vocab, kExponentialColumns) : 0;
  plan.shifts_bytes = plan.tiles > 0 ? round_up(plan.chunk * static_cast<int64_t>(sizeof(float)), kAlignment) : 0;
  plan.sums_bytes = round_up(plan.chunk * plan.tiles * static_cast<int64_t>(sizeof(float)), kAlignment);
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

// loss += the rows' losses, in one order.
__global__ void __launch_bounds__(kThreads) add_losses(const float* losses, int64_t n, float* loss) {
  __shared__ double shared[kWarp];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += losses[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) *loss = static_cast<float>(*loss + sum);
}

// A call's chunks.
template <typename T>
class Chunks {
 public:
  Chunks(Gemm& gemm, const pnb_linear_cross_entropy_params& p)
      : gemm_(gemm), p_(p), space_(plan(gemm, p)), stream_(stream_of(p.stream)), gradient_(present(p.dx)), m_(p.x.shape[0]),
        h_(p.x.shape[1]), vocab_(p.weight->out), vectors_(h_ % kVector<T> == 0 && rows_aligned(p.x) && rows_aligned(p.dx)) {
    char* memory = static_cast<char*>(p.workspace.data);
    auto take = [&](int64_t bytes) {
      char* taken = memory;
      memory += bytes;
      return taken;
    };
    rows_ = reinterpret_cast<T*>(take(space_.rows_bytes));
    logits_ = reinterpret_cast<T*>(take(space_.logits_bytes));
    losses_ = reinterpret_cast<float*>(take(space_.losses_bytes));
    shifts_ = reinterpret_cast<float*>(take(space_.shifts_bytes));
    sums_ = reinterpret_cast<float*>(take(space_.sums_bytes));
    gemm_space_ = {memory, space_.gemm_bytes};
  }

  void run() {
    int64_t n = p_.rows.shape[0];
    if (gradient_) {
      check(cudaMemset2DAsync(p_.dx.data, p_.dx.stride[0] * sizeof(T), 0, h_ * sizeof(T), m_, stream_),
            "linear_cross_entropy: zeroing dx");
    }
    for (int64_t first = 0; first < n; first += space_.chunk) {
      int64_t count = std::min(space_.chunk, n - first);
      Chunk chunk{static_cast<unsigned>(count), static_cast<const int32_t*>(p_.rows.data) + first,
                  static_cast<const int32_t*>(p_.targets.data) + first, losses_ + first,
                  product(p_, PNB_WEIGHT_FORWARD, matrix(rows_, p_.x.dtype, count, h_, h_),
                          matrix(logits_, p_.x.dtype, count, vocab_, space_.logits_stride))};
      chunk.forward.workspace = gemm_space_;
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        if (vectors_ && gemm_.exponentiates(chunk.forward)) {
          by_exponentials(chunk);
          continue;
        }
      }
      by_softmax(chunk);
    }
    if (n > 0) {
      add_losses<<<1, kThreads, 0, stream_>>>(losses_, n, static_cast<float*>(p_.loss.data));
      check_launch("linear_cross_entropy: sum");
    }
  }

 private:
  struct Chunk {
    unsigned blocks;  // of threads: one a row
    const int32_t *rows, *targets;
    float* losses;
    pnb_gemm_params forward;
  };

  const T* x() const { return static_cast<const T*>(p_.x.data); }
  T* dx() const { return static_cast<T*>(p_.dx.data); }
  const float* grad_scale() const { return static_cast<const float*>(p_.grad_scale.data); }

  // The chunk's logits, or what stands for them, times W.
  void back(const Chunk& chunk) {
    pnb_gemm_params backward = product(p_, PNB_WEIGHT_BACKWARD, chunk.forward.d, chunk.forward.a);
    backward.workspace = gemm_space_;
    gemm_.run(backward);
  }

  void by_exponentials(const Chunk& c) {
    const auto& w = *static_cast<const Weight*>(p_.weight);
    const auto* weight = static_cast<const T*>(w.data);
    gather_with_shifts<<<c.blocks, kRowThreads, 0, stream_>>>(x(), p_.x.stride[0], c.rows, m_, c.targets, weight, w.row_stride,
                                                              vocab_, rows_, h_, shifts_);
    check_launch("linear_cross_entropy: gather");
    gemm_.run(c.forward, Exponentials{shifts_, c.targets, sums_});
    if (gradient_) back(c);
    finish_rows<<<c.blocks, kRowThreads, 0, stream_>>>(sums_, static_cast<int>(space_.tiles), c.rows, m_, c.targets, weight,
                                                       w.row_stride, vocab_, grad_scale(), rows_, gradient_ ? dx() : nullptr,
                                                       p_.dx.stride[0], h_, c.losses);
    check_launch("linear_cross_entropy: rows");
  }

  void by_softmax(const Chunk& c) {
    auto gather_kernel = vectors_ ? gather<T, kVector<T>> : gather<T, 1>;
    gather_kernel<<<c.blocks, kRowThreads, 0, stream_>>>(x(), p_.x.stride[0], c.rows, m_, rows_, h_);
    check_launch("linear_cross_entropy: gather");
    gemm_.run(c.forward);
    auto loss_kernel = gradient_ ? softmax_loss<T, true> : softmax_loss<T, false>;
    loss_kernel<<<c.blocks, kThreads, 0, stream_>>>(logits_, space_.logits_stride, vocab_, c.rows, m_, c.targets, grad_scale(),
                                                    c.losses);
    check_launch("linear_cross_entropy: softmax");
    if (!gradient_) return;
    back(c);
    auto scatter_kernel = vectors_ ? scatter<T, kVector<T>> : scatter<T, 1>;
    scatter_kernel<<<c.blocks, kRowThreads, 0, stream_>>>(rows_, c.rows, m_, dx(), p_.dx.stride[0], h_);
    check_launch("linear_cross_entropy: scatter");
  }

  Gemm& gemm_;
  const pnb_linear_cross_entropy_params& p_;
  Plan space_;
  cudaStream_t stream_;
  bool gradient_;
  int64_t m_, h_, vocab_;
  bool vectors_;
  T *rows_, *logits_;
  float *losses_, *shifts_, *sums_;
  pnb_workspace gemm_space_;
};

}  // namespace

void linear_cross_entropy(const Device&, Gemm& gemm, const pnb_linear_cross_entropy_params& p) {
  with_type(p.x.dtype, [&](auto type) { Chunks<decltype(type)>(gemm, p).run(); });
}

uint64_t linear_cross_entropy_workspace(const Device&, Gemm& gemm, const pnb_linear_cross_entropy_params& p) {
  return plan(gemm, p).bytes();
}

}  // namespace pnb::cuda
