#include "cpu/convert.h"

#include <algorithm>
#include <vector>

#include "core/tensor.h"
#include "cpu/bf16.h"
#include "cpu/simd.h"

namespace pnb::cpu {

namespace {

PNB_MULTIVERSION void bf16_row_to_float(const uint16_t* s, float* d, int64_t count) {
  for (int64_t i = 0; i < count; ++i) d[i] = bf16_to_float(s[i]);
}

PNB_MULTIVERSION void f16_row_to_float(const uint16_t* s, float* d, int64_t count) {
  for (int64_t i = 0; i < count; ++i) d[i] = f16_to_float(s[i]);
}

PNB_MULTIVERSION void float_row_to_bf16(const float* s, uint16_t* d, int64_t count) {
  for (int64_t i = 0; i < count; ++i) d[i] = float_to_bf16(s[i]);
}

// A tensor as rows along its last dimension: where row i starts, in elements.
int64_t row_offset(const pnb_tensor& t, int64_t row) {
  int64_t offset = 0;
  for (int i = t.rank - 2; i >= 0; --i) {
    offset += row % t.shape[i] * t.stride[i];
    row /= t.shape[i];
  }
  return offset;
}

template <typename T>
void fill_row(T* row, int64_t count, int64_t stride, T value) {
  for (int64_t i = 0; i < count; ++i) row[i * stride] = value;
}

}  // namespace

void row_to_float(const void* s, int32_t dtype, float* d, int64_t count) {
  switch (dtype) {
    case PNB_DTYPE_F32: std::memcpy(d, s, count * sizeof(float)); break;
    case PNB_DTYPE_BF16: bf16_row_to_float(static_cast<const uint16_t*>(s), d, count); break;
    default: f16_row_to_float(static_cast<const uint16_t*>(s), d, count); break;
  }
}

void row_from_float(const float* s, void* d, int32_t dtype, int64_t count) {
  if (dtype == PNB_DTYPE_F32) {
    std::memcpy(d, s, count * sizeof(float));
  } else {
    float_row_to_bf16(s, static_cast<uint16_t*>(d), count);
  }
}

void fill(const pnb_fill_params& p, int threads) {
  int64_t columns = p.d.shape[p.d.rank - 1];
  int64_t rows = columns == 0 ? 0 : element_count(p.d) / columns;
  int64_t stride = p.d.stride[p.d.rank - 1];
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    char* start = static_cast<char*>(p.d.data) + row_offset(p.d, row) * dtype_size(p.d.dtype);
    switch (p.d.dtype) {
      case PNB_DTYPE_F32: fill_row(reinterpret_cast<float*>(start), columns, stride, p.value); break;
      case PNB_DTYPE_BF16: fill_row(reinterpret_cast<uint16_t*>(start), columns, stride, float_to_bf16(p.value)); break;
      case PNB_DTYPE_I32: fill_row(reinterpret_cast<int32_t*>(start), columns, stride, static_cast<int32_t>(p.value)); break;
      case PNB_DTYPE_U8: fill_row(reinterpret_cast<uint8_t*>(start), columns, stride, static_cast<uint8_t>(p.value)); break;
      default: fill_row(reinterpret_cast<uint64_t*>(start), columns, stride, static_cast<uint64_t>(p.value)); break;
    }
  }
}

void convert(const pnb_convert_params& p, int threads) {
  constexpr int64_t kPiece = 1024;  // elements converted by way of a buffer that stays in the first-level cache
  int last = p.s.rank - 1;
  int64_t columns = p.s.shape[last];
  int64_t rows = columns == 0 ? 0 : element_count(p.s) / columns;
  int s_size = dtype_size(p.s.dtype);
  int d_size = dtype_size(p.d.dtype);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const char* s = static_cast<const char*>(p.s.data) + row_offset(p.s, row) * s_size;
    char* d = static_cast<char*>(p.d.data) + row_offset(p.d, row) * d_size;
    float piece[kPiece];
    for (int64_t from = 0; from < columns; from += kPiece) {
      int64_t count = std::min(kPiece, columns - from);
      if (p.s.stride[last] == 1) {
        row_to_float(s + from * s_size, p.s.dtype, piece, count);
      } else {
        for (int64_t i = 0; i < count; ++i) row_to_float(s + (from + i) * p.s.stride[last] * s_size, p.s.dtype, piece + i, 1);
      }
      if (p.d.stride[last] == 1) {
        row_from_float(piece, d + from * d_size, p.d.dtype, count);
      } else {
        for (int64_t i = 0; i < count; ++i) row_from_float(piece + i, d + (from + i) * p.d.stride[last] * d_size, p.d.dtype, 1);
      }
    }
  }
}

}  // namespace pnb::cpu
