#include "cpu/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "core/tensor.h"
#include "cpu/convert.h"
#include "cpu/exp.h"
#include "cpu/simd.h"
#include "cpu/weight.h"

namespace pnb::cpu {

namespace {

// Rows whose logits exist at one time: 256 rows of OPT's 50272 tokens are 51 MB in f32. Fewer would read the head's
// weight more often, and it does not fit in a cache.
constexpr int64_t kRows = 256;
constexpr uint64_t kAlignment = 256;

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Where the pieces of the workspace lie.
struct Layout {
  int64_t rows;
  uint64_t x, dx, gradients, bytes;  // offsets; the logits come first

  explicit Layout(const pnb_linear_cross_entropy_params& p) {
    rows = std::min<int64_t>(kRows, std::max<int64_t>(p.rows.shape[0], 1));
    uint64_t size = dtype_size(p.x.dtype);
    x = aligned(rows * p.weight->out * sizeof(float));
    dx = x + aligned(rows * p.weight->in * size);
    gradients = dx + aligned(rows * p.weight->in * size);
    // In f32 the gradients take the logits' place.
    bytes = gradients + (p.x.dtype == PNB_DTYPE_F32 ? 0 : aligned(rows * p.weight->out * size));
  }
};

PNB_MULTIVERSION float row_maximum(const float* row, int64_t count) {
  float maximum = row[0];
  for (int64_t i = 0; i < count; ++i) maximum = row[i] > maximum ? row[i] : maximum;
  return maximum;
}

// row = exp(row - maximum); returns the sum, in 16 lanes so that the order is the same whatever the vector width.
PNB_MULTIVERSION double exp_row(float* row, float maximum, int64_t count) {
  float lanes[16] = {};
  double sum = 0.0;
  int64_t i = 0;
  for (; i + 1024 <= count; i += 1024) {
    for (int64_t block = i; block < i + 1024; block += 16) {
      for (int lane = 0; lane < 16; ++lane) {
        float value = exp_not_positive(row[block + lane] - maximum);
        row[block + lane] = value;
        lanes[lane] += value;
      }
    }
    for (float& lane : lanes) {
      sum += lane;
      lane = 0.0f;
    }
  }
  for (; i < count; ++i) {
    row[i] = exp_not_positive(row[i] - maximum);
    sum += row[i];
  }
  return sum;
}

PNB_MULTIVERSION void scale_row(float* row, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) row[i] *= factor;
}

}  // namespace

uint64_t linear_cross_entropy_workspace(const pnb_linear_cross_entropy_params& p) { return Layout(p).bytes; }

void linear_cross_entropy(Gemm& gemm, const pnb_linear_cross_entropy_params& p, int threads) {
  const auto* weight = static_cast<const PackedWeight*>(p.weight);
  const int32_t* rows = static_cast<const int32_t*>(p.rows.data);
  const int32_t* targets = static_cast<const int32_t*>(p.targets.data);
  int64_t vocab = weight->out;
  int64_t hidden = weight->in;
  int64_t supervised = p.rows.shape[0];
  for (int64_t i = 0; i < supervised; ++i) {
    if (rows[i] < 0 || rows[i] >= p.x.shape[0] || (i > 0 && rows[i] <= rows[i - 1])) {
      fail(PNB_ERROR_INVALID_ARGUMENT, "linear_cross_entropy: expected rows ascending within [0, %lld), found %d at %lld",
           static_cast<long long>(p.x.shape[0]), rows[i], static_cast<long long>(i));
    }
    if (targets[i] < 0 || targets[i] >= vocab) {
      fail(PNB_ERROR_INVALID_ARGUMENT, "linear_cross_entropy: expected targets within [0, %lld), found %d at %lld",
           static_cast<long long>(vocab), targets[i], static_cast<long long>(i));
    }
  }

  Layout layout(p);
  char* base = static_cast<char*>(p.workspace.data);
  float* logits = reinterpret_cast<float*>(base);
  int size = dtype_size(p.x.dtype);
  bool gradient = present(p.dx);
  float grad_scale = gradient ? *static_cast<const float*>(p.grad_scale.data) : 0.0f;
  if (gradient) {
    pnb_fill_params zero{};
    zero.d = p.dx;
    pnb::cpu::fill(zero, threads);
  }
  std::vector<double> losses(layout.rows);
  double loss = 0.0;
  for (int64_t from = 0; from < supervised; from += layout.rows) {
    int64_t count = std::min(layout.rows, supervised - from);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(base + layout.x + i * hidden * size,
                  static_cast<const char*>(p.x.data) + rows[from + i] * p.x.stride[0] * size, hidden * size);
    }
    gemm.product(plain_matrix(base + layout.x, p.x.dtype, count, hidden, hidden, 1), weight->forward,
                 plain_matrix(logits, PNB_DTYPE_F32, count, vocab, vocab, 1));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      float* row = logits + i * vocab;
      int32_t target = targets[from + i];
      float maximum = row_maximum(row, vocab);
      double correct = row[target];
      double sum = exp_row(row, maximum, vocab);
      losses[i] = std::log(sum) + maximum - correct;
      if (gradient) {
        scale_row(row, static_cast<float>(grad_scale / sum), vocab);
        row[target] -= grad_scale;
        if (p.x.dtype == PNB_DTYPE_BF16) row_from_float(row, base + layout.gradients + i * vocab * size, PNB_DTYPE_BF16, vocab);
      }
    }
    for (int64_t i = 0; i < count; ++i) loss += losses[i];
    if (!gradient) continue;
    void* gradients = p.x.dtype == PNB_DTYPE_F32 ? static_cast<void*>(logits) : base + layout.gradients;
    gemm.product(plain_matrix(gradients, p.x.dtype, count, vocab, vocab, 1), weight->backward,
                 plain_matrix(base + layout.dx, p.x.dtype, count, hidden, hidden, 1));
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(static_cast<char*>(p.dx.data) + rows[from + i] * p.dx.stride[0] * size,
                  base + layout.dx + i * hidden * size, hidden * size);
    }
  }
  *static_cast<float*>(p.loss.data) += static_cast<float>(loss);
}

}  // namespace pnb::cpu
