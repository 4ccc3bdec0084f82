#include "cpu/embedding.h"

#include <algorithm>

#include "core/error.h"
#include "core/tensor.h"
#include "cpu/convert.h"

namespace pnb::cpu {

namespace {

void check_indices(const char* name, const pnb_tensor& indices, int64_t offset, const pnb_tensor& table) {
  if (!present(table)) return;
  const int32_t* values = static_cast<const int32_t*>(indices.data);
  for (int64_t i = 0; i < indices.shape[0]; ++i) {
    int64_t index = values[i] + offset;
    if (index < 0 || index >= table.shape[0]) {
      fail(PNB_ERROR_INVALID_ARGUMENT, "embedding: expected %s within a table of %lld rows, found %lld at %lld", name,
           static_cast<long long>(table.shape[0]), static_cast<long long>(index), static_cast<long long>(i));
    }
  }
}

constexpr int64_t kPiece = 256;  // columns that are summed in f32 at a time

char* element(const pnb_tensor& t, int64_t row, int64_t column) {
  return static_cast<char*>(t.data) + (row * t.stride[0] + column) * dtype_size(t.dtype);
}

// sum[i] += t[row][column + i]
void add(const pnb_tensor& t, int64_t row, int64_t column, float* sum, int64_t count) {
  float piece[kPiece];
  row_to_float(element(t, row, column), t.dtype, piece, count);
  for (int64_t i = 0; i < count; ++i) sum[i] += piece[i];
}

}  // namespace

void embedding(const pnb_embedding_params& p, int threads) {
  check_indices("tokens", p.tokens, 0, p.table);
  check_indices("positions", p.positions, p.position_offset, p.position_table);
  int64_t h = p.d.shape[1];
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < p.d.shape[0]; ++i) {
    for (int64_t column = 0; column < h; column += kPiece) {
      int64_t count = std::min(kPiece, h - column);
      float sum[kPiece] = {};
      if (present(p.table)) add(p.table, static_cast<const int32_t*>(p.tokens.data)[i], column, sum, count);
      if (present(p.position_table)) {
        int64_t position = static_cast<const int32_t*>(p.positions.data)[i] + p.position_offset;
        add(p.position_table, position, column, sum, count);
      }
      if (present(p.residual)) add(p.residual, i, column, sum, count);
      row_from_float(sum, element(p.d, i, column), p.d.dtype, count);
    }
  }
}

}  // namespace pnb::cpu
