#include "cpu/embedding.h"

#include <vector>

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

void add_row(const pnb_tensor& table, int64_t index, float* row, float* piece, int64_t count) {
  row_to_float(static_cast<const char*>(table.data) + index * table.stride[0] * dtype_size(table.dtype), table.dtype, piece, count);
  for (int64_t i = 0; i < count; ++i) row[i] += piece[i];
}

}  // namespace

void embedding(const pnb_embedding_params& p, int threads) {
  check_indices("tokens", p.tokens, 0, p.table);
  check_indices("positions", p.positions, p.position_offset, p.position_table);
  int64_t h = p.d.shape[1];
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> row(h);
    std::vector<float> piece(h);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.d.shape[0]; ++i) {
      std::fill(row.begin(), row.end(), 0.0f);
      if (present(p.table)) add_row(p.table, static_cast<const int32_t*>(p.tokens.data)[i], row.data(), piece.data(), h);
      if (present(p.position_table)) {
        int64_t position = static_cast<const int32_t*>(p.positions.data)[i] + p.position_offset;
        add_row(p.position_table, position, row.data(), piece.data(), h);
      }
      if (present(p.residual)) add_row(p.residual, i, row.data(), piece.data(), h);
      row_from_float(row.data(), static_cast<char*>(p.d.data) + i * p.d.stride[0] * dtype_size(p.d.dtype), p.d.dtype, h);
    }
  }
}

}  // namespace pnb::cpu
