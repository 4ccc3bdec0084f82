#include "cpu/layer_norm.h"

#include <cmath>
#include <vector>

#include "core/tensor.h"
#include "cpu/convert.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

namespace pnb::cpu {

namespace {

// Sums in 16 lanes, so that the order does not depend on the vector width.
inline __attribute__((always_inline)) float lane_sum(const Vector& lanes, float rest) {
  for (int lane = 0; lane < kLanes; ++lane) rest += lanes[lane];
  return rest;
}

PNB_MULTIVERSION float sum(const float* row, int64_t count) {
  Vector lanes{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) lanes += *reinterpret_cast<const Vector*>(row + i);
  float rest = 0.0f;
  for (; i < count; ++i) rest += row[i];
  return lane_sum(lanes, rest);
}

PNB_MULTIVERSION float squared_distance(const float* row, float centre, int64_t count) {
  Vector lanes{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vector distance = *reinterpret_cast<const Vector*>(row + i) - centre;
    lanes += distance * distance;
  }
  float rest = 0.0f;
  for (; i < count; ++i) rest += (row[i] - centre) * (row[i] - centre);
  return lane_sum(lanes, rest);
}

PNB_MULTIVERSION void normalise(float* row, float mean, float rstd, const float* gamma, const float* beta, int64_t count) {
  for (int64_t i = 0; i < count; ++i) row[i] = (row[i] - mean) * rstd * gamma[i] + beta[i];
}

// On return x holds the normalised row and dy the gradient times gamma; the answers are their two means.
PNB_MULTIVERSION void backward_means(float* x, float* dy, const float* gamma, float mean, float rstd, int64_t count,
                                     float* mean_dy, float* mean_dy_x) {
  for (int64_t i = 0; i < count; ++i) {
    x[i] = (x[i] - mean) * rstd;
    dy[i] *= gamma[i];
  }
  Vector plain{};
  Vector weighted{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vector gradient = *reinterpret_cast<const Vector*>(dy + i);
    plain += gradient;
    weighted += gradient * *reinterpret_cast<const Vector*>(x + i);
  }
  float rest = 0.0f;
  float weighted_rest = 0.0f;
  for (; i < count; ++i) {
    rest += dy[i];
    weighted_rest += dy[i] * x[i];
  }
  *mean_dy = lane_sum(plain, rest) / count;
  *mean_dy_x = lane_sum(weighted, weighted_rest) / count;
}

PNB_MULTIVERSION void backward_row(const float* x, float* dy, float mean_dy, float mean_dy_x, float rstd, int64_t count) {
  for (int64_t i = 0; i < count; ++i) dy[i] = rstd * (dy[i] - mean_dy - x[i] * mean_dy_x);
}

PNB_MULTIVERSION void add(float* row, const float* other, int64_t count) {
  for (int64_t i = 0; i < count; ++i) row[i] += other[i];
}

const char* row_at(const pnb_tensor& t, int64_t row) {
  return static_cast<const char*>(t.data) + row * t.stride[0] * dtype_size(t.dtype);
}

}  // namespace

void layer_norm_forward(const pnb_layer_norm_forward_params& p, int threads) {
  int64_t h = p.x.shape[1];
  const float* gamma = static_cast<const float*>(p.gamma.data);
  const float* beta = static_cast<const float*>(p.beta.data);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> row(h);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.x.shape[0]; ++i) {
      row_to_float(row_at(p.x, i), p.x.dtype, row.data(), h);
      float mean = sum(row.data(), h) / h;
      float rstd = 1.0f / std::sqrt(squared_distance(row.data(), mean, h) / h + p.epsilon);
      normalise(row.data(), mean, rstd, gamma, beta, h);
      row_from_float(row.data(), const_cast<char*>(row_at(p.y, i)), p.y.dtype, h);
      if (present(p.mean)) {
        static_cast<float*>(p.mean.data)[i] = mean;
        static_cast<float*>(p.rstd.data)[i] = rstd;
      }
    }
  }
}

void layer_norm_backward(const pnb_layer_norm_backward_params& p, int threads) {
  int64_t h = p.x.shape[1];
  const float* gamma = static_cast<const float*>(p.gamma.data);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> x(h);
    std::vector<float> dy(h);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.x.shape[0]; ++i) {
      float mean = static_cast<const float*>(p.mean.data)[i];
      float rstd = static_cast<const float*>(p.rstd.data)[i];
      row_to_float(row_at(p.x, i), p.x.dtype, x.data(), h);
      row_to_float(row_at(p.dy, i), p.dy.dtype, dy.data(), h);
      float mean_dy = 0.0f;
      float mean_dy_x = 0.0f;
      backward_means(x.data(), dy.data(), gamma, mean, rstd, h, &mean_dy, &mean_dy_x);
      backward_row(x.data(), dy.data(), mean_dy, mean_dy_x, rstd, h);
      if (present(p.residual)) {
        row_to_float(row_at(p.residual, i), p.residual.dtype, x.data(), h);
        add(dy.data(), x.data(), h);
      }
      row_from_float(dy.data(), const_cast<char*>(row_at(p.dx, i)), p.dx.dtype, h);
    }
  }
}

}  // namespace pnb::cpu
