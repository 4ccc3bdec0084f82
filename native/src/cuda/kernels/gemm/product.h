// A product as its kernels take it: d = epilogue(a * b + low-rank terms + bias) + residual.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/kernels/philox.cuh"
#include "penumbra/gemm.h"

namespace pnb::cuda {

// A strided matrix; data == nullptr says "absent".
struct Matrix {
  void* data = nullptr;
  int64_t row_stride = 0;  // elements
  int64_t column_stride = 0;
};

// scale * dropout(h[m, rank] * b[columns, rank]^T), added to columns [column, column + columns) of the product.
struct LowRankTerm {
  const float* h = nullptr;
  int64_t h_stride = 0;
  const float* b = nullptr;
  int64_t b_column_stride = 0;  // from one column of the product to the next
  int64_t b_rank_stride = 0;
  int32_t rank = 0;
  int32_t column = 0;
  int32_t columns = 0;
  float scale = 1.0f;
  DropoutParams dropout;
};

// Instead of a product's rows z what a softmax over them needs: d[i, j] = 2^min(z[i, j] log2(e) - shift[i], kMostExponent), 0 in
// column `left_out[i]`, and a row's sums over each kExponentialColumns columns of what was not left out, before rounding.
struct Exponentials {
  const float* shift = nullptr;  // [m]; nullptr: z itself
  const int32_t* left_out = nullptr;  // [m]
  float* sums = nullptr;  // [m, ceil(n / kExponentialColumns)]
};
constexpr int kExponentialColumns = 128;
constexpr float kMostExponent = 100.0f;  // sums of any row's powers stay finite

struct Epilogue {
  int32_t kind = PNB_EPILOGUE_NONE;
  int32_t term_count = 0;
  LowRankTerm terms[PNB_MAX_LOW_RANK];
  const float* bias = nullptr;
  uint8_t* mask = nullptr;  // bit (j mod 8) of byte j / 8 of a row
  int64_t mask_stride = 0;  // bytes
  bool mask_compact = false;  // whether its bits lie as columns of a compact d do
  Exponentials exponentials;  // only with no kind, term, bias or residual

  bool bare() const { return kind == PNB_EPILOGUE_NONE && term_count == 0 && bias == nullptr; }

  // Whether some term has dropout.
  bool dropout() const {
    bool any = false;
    for (int t = 0; t < term_count; ++t) any |= terms[t].dropout.active();
    return any;
  }
};

// Lists of active blocks of neurons; indices == nullptr says "all, in their places".
struct Blocks {
  const int32_t* indices = nullptr;  // [lists, capacity]
  int64_t stride = 0;                // from one list to the next
  const int32_t* counts = nullptr;   // [lists]
  int32_t capacity = 0;
  int32_t size_bits = 0;      // a block has 1 << size_bits neurons
  int32_t rows_per_list = 0;  // at least m where one list serves all rows
  int32_t neurons = 0;        // of the weight
};

// Which of a product's dimensions a list's blocks lie along.
enum class Gather { kNone, kColumns, kSteps };

struct Product {
  int32_t m = 0, n = 0, k = 0;
  int32_t dtype = 0;    // of a and b
  int32_t d_dtype = 0;  // of d and residual
  Matrix a;             // [m, k]
  Matrix b;             // [k, n]; with blocks the whole weight: [k, neurons] or [neurons, n]
  Matrix residual;      // [m, n], columns contiguous
  Matrix d;             // [m, n], columns contiguous; may be residual itself
  Epilogue epilogue;
  Gather gather = Gather::kNone;  // kColumns: n is compact, as d is; kSteps: k is, as a is
  Blocks blocks;
  int32_t ranges = 1;  // that k is divided into, of equal size; d and residual are [ranges, m, n] then, without gaps

  // Columns that bias, terms and a mask that is not compact have.
  int32_t epilogue_columns() const { return gather == Gather::kColumns ? blocks.neurons : n; }
};

// Any strides, f32 or bf16: correct everywhere, fast nowhere.
void plain_product(const Product& p, cudaStream_t stream);

// bf16, few rows, b's columns contiguous along k and aligned to 16 bytes: as fast as b can be read.
constexpr int kSkinnyRows = 16;
void skinny_product(const Product& p, cudaStream_t stream);

}  // namespace pnb::cuda
