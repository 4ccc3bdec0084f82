#include "cpu/lora.h"

#include <algorithm>
#include <vector>

#include "core/tensor.h"
#include "cpu/convert.h"
#include "cpu/philox.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

// The rank is padded to 16 with zeros: for r = 4 that is four times the arithmetic, and still less than reading x.
// Products over tokens (dA, dB) are divided among threads by columns, never by tokens, so no partial sums are joined and the
// result does not depend on timing.

namespace pnb::cpu {

namespace {

constexpr int64_t kRows = 64;       // rows widened at a time
constexpr int64_t kColumns = 256;   // columns of a slice: 64 x 256 f32 are 64 KB, inside the second-level cache

PNB_MULTIVERSION void product(float* c, int64_t c_row, const float* a, int64_t a_row, int64_t a_column, const float* b,
                              int64_t b_row, int64_t rows, int64_t columns, int64_t depth, bool add) {
  tile_product(c, c_row, a, a_row, a_column, b, b_row, rows, columns, depth, add);
}

// Rows [first, first + rows) and columns [column, column + columns) of t in f32, dropped where the mask says so;
// rows past the end of t and columns past `columns` are zero up to the padding.
void widen(const pnb_tensor& t, int64_t first, int64_t rows, int64_t column, int64_t columns, int64_t padded,
           const DropoutMask& mask, float* d) {
  int size = dtype_size(t.dtype);
  for (int64_t i = 0; i < kRows; ++i) {
    float* row = d + i * padded;
    if (i >= rows) {
      std::fill_n(row, padded, 0.0f);
      continue;
    }
    row_to_float(static_cast<const char*>(t.data) + ((first + i) * t.stride[0] + column) * size, t.dtype, row, columns);
    if (mask.active()) mask.apply(row, (first + i) * t.shape[1] + column, columns);
    std::fill(row + columns, row + padded, 0.0f);
  }
}

// A factor f(k, j) with element strides, as [depth, padded rank].
std::vector<float> padded_factor(const float* f, int64_t depth, int64_t depth_stride, int64_t rank, int64_t rank_stride) {
  int64_t padded = round_up(rank, kLanes);
  std::vector<float> result(std::max<int64_t>(depth * padded, 1));
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t j = 0; j < rank; ++j) result[k * padded + j] = f[k * depth_stride + j * rank_stride];
  }
  return result;
}

// h = scale * dropout(x) * factor, factor [columns of x, padded rank].
void project(const pnb_tensor& x, const std::vector<float>& factor, const DropoutMask& mask, float scale, const pnb_tensor& h,
             int threads) {
  int64_t m = x.shape[0];
  int64_t in = x.shape[1];
  int64_t rank = h.shape[1];
  int64_t padded = round_up(rank, kLanes);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> rows(kRows * kColumns);
    std::vector<float> sums(kRows * padded);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < m; first += kRows) {
      int64_t count = std::min(kRows, m - first);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t column = 0; column < in; column += kColumns) {
        int64_t width = std::min(kColumns, in - column);
        widen(x, first, count, column, width, width, mask, rows.data());
        product(sums.data(), padded, rows.data(), width, 1, factor.data() + column * padded, padded, kRows, padded, width, true);
      }
      for (int64_t i = 0; i < count; ++i) {
        float* target = static_cast<float*>(h.data) + (first + i) * h.stride[0];
        for (int64_t j = 0; j < rank; ++j) target[j * h.stride[1]] = scale * sums[i * padded + j];
      }
    }
  }
}

// d(j, c) += scale * sum over tokens of left(token, j) * dropout(x)(token, c), left [tokens, padded rank];
// j runs along d's dimension `rank_dim`.
void accumulate(const pnb_tensor& x, const std::vector<float>& left, const DropoutMask& mask, float scale, const pnb_tensor& d,
                int rank_dim, int threads) {
  int64_t m = x.shape[0];
  int64_t rank = d.shape[rank_dim];
  int64_t padded = round_up(rank, kLanes);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> rows(kRows * kColumns);
    std::vector<float> sums(padded * kColumns);
#pragma omp for schedule(static)
    for (int64_t column = 0; column < x.shape[1]; column += kColumns) {
      int64_t width = std::min(kColumns, x.shape[1] - column);
      int64_t wide = round_up(width, kLanes);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t first = 0; first < m; first += kRows) {
        int64_t count = std::min(kRows, m - first);
        widen(x, first, count, column, width, wide, mask, rows.data());
        product(sums.data(), wide, left.data() + first * padded, 1, padded, rows.data(), wide, round_up(rank, 4), wide, count, true);
      }
      float* target = static_cast<float*>(d.data) + column * d.stride[1 - rank_dim];
      for (int64_t j = 0; j < rank; ++j) {
        for (int64_t c = 0; c < width; ++c) {
          target[j * d.stride[rank_dim] + c * d.stride[1 - rank_dim]] += scale * sums[j * wide + c];
        }
      }
    }
  }
}

std::vector<float> padded_rows(const pnb_tensor& t) {
  return padded_factor(static_cast<const float*>(t.data), t.shape[0], t.stride[0], t.shape[1], t.stride[1]);
}

std::vector<float> padded_columns(const pnb_tensor& t) {
  return padded_factor(static_cast<const float*>(t.data), t.shape[1], t.stride[1], t.shape[0], t.stride[0]);
}

}  // namespace

void lora_project(const pnb_lora_project_params& p, int threads) {
  project(p.x, padded_columns(p.a), DropoutMask(p.dropout), 1.0f, p.h, threads);
}

void lora_gradients(const pnb_lora_gradients_params& p, int threads) {
  DropoutMask none{pnb_dropout{}};
  project(p.dy, padded_rows(p.b), none, p.scaling, p.dh, threads);
  accumulate(p.dy, padded_rows(p.h), none, p.scaling, p.db, 1, threads);
  accumulate(p.x, padded_rows(p.dh), DropoutMask(p.dropout), 1.0f, p.da, 0, threads);
}

}  // namespace pnb::cpu
