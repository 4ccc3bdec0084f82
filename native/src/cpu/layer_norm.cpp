#include "cpu/layer_norm.h"

#include <algorithm>
#include <cmath>

#include "core/tensor.h"
#include "cpu/lanes.h"
#include "cpu/simd.h"

// A row is read several times in its own dtype, from the first-level cache, and widened in registers. Of an f32 row between
// products in bf16 (a residual stream), the norm and all gradients are bf16.

namespace pnb::cpu {

namespace {

struct ForwardRow {
  const void *x, *next;  // the row, and the one after it
  const float *gamma, *beta;
  void* y;
  int64_t h;
  float epsilon, mean, rstd;  // mean and rstd are written
  float* sum;                 // [h]: += y before it is rounded; may be null
};

template <typename X, typename Y>
inline __attribute__((always_inline)) void forward_body(ForwardRow& r) {
  const X* x = static_cast<const X*>(r.x);
  Y* y = static_cast<Y*>(r.y);
  int64_t whole = r.h / kLanes * kLanes;
  Vector value, lanes{};
  float rest = 0.0f;
  for (int64_t i = 0; i < whole; i += kLanes) {
    __builtin_prefetch(static_cast<const X*>(r.next) + i);
    load_lanes(x + i, value);
    lanes += value;
  }
  for (int64_t i = whole; i < r.h; ++i) rest += to_float(x[i]);
  float mean = (lane_sum(lanes) + rest) / r.h;

  lanes = Vector{};
  rest = 0.0f;
  for (int64_t i = 0; i < whole; i += kLanes) {
    load_lanes(x + i, value);
    lanes += (value - mean) * (value - mean);
  }
  for (int64_t i = whole; i < r.h; ++i) rest += (to_float(x[i]) - mean) * (to_float(x[i]) - mean);
  float rstd = 1.0f / std::sqrt((lane_sum(lanes) + rest) / r.h + r.epsilon);

  for (int64_t i = 0; i < whole; i += kLanes) {
    Vector gamma, beta;
    load_lanes(x + i, value);
    load_lanes(r.gamma + i, gamma);
    load_lanes(r.beta + i, beta);
    value = (value - mean) * rstd * gamma + beta;
    store_lanes(value, y + i);
    if (r.sum != nullptr) *reinterpret_cast<Vector*>(r.sum + i) += value;
  }
  for (int64_t i = whole; i < r.h; ++i) {
    float result = (to_float(x[i]) - mean) * rstd * r.gamma[i] + r.beta[i];
    from_float(result, y + i);
    if (r.sum != nullptr) r.sum[i] += result;
  }
  r.mean = mean;
  r.rstd = rstd;
}

PNB_MULTIVERSION void forward_f32(ForwardRow& r) { forward_body<float, float>(r); }
PNB_MULTIVERSION void forward_bf16(ForwardRow& r) { forward_body<uint16_t, uint16_t>(r); }
PNB_MULTIVERSION void forward_f32_to_bf16(ForwardRow& r) { forward_body<float, uint16_t>(r); }

struct BackwardRow {
  const void *dy, *x, *residual;  // residual may be null
  const float* gamma;
  void* dx;
  int64_t h;
  float mean, rstd;
};

// With x' the normalised x and g = dy * gamma: dx = rstd * (g - mean(g) - x' * mean(g * x')) + residual.
template <typename X, typename G>
inline __attribute__((always_inline)) void backward_body(const BackwardRow& r) {
  const G* dy = static_cast<const G*>(r.dy);
  const X* x = static_cast<const X*>(r.x);
  const G* residual = static_cast<const G*>(r.residual);
  G* dx = static_cast<G*>(r.dx);
  int64_t whole = r.h / kLanes * kLanes;
  Vector value, gradient, gamma, other, plain{}, weighted{};
  float rest = 0.0f, weighted_rest = 0.0f;
  for (int64_t i = 0; i < whole; i += kLanes) {
    load_lanes(x + i, value);
    load_lanes(dy + i, gradient);
    load_lanes(r.gamma + i, gamma);
    plain += gradient * gamma;
    weighted += gradient * gamma * ((value - r.mean) * r.rstd);
  }
  for (int64_t i = whole; i < r.h; ++i) {
    float g = to_float(dy[i]) * r.gamma[i];
    rest += g;
    weighted_rest += g * ((to_float(x[i]) - r.mean) * r.rstd);
  }
  float mean_g = (lane_sum(plain) + rest) / r.h;
  float mean_gx = (lane_sum(weighted) + weighted_rest) / r.h;

  for (int64_t i = 0; i < whole; i += kLanes) {
    load_lanes(x + i, value);
    load_lanes(dy + i, gradient);
    load_lanes(r.gamma + i, gamma);
    Vector result = r.rstd * (gradient * gamma - mean_g - (value - r.mean) * r.rstd * mean_gx);
    if (residual != nullptr) {
      load_lanes(residual + i, other);
      result += other;
    }
    store_lanes(result, dx + i);
  }
  for (int64_t i = whole; i < r.h; ++i) {
    float result = r.rstd * (to_float(dy[i]) * r.gamma[i] - mean_g - (to_float(x[i]) - r.mean) * r.rstd * mean_gx);
    from_float(residual != nullptr ? result + to_float(residual[i]) : result, dx + i);
  }
}

PNB_MULTIVERSION void backward_f32(const BackwardRow& r) { backward_body<float, float>(r); }
PNB_MULTIVERSION void backward_bf16(const BackwardRow& r) { backward_body<uint16_t, uint16_t>(r); }
PNB_MULTIVERSION void backward_bf16_of_f32(const BackwardRow& r) { backward_body<float, uint16_t>(r); }

// By the dtypes of x and of what is computed from it.
template <typename Function>
Function* by_dtype(const pnb_tensor& x, const pnb_tensor& other, Function* f32, Function* bf16, Function* mixed) {
  if (x.dtype == PNB_DTYPE_BF16) return bf16;
  return other.dtype == PNB_DTYPE_F32 ? f32 : mixed;
}

char* row_at(const pnb_tensor& t, int64_t row) {
  return static_cast<char*>(t.data) + row * t.stride[0] * dtype_size(t.dtype);
}

}  // namespace

void layer_norm_forward(const pnb_layer_norm_forward_params& p, int threads) {
  auto forward = by_dtype(p.x, p.y, forward_f32, forward_bf16, forward_f32_to_bf16);
  auto row = [&](int64_t i, float* sum) {
    ForwardRow row{row_at(p.x, i), row_at(p.x, std::min(i + 1, p.x.shape[0] - 1)), static_cast<const float*>(p.gamma.data),
                   static_cast<const float*>(p.beta.data), row_at(p.y, i), p.x.shape[1], p.epsilon, 0.0f, 0.0f, sum};
    forward(row);
    if (present(p.mean)) {
      static_cast<float*>(p.mean.data)[i] = row.mean;
      static_cast<float*>(p.rstd.data)[i] = row.rstd;
    }
  };
  int64_t m = p.x.shape[0], h = p.x.shape[1];
  if (!present(p.pooled)) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < m; ++i) row(i, nullptr);
    return;
  }
  // A thread takes whole groups: a mean's sum has the order of its rows.
  int64_t valid = present(p.valid_rows) ? std::min<int64_t>(*static_cast<const int32_t*>(p.valid_rows.data), m) : m;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t group = 0; group < p.pooled.shape[0]; ++group) {
    float* mean = static_cast<float*>(p.pooled.data) + group * h;
    std::fill_n(mean, h, 0.0f);
    int64_t first = group * p.pool_rows, last = std::min(first + p.pool_rows, m);
    for (int64_t i = first; i < last; ++i) row(i, i < valid ? mean : nullptr);
    int64_t counted = std::min(last, valid) - first;
    for (int64_t j = 0; counted > 1 && j < h; ++j) mean[j] /= static_cast<float>(counted);
  }
}

void layer_norm_backward(const pnb_layer_norm_backward_params& p, int threads) {
  auto backward = by_dtype(p.x, p.dy, backward_f32, backward_bf16, backward_bf16_of_f32);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < p.x.shape[0]; ++i) {
    backward({row_at(p.dy, i), row_at(p.x, i), present(p.residual) ? row_at(p.residual, i) : nullptr,
              static_cast<const float*>(p.gamma.data), row_at(p.dx, i), p.x.shape[1], static_cast<const float*>(p.mean.data)[i],
              static_cast<const float*>(p.rstd.data)[i]});
  }
}

}  // namespace pnb::cpu
