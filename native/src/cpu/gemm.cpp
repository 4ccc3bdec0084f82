#include "cpu/gemm.h"

#include <algorithm>

#include "core/tensor.h"
#include "cpu/convert.h"
#include "cpu/epilogue.h"
#include "cpu/philox.h"
#include "cpu/weight.h"

// Notes. On two Zen 4 cores a bf16 product of OPT-125M's shapes runs at 330-400 GFLOP/s; whatever oneDNN can fuse (bias,
// residual) is free. Its ReLU would turn NaN into 0, so ReLU and its mask are a pass of their own. Low-rank terms are added to an f32 product a few hundred rows at a time, so that the rows are
// still in the second-level cache when the epilogue reads them, and d is rounded once.

namespace pnb::cpu {

namespace {

// Rows of an f32 product that wait for their epilogue: 256 rows of 2304 columns are 2.4 MB, about two cores' L2.
constexpr int64_t kPieceRows = 256;

Matrix matrix_of(const pnb_tensor& t) {
  return plain_matrix(t.data, t.dtype, t.shape[0], t.shape[1], t.stride[0], t.stride[1]);
}

Matrix rows_of(const pnb_tensor& t, int64_t from, int64_t count, int64_t columns) {
  char* start = static_cast<char*>(t.data) + from * t.stride[0] * dtype_size(t.dtype);
  return plain_matrix(start, t.dtype, count, columns, t.stride[0], t.stride[1]);
}

template <typename T>
T* row_of(const pnb_tensor& t, int64_t row) {
  return static_cast<T*>(t.data) + row * t.stride[0];
}

}  // namespace

Matrix Gemm::widened(const Matrix& source, Scratch& scratch) {
  auto dims = source.desc.get_dims();
  auto strides = source.desc.get_strides();
  float* wide = scratch.floats(dims[0] * dims[1]);
  pnb_convert_params copy{};
  copy.s = {source.data, PNB_DTYPE_BF16, 2, {dims[0], dims[1]}, {strides[0], strides[1]}};
  bool transposed = strides[0] < strides[1];
  copy.d = {wide, PNB_DTYPE_F32, 2, {dims[0], dims[1]}, {transposed ? 1 : dims[1], transposed ? dims[0] : 1}};
  if (transposed) {  // walk along the contiguous dimension
    std::swap(copy.s.shape[0], copy.s.shape[1]);
    std::swap(copy.s.stride[0], copy.s.stride[1]);
    std::swap(copy.d.shape[0], copy.d.shape[1]);
    std::swap(copy.d.stride[0], copy.d.stride[1]);
  }
  convert(copy, threads_);
  return plain_matrix(wide, PNB_DTYPE_F32, dims[0], dims[1], transposed ? 1 : dims[1], transposed ? dims[0] : 1);
}

void Gemm::product(const Matrix& a, const Matrix& b, const Matrix& d, const Fusion& fusion) {
  auto bf16 = dnnl::memory::data_type::bf16;
  if (a.desc.get_data_type() != bf16 || matmul_.bf16()) {
    matmul_.run(a, b, d, fusion);
    return;
  }
  Matrix wide_a = widened(a, wide_a_);
  Matrix wide_b = widened(b, wide_b_);
  if (d.desc.get_data_type() != bf16) {
    matmul_.run(wide_a, wide_b, d, fusion);
    return;
  }
  auto dims = d.desc.get_dims();
  Matrix wide_d = plain_matrix(wide_d_.floats(dims[0] * dims[1]), PNB_DTYPE_F32, dims[0], dims[1], dims[1], 1);
  Fusion without_residual = fusion;
  without_residual.residual = nullptr;
  matmul_.run(wide_a, wide_b, wide_d, without_residual);
  auto strides = d.desc.get_strides();
  for (int64_t i = 0; i < dims[0]; ++i) {
    float* row = static_cast<float*>(wide_d.data) + i * dims[1];
    if (fusion.residual) {
      int64_t stride = fusion.residual->desc.get_strides()[0];
      add_bf16_row(row, static_cast<const uint16_t*>(fusion.residual->data) + i * stride, dims[1]);
    }
    row_from_float(row, static_cast<uint16_t*>(d.data) + i * strides[0], PNB_DTYPE_BF16, dims[1]);
  }
}

pnb_tensor Gemm::readable(const pnb_tensor& t, Scratch& scratch) {
  int64_t rows = t.shape[0];
  int64_t columns = t.shape[1];
  pnb_tensor view = t;
  if (columns == 1) view.stride[1] = 1;
  if (rows == 1 && view.stride[1] == 1) view.stride[0] = columns;
  bool by_rows = view.stride[1] == 1 && view.stride[0] >= columns;
  bool by_columns = rows > 1 && view.stride[0] == 1 && view.stride[1] >= rows;
  if (by_rows || by_columns) return view;
  pnb_convert_params copy{};
  copy.s = t;
  copy.d = t;
  copy.d.data = scratch.bytes(rows * columns * dtype_size(t.dtype));
  copy.d.stride[0] = columns;
  copy.d.stride[1] = 1;
  convert(copy, threads_);
  return copy.d;
}

void Gemm::run(const pnb_gemm_params& given) {
  int64_t m = given.d.shape[0];
  int64_t n = given.d.shape[1];
  if (m == 0 || n == 0) return;
  pnb_gemm_params p = given;
  p.a = readable(given.a, copied_a_);
  if (!p.weight) p.b = readable(given.b, copied_b_);
  const auto* weight = static_cast<const PackedWeight*>(p.weight);
  bool listed = present(p.blocks.indices);
  bool compact_d = listed && p.weight_use == PNB_WEIGHT_FORWARD;
  // Columns of a compact a, or of d: what is listed is named as it is wherever an operand is as wide as without lists.
  BlockLists lists("gemm", p.blocks, m, listed ? weight->out : n);
  const Run all_of_d{0, 0, n};
  Factors terms = factors(p);
  bool nonlinear = p.epilogue != PNB_EPILOGUE_NONE;
  for (int64_t first = 0; first < m;) {
    int64_t end = lists.end_of_list(first, m);
    int64_t neurons = lists.columns(first);
    Part part{first, end - first, listed && !compact_d ? neurons : p.a.shape[1], compact_d ? neurons : n,
              compact_d ? lists.runs(first) : std::span(&all_of_d, 1), {}};
    first = end;
    if (part.columns == 0) continue;
    if (part.inner > 0) {
      part.b = !weight  ? matrix_of(p.b)
               : listed ? weight->listed(p.weight_use, lists.runs(part.first), neurons, listed_, threads_)
                        : weight->matrix(p.weight_use);
    }
    // oneDNN takes a single column for contiguous, whatever its stride says.
    bool column_with_gaps = part.columns == 1 && p.d.stride[0] != 1;
    if (p.low_rank_count == 0 && !(nonlinear && present(p.residual)) && !column_with_gaps && part.inner > 0) {
      run_fused(p, part);
    } else {
      run_in_pieces(p, part, terms);
    }
  }
}

const float* Gemm::listed_bias(const pnb_gemm_params& p, const Part& part) {
  const float* bias = static_cast<const float*>(p.bias.data);
  if (bias == nullptr || part.columns == p.bias.shape[0]) return bias;
  float* listed = bias_.floats(part.columns);
  for (const Run& run : part.runs) std::copy_n(bias + run.neuron, run.count, listed + run.column);
  return listed;
}

void Gemm::run_fused(const pnb_gemm_params& p, const Part& part) {
  Matrix residual;
  Fusion fusion;
  fusion.bias = listed_bias(p, part);
  if (present(p.residual)) {
    residual = rows_of(p.residual, part.first, part.rows, part.columns);
    fusion.residual = &residual;
  }
  product(rows_of(p.a, part.first, part.rows, part.inner), part.b, rows_of(p.d, part.first, part.rows, part.columns), fusion);
  if (p.epilogue == PNB_EPILOGUE_NONE) return;

  bool wide = p.d.dtype == PNB_DTYPE_F32;
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int64_t i = part.first; i < part.first + part.rows; ++i) {
    uint8_t* mask = present(p.relu_mask) ? row_of<uint8_t>(p.relu_mask, i) : nullptr;
    for (const Run& run : part.runs) {
      uint8_t* bits = mask == nullptr ? nullptr : mask + run.neuron / 8;
      float* row = row_of<float>(p.d, i) + run.column;
      uint16_t* half_row = row_of<uint16_t>(p.d, i) + run.column;
      if (p.epilogue == PNB_EPILOGUE_RELU) {
        wide ? relu_row(row, run.count) : relu_bf16_row(half_row, run.count);
        if (bits != nullptr) wide ? mask_row(row, bits, run.count) : mask_bf16_row(half_row, bits, run.count);
      } else {
        wide ? keep_row(row, bits, run.count) : keep_bf16_row(half_row, bits, run.count);
      }
    }
  }
}

Gemm::Factors Gemm::factors(const pnb_gemm_params& p) {
  Factors factors;
  int64_t total = 0;
  for (int t = 0; t < p.low_rank_count; ++t) {
    total += element_count(p.low_rank[t].b);
    factors.widest = std::max(factors.widest, p.low_rank[t].b.shape[0]);
  }
  float* next = terms_.floats(std::max<int64_t>(total, 1));
  for (int t = 0; t < p.low_rank_count; ++t) {
    const pnb_tensor& source = p.low_rank[t].b;
    factors.of[t] = next;
    const float* values = static_cast<const float*>(source.data);
    for (int64_t r = 0; r < source.shape[1]; ++r) {
      for (int64_t j = 0; j < source.shape[0]; ++j) {
        *next++ = p.low_rank[t].scale * values[j * source.stride[0] + r * source.stride[1]];
      }
    }
  }
  return factors;
}

void Gemm::run_in_pieces(const pnb_gemm_params& p, const Part& part, const Factors& factors) {
  int64_t n = part.columns;
  int64_t piece_rows = std::min(kPieceRows, part.rows);
  float* piece = product_.floats(piece_rows * n + threads_ * factors.widest);
  float* dropped = piece + piece_rows * n;  // one row of a term for each thread

  for (int64_t from = part.first; from < part.first + part.rows; from += piece_rows) {
    int64_t count = std::min(piece_rows, part.first + part.rows - from);
    if (part.inner > 0) {
      product(rows_of(p.a, from, count, part.inner), part.b, plain_matrix(piece, PNB_DTYPE_F32, count, n, n, 1));
    } else {
      std::fill_n(piece, count * n, 0.0f);
    }
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (int64_t share = 0; share < threads_; ++share) {
      for (int64_t i = from + count * share / threads_; i < from + count * (share + 1) / threads_; ++i) {
        finish_row(p, part, factors, i, piece + (i - from) * n, dropped + share * factors.widest);
      }
    }
  }
}

void Gemm::finish_row(const pnb_gemm_params& p, const Part& part, const Factors& factors, int64_t i, float* row,
                      float* term_row) const {
  for (int t = 0; t < p.low_rank_count; ++t) {
    const pnb_low_rank& term = p.low_rank[t];
    int64_t rank = term.b.shape[1];
    int64_t width = term.b.shape[0];
    const float* h = row_of<float>(term.h, i);
    DropoutMask mask(term.dropout);
    for (const Run& run : part.runs) {  // columns [begin, end) of the term
      int64_t begin = std::max<int64_t>(run.neuron - term.column, 0);
      int64_t end = std::min(run.neuron + run.count - term.column, width);
      if (begin >= end) continue;
      float* target = row + run.column + (term.column + begin - run.neuron);
      const float* factor = factors.of[t] + begin;
      if (!mask.active()) {
        add_low_rank(target, h, factor, rank, width, end - begin);
      } else {
        std::fill_n(term_row, end - begin, 0.0f);
        add_low_rank(term_row, h, factor, rank, width, end - begin);
        mask.apply(term_row, i * width + begin, end - begin);
        add_row(target, term_row, end - begin);
      }
    }
  }
  for (const Run& run : part.runs) {
    float* values = row + run.column;
    if (present(p.bias)) add_row(values, static_cast<const float*>(p.bias.data) + run.neuron, run.count);
    if (p.epilogue == PNB_EPILOGUE_RELU) {
      relu_row(values, run.count);
      if (present(p.relu_mask)) mask_row(values, row_of<uint8_t>(p.relu_mask, i) + run.neuron / 8, run.count);
    } else if (p.epilogue == PNB_EPILOGUE_DRELU) {
      keep_row(values, row_of<uint8_t>(p.relu_mask, i) + run.neuron / 8, run.count);
    }
  }
  if (present(p.residual)) {
    if (p.residual.dtype == PNB_DTYPE_F32) {
      add_row(row, row_of<float>(p.residual, i), part.columns);
    } else {
      add_bf16_row(row, row_of<uint16_t>(p.residual, i), part.columns);
    }
  }
  char* target = static_cast<char*>(p.d.data) + i * p.d.stride[0] * dtype_size(p.d.dtype);
  row_from_float(row, target, p.d.dtype, part.columns);
}

}  // namespace pnb::cpu
