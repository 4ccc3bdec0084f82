#include "cpu/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/tensor.h"
#include "cpu/convert.h"
#include "cpu/exp.h"
#include "cpu/lanes.h"
#include "cpu/simd.h"
#include "cpu/strip_cross_entropy.h"
#include "cpu/weight.h"

namespace pnb::cpu {

namespace {

// Rows whose logits exist at one time, where strip_cross_entropy.h does not serve: 128 rows of OPT's 50272 tokens are 26 MB in
// f32, within a shared cache of 32 MB. On two cores 256 and 512 rows take the same time; fewer would read the head's weight
// more often, and it does not fit in a cache.
constexpr int64_t kRows = 128;
constexpr uint64_t kAlignment = 256;

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Where the pieces of the workspace lie: offsets in bytes, the logits come first. The gradients take the logits' place, in bf16
// the lower half of each row.
struct Layout {
  int64_t rows;
  uint64_t x, dx, losses, bytes;

  explicit Layout(const pnb_linear_cross_entropy_params& p) {
    rows = std::min<int64_t>(kRows, std::max<int64_t>(p.rows.shape[0], 1));
    uint64_t size = dtype_size(p.x.dtype);
    x = aligned(rows * p.weight->out * sizeof(float));
    dx = x + aligned(rows * p.weight->in * size);
    losses = dx + aligned(rows * p.weight->in * size);
    bytes = losses + aligned(rows * sizeof(double));
  }
};

PNB_MULTIVERSION float row_maximum(const float* row, int64_t count) {
  Vector value, highest = Vector{} + row[0];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    load_lanes(row + i, value);
    highest = value > highest ? value : highest;
  }
  float maximum = row[0];
  for (; i < count; ++i) maximum = row[i] > maximum ? row[i] : maximum;
  for (int lane = 0; lane < kLanes; ++lane) maximum = highest[lane] > maximum ? highest[lane] : maximum;
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

// d = factor * row; d may begin where row does, for what is written lies behind what is read.
template <typename T>
inline __attribute__((always_inline)) void scale_body(const float* row, float factor, T* d, int64_t count) {
  Vector value;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    load_lanes(row + i, value);
    store_lanes(value * factor, d + i);
  }
  for (; i < count; ++i) from_float(row[i] * factor, d + i);
}

PNB_MULTIVERSION void scale_row(const float* row, float factor, float* d, int64_t count) { scale_body(row, factor, d, count); }
PNB_MULTIVERSION void scale_to_bf16(const float* row, float factor, uint16_t* d, int64_t count) {
  scale_body(row, factor, d, count);
}

// The gradient of the logits from their exponentials: grad_scale * (exponentials / sum - onehot(target)), in their place.
void gradient_row(float* row, double sum, int32_t target, float grad_scale, int32_t dtype, int64_t count) {
  float factor = static_cast<float>(grad_scale / sum);
  float at_target = row[target] * factor - grad_scale;
  if (dtype == PNB_DTYPE_F32) {
    scale_row(row, factor, row, count);
    row[target] = at_target;
  } else {
    uint16_t* gradients = reinterpret_cast<uint16_t*>(row);
    scale_to_bf16(row, factor, gradients, count);
    gradients[target] = float_to_bf16(at_target);
  }
}

}  // namespace

uint64_t linear_cross_entropy_workspace(Matmul& matmul, const pnb_linear_cross_entropy_params& p, int threads) {
  return serves_strip_cross_entropy(matmul, p) ? strip_cross_entropy_workspace(p, threads) : Layout(p).bytes;
}

void linear_cross_entropy(Matmul& matmul, Gemm& gemm, const pnb_linear_cross_entropy_params& p, int threads) {
  const auto* weight = static_cast<const PackedWeight*>(p.weight);
  const int32_t* rows = static_cast<const int32_t*>(p.rows.data);
  const int32_t* targets = static_cast<const int32_t*>(p.targets.data);
  int64_t vocab = weight->out;
  int64_t hidden = weight->in;
  int64_t supervised = p.rows.shape[0];
  while (supervised > 0 && rows[supervised - 1] < 0) --supervised;
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
  if (serves_strip_cross_entropy(matmul, p)) {
    *static_cast<float*>(p.loss.data) += static_cast<float>(strip_cross_entropy(p, supervised, threads));
    return;
  }
  double* losses = reinterpret_cast<double*>(base + layout.losses);
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
      if (gradient) gradient_row(row, sum, target, grad_scale, p.x.dtype, vocab);
    }
    for (int64_t i = 0; i < count; ++i) loss += losses[i];
    if (!gradient) continue;
    int64_t row_stride = vocab * static_cast<int64_t>(sizeof(float)) / size;
    gemm.product(plain_matrix(logits, p.x.dtype, count, vocab, row_stride, 1), weight->backward,
                 plain_matrix(base + layout.dx, p.x.dtype, count, hidden, hidden, 1));
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(static_cast<char*>(p.dx.data) + rows[from + i] * p.dx.stride[0] * size,
                  base + layout.dx + i * hidden * size, hidden * size);
    }
  }
  *static_cast<float*>(p.loss.data) += static_cast<float>(loss);
}

}  // namespace pnb::cpu
