#include "cuda/kernels/loss/loss.h"

#include <algorithm>
#include <type_traits>

#include "cuda/kernels/loss/exponentials.cuh"
#include "cuda/kernels/loss/softmax.cuh"

// The supervised rows are gathered into chunks. A chunk's logits are a product; a pass over them finds each row's loss and turns
// them into their own gradient; a second product takes that back to the rows, which are scattered. The chunk's inputs are not
// needed after the first product, so the second writes over them. Where the first product can exponentiate, there is no such
// pass (exponentials.cuh), and a chunk's logits need not be there at one time: both products go through the vocabulary in parts,
// and what they take back is summed in f32, over some ranges of a part's columns each, where that fills the device better.

namespace pnb::cuda {

namespace {

using namespace loss;

// Rows of a chunk, and bytes of the logits that are there at one time.
struct Budget {
  int64_t rows, logits_bytes;
};

// Beside whole logits what the layers keep of few rows is little. 8 x 66 tiles of 128 x 128 fill 132 multiprocessors four times,
// and six times 66 are OPT's vocabulary.
constexpr int64_t kFewRows = 2048;
constexpr Budget kFew = {1024, 1024 * 66 * 128 * sizeof(__nv_bfloat16)};

// 16 x 393 tiles of 128 x 128 over OPT's vocabulary fill them to 99%, and 16 x 8 of the wide tiles over a width of 2048 to 97%;
// the logits take 196 MiB of bf16.
constexpr Budget kMany = {2048, INT64_MAX};

Budget budget(int64_t n) { return n > kFewRows ? kMany : kFew; }

constexpr int64_t kAlignment = 256;
constexpr int64_t kTileRows = 128;  // of a product's tile, whose number ranges depend on

// What a call's workspace is divided into, but for the products' own, which need none.
struct Plan {
  int64_t rows, columns, parts;  // through exponentials: rows of a chunk, columns of a part of the vocabulary, parts
  int64_t softmax_rows;          // of a chunk without
  int64_t tiles;                 // sums of a row's exponentials, where there may be some
  int ranges;                    // of a part's columns, for the second product
  int64_t rows_bytes, sum_bytes, logits_bytes, losses_bytes, shifts_bytes, left_out_bytes, sums_bytes;

  uint64_t bytes() const {
    return static_cast<uint64_t>(rows_bytes + sum_bytes + logits_bytes + losses_bytes + shifts_bytes + left_out_bytes +
                                 sums_bytes);
  }
};

// Whether so many ranges of a part's columns begin where copies can.
bool divides(int ranges, int64_t columns) { return columns % (ranges * kVector<__nv_bfloat16>) == 0; }

pnb_tensor matrix(void* data, int32_t dtype, int64_t rows, int64_t columns, int64_t stride) {
  return {data, dtype, 2, {rows, columns}, {stride, 1}};
}

pnb_gemm_params product(const pnb_linear_cross_entropy_params& p, const pnb_weight* weight, int32_t use, const pnb_tensor& a,
                        const pnb_tensor& d) {
  pnb_gemm_params g{};
  g.struct_size = sizeof g;
  g.stream = p.stream;
  g.a = a;
  g.weight = weight;
  g.weight_use = use;
  g.d = d;
  return g;
}

int64_t supervised(const pnb_linear_cross_entropy_params& p) { return std::max<int64_t>(1, p.rows.shape[0]); }

// Of a call of n rows.
Plan plan(const Gemm& gemm, const pnb_linear_cross_entropy_params& p, int64_t n) {
  auto [most_rows, most_logits] = budget(n);
  int64_t h = p.x.shape[1], vocab = p.weight->out;
  int size = dtype_size(p.x.dtype);
  int64_t row_bytes = round_up(vocab, 16 / size) * size;
  Plan plan{};
  plan.rows = std::min(most_rows, n);
  plan.columns = std::max<int64_t>(1, most_logits / (plan.rows * size) / kExponentialColumns) * kExponentialColumns;
  if (plan.columns >= vocab) plan.columns = vocab;
  plan.parts = ceil_div(vocab, plan.columns);
  // Whether the product can exponentiate depends on addresses, too, and a query comes without them.
  plan.softmax_rows = std::clamp<int64_t>(most_logits / row_bytes, 1, plan.rows);
  plan.logits_bytes = round_up(std::min(std::max(most_logits, row_bytes), plan.rows * row_bytes), kAlignment);
  plan.rows_bytes = round_up(plan.rows * h * size, kAlignment);
  plan.losses_bytes = round_up(n * static_cast<int64_t>(sizeof(float)), kAlignment);
  plan.ranges = 1;
  if (p.x.dtype == PNB_DTYPE_BF16) {
    plan.tiles = ceil_div(vocab, kExponentialColumns);
    if (present(p.dx) && plan.parts > 1) {
      int ranges = gemm.ranges(plan.rows, h, plan.columns);
      plan.ranges = divides(ranges, plan.columns) ? ranges : 1;
      plan.sum_bytes = round_up(plan.ranges * plan.rows * h * static_cast<int64_t>(sizeof(float)), kAlignment);
    }
    plan.shifts_bytes = round_up(plan.rows * static_cast<int64_t>(sizeof(float)), kAlignment);
    plan.left_out_bytes = round_up(plan.parts * plan.rows * static_cast<int64_t>(sizeof(int32_t)), kAlignment);
    plan.sums_bytes = round_up(plan.rows * plan.tiles * static_cast<int64_t>(sizeof(float)), kAlignment);
  }
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
      : gemm_(gemm), p_(p), weight_(*static_cast<const Weight*>(p.weight)), space_(plan(gemm, p, supervised(p))),
        stream_(stream_of(p.stream)), gradient_(present(p.dx)), m_(p.x.shape[0]), h_(p.x.shape[1]), vocab_(weight_.out),
        vectors_(h_ % kVector<T> == 0 && rows_aligned(p.x) && rows_aligned(p.dx)) {
    char* memory = static_cast<char*>(p.workspace.data);
    auto take = [&](int64_t bytes) {
      char* taken = memory;
      memory += bytes;
      return taken;
    };
    rows_ = reinterpret_cast<T*>(take(space_.rows_bytes));
    sum_ = reinterpret_cast<float*>(take(space_.sum_bytes));
    logits_ = reinterpret_cast<T*>(take(space_.logits_bytes));
    losses_ = reinterpret_cast<float*>(take(space_.losses_bytes));
    shifts_ = reinterpret_cast<float*>(take(space_.shifts_bytes));
    left_out_ = reinterpret_cast<int32_t*>(take(space_.left_out_bytes));
    sums_ = reinterpret_cast<float*>(take(space_.sums_bytes));
  }

  void run() {
    int64_t n = p_.rows.shape[0];
    if (gradient_) {
      check(cudaMemset2DAsync(p_.dx.data, p_.dx.stride[0] * sizeof(T), 0, h_ * sizeof(T), m_, stream_),
            "linear_cross_entropy: zeroing dx");
    }
    for (int64_t first = 0; first < n;) {
      Chunk chunk{first, std::min(space_.rows, n - first)};
      if (exponentiates(chunk)) {
        if constexpr (std::is_same_v<T, __nv_bfloat16>) by_exponentials(chunk);
      } else {
        chunk.count = std::min(chunk.count, space_.softmax_rows);
        by_softmax(chunk);
      }
      first += chunk.count;
    }
    if (n > 0) {
      add_losses<<<1, kThreads, 0, stream_>>>(losses_, n, static_cast<float*>(p_.loss.data));
      check_launch("linear_cross_entropy: sum");
    }
  }

 private:
  // Of the supervised rows.
  struct Chunk {
    int64_t first, count;

    unsigned blocks() const { return static_cast<unsigned>(count); }  // of threads: one a row
  };

  // Some of the vocabulary, and what the chunk's products with it are.
  struct Part {
    Weight weight;
    pnb_tensor rows, logits;

    pnb_gemm_params forward(const pnb_linear_cross_entropy_params& p) const {
      return product(p, &weight, PNB_WEIGHT_FORWARD, rows, logits);
    }
    pnb_gemm_params backward(const pnb_linear_cross_entropy_params& p, const pnb_tensor& d) const {
      return product(p, &weight, PNB_WEIGHT_BACKWARD, logits, d);
    }
  };

  const T* x() const { return static_cast<const T*>(p_.x.data); }
  T* dx() const { return static_cast<T*>(p_.dx.data); }
  const float* grad_scale() const { return static_cast<const float*>(p_.grad_scale.data); }
  const T* weight() const { return static_cast<const T*>(weight_.data); }
  const int32_t* rows_of(const Chunk& c) const { return static_cast<const int32_t*>(p_.rows.data) + c.first; }
  const int32_t* targets_of(const Chunk& c) const { return static_cast<const int32_t*>(p_.targets.data) + c.first; }

  Part part(const Chunk& c, int64_t first, int64_t columns) const {
    Part part{weight_, matrix(rows_, p_.x.dtype, c.count, h_, h_),
              matrix(logits_, p_.x.dtype, c.count, columns, round_up(columns, kVector<T>))};
    part.weight.data = weight() + first * weight_.row_stride;
    part.weight.out = columns;
    return part;
  }

  bool exponentiates(const Chunk& c) const {
    return vectors_ && gemm_.exponentiates(part(c, 0, vocab_).forward(p_));
  }

  void by_exponentials(const Chunk& c) {
    gather_with_shifts<<<c.blocks(), kRowThreads, 0, stream_>>>(x(), p_.x.stride[0], rows_of(c), m_, targets_of(c), weight(),
                                                                weight_.row_stride, vocab_, space_.columns, space_.parts, rows_,
                                                                h_, shifts_, left_out_);
    check_launch("linear_cross_entropy: gather");
    bool in_parts = space_.parts > 1;
    pnb_tensor sum = in_parts ? matrix(sum_, PNB_DTYPE_F32, c.count, h_, h_) : matrix(rows_, p_.x.dtype, c.count, h_, h_);
    for (int64_t i = 0; i < space_.parts; ++i) {
      int64_t first = i * space_.columns;
      Part p = part(c, first, std::min(space_.columns, vocab_ - first));
      gemm_.run(p.forward(p_), Exponentials{shifts_, left_out_ + i * c.count, sums_ + first / kExponentialColumns * c.count});
      if (!gradient_) continue;
      pnb_gemm_params backward = p.backward(p_, sum);
      if (i > 0) backward.residual = sum;
      // What does not divide is a last part's.
      if (space_.ranges > 1 && divides(space_.ranges, p.logits.shape[1])) gemm_.run(backward, space_.ranges);
      else gemm_.run(backward);
    }
    Sums sums{sums_, static_cast<int>(space_.tiles), static_cast<int>(ceil_div(space_.columns, kExponentialColumns))};
    auto finish = [&](auto* from) {
      finish_rows<<<c.blocks(), kRowThreads, 0, stream_>>>(sums, rows_of(c), m_, targets_of(c), weight(), weight_.row_stride,
                                                           vocab_, grad_scale(), from, space_.ranges,
                                                           gradient_ ? dx() : nullptr, p_.dx.stride[0], h_, losses_ + c.first);
    };
    if (in_parts) finish(sum_);
    else finish(rows_);
    check_launch("linear_cross_entropy: rows");
  }

  void by_softmax(const Chunk& c) {
    auto gather_kernel = vectors_ ? gather<T, kVector<T>> : gather<T, 1>;
    gather_kernel<<<c.blocks(), kRowThreads, 0, stream_>>>(x(), p_.x.stride[0], rows_of(c), m_, rows_, h_);
    check_launch("linear_cross_entropy: gather");
    Part all = part(c, 0, vocab_);
    gemm_.run(all.forward(p_));
    auto loss_kernel = gradient_ ? softmax_loss<T, true> : softmax_loss<T, false>;
    loss_kernel<<<c.blocks(), kThreads, 0, stream_>>>(logits_, all.logits.stride[0], vocab_, rows_of(c), m_, targets_of(c),
                                                      grad_scale(), losses_ + c.first);
    check_launch("linear_cross_entropy: softmax");
    if (!gradient_) return;
    gemm_.run(all.backward(p_, all.rows));
    auto scatter_kernel = vectors_ ? scatter<T, kVector<T>> : scatter<T, 1>;
    scatter_kernel<<<c.blocks(), kRowThreads, 0, stream_>>>(rows_, rows_of(c), m_, dx(), p_.dx.stride[0], h_);
    check_launch("linear_cross_entropy: scatter");
  }

  Gemm& gemm_;
  const pnb_linear_cross_entropy_params& p_;
  const Weight& weight_;
  Plan space_;
  cudaStream_t stream_;
  bool gradient_;
  int64_t m_, h_, vocab_;
  bool vectors_;
  T* rows_;
  float* sum_;  // [ranges, rows, h]: of what the parts of the vocabulary give a chunk's rows; a single part's lies in rows_
  T* logits_;
  float *losses_, *shifts_;
  int32_t* left_out_;  // [parts, rows]: each row's target, counted from the part's first column
  float* sums_;
};

}  // namespace

void linear_cross_entropy(const Device&, Gemm& gemm, const pnb_linear_cross_entropy_params& p) {
  with_type(p.x.dtype, [&](auto type) { Chunks<decltype(type)>(gemm, p).run(); });
}

// Enough for every smaller call, too: who asks for the largest one's has that. Fewer rows may take more ranges.
uint64_t linear_cross_entropy_workspace(const Device&, Gemm& gemm, const pnb_linear_cross_entropy_params& p) {
  int64_t n = supervised(p);
  uint64_t bytes = plan(gemm, p, n).bytes();
  for (int64_t fewer = kTileRows; fewer <= std::min(n, kFewRows); fewer += kTileRows) {
    bytes = std::max(bytes, plan(gemm, p, fewer).bytes());
  }
  return bytes;
}

}  // namespace pnb::cuda
