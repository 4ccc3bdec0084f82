#include "cpu/gemm.h"

#include <algorithm>

#include "core/tensor.h"
#include "cpu/convert.h"
#include "cpu/epilogue.h"
#include "cpu/philox.h"
#include "cpu/strip_product.h"
#include "cpu/weight.h"

// Notes. bf16 products with a packed weight go to StripProduct where that serves; the rest of this holds for f32, for dropout,
// for odd sizes and for processors without AVX-512's bf16 products.
//
// oneDNN's ReLU would turn NaN into 0, so ReLU and its mask are a pass of their own. Low-rank terms are added to an f32 product
// a few hundred rows at a time, so that the rows are still in the second-level cache when the epilogue reads them, and d is
// rounded once.
//
// Listed blocks are copied out of the packed weight into one that is as compact as the product, in the same layout. For a
// quarter of the blocks of OPT-125M's fc1 (1.2 MB) that is a few hundredths of the product over 1024 tokens: the four products
// of an MLP together take 0.25 of the dense ones' time with blocks of 64 or 128, and 0.26-0.27 with blocks of 32, in processor
// time of one thread.

namespace pnb::cpu {

namespace {

// Rows of an f32 product that wait for their epilogue: 256 rows of 2304 columns are 2.4 MB, about two cores' L2.
constexpr int64_t kPieceRows = 256;

// Products of listed blocks come in as many widths as there are blocks, and oneDNN generates code for every shape (1-2 ms and
// 0.2 MB each). So rows come in panels of one height, with one of each multiple of 128 below it for the rest, and columns in
// a multiple of kPanelColumns and a rest. A panel is as fast as the whole.
constexpr int64_t kPanelRowsOfThread = 128;
constexpr int64_t kPanelColumns = 256;

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

// A row of a mask as compact as the row that it belongs to, or made so. Blocks are whole bytes of it.
class MaskRow {
 public:
  MaskRow(uint8_t* mask, std::span<const Run> runs, bool compact, uint8_t* buffer)
      : mask_(mask), runs_(runs), in_place_(compact || runs.size() == 1) {
    bits_ = in_place_ && mask != nullptr ? mask + (compact ? 0 : runs[0].neuron / 8) : buffer;
  }

  uint8_t* bits() const { return bits_; }
  void gather() const {
    for (const Run& run : runs_) {
      if (!in_place_) std::copy_n(mask_ + run.neuron / 8, run.count / 8, bits_ + run.column / 8);
    }
  }
  void spread() const {
    for (const Run& run : runs_) {
      if (!in_place_) std::copy_n(bits_ + run.column / 8, run.count / 8, mask_ + run.neuron / 8);
    }
  }

 private:
  uint8_t* mask_;
  std::span<const Run> runs_;
  bool in_place_;
  uint8_t* bits_;
};

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
  bool compact_mask = compact_d && present(p.relu_mask) && p.relu_mask.shape[1] < weight->out / 8;
  // Columns of a compact a, or of d: what is listed is named as it is wherever an operand is as wide as without lists.
  BlockLists lists("gemm", p.blocks, m, listed ? weight->out : n);
  int64_t room = listed ? p.blocks.indices.shape[1] * p.blocks.size : 0;
  const Run all_of_d{0, 0, n};
  Factors terms = factors(p);
  bool nonlinear = p.epilogue != PNB_EPILOGUE_NONE;
  for (int64_t first = 0, end; first < m; first = end) {
    end = lists.end_of_list(first, m);
    int64_t neurons = lists.columns(first);
    Part part{first, end - first, listed && !compact_d ? neurons : p.a.shape[1], compact_d ? neurons : n,
              compact_d ? lists.runs(first) : std::span(&all_of_d, 1), {}, false, compact_mask};
    if (part.columns == 0) continue;
    bool gathered = listed && neurons < weight->out;
    if (weight && StripProduct::serves(p, weight->matrix(p.weight_use))) {
      const Run all_of_a{0, 0, part.inner};
      std::span<const Run> inner = listed && !compact_d ? lists.runs(first) : std::span(&all_of_a, 1);
      StripProduct{p, weight->matrix(p.weight_use), first, part.rows, inner, part.runs, compact_mask, terms.of}.run(threads_);
      continue;
    }
    if (part.inner > 0) {
      part.b = !weight    ? matrix_of(p.b)
               : gathered ? weight->listed(p.weight_use, lists.runs(first), neurons, room, listed_, threads_)
                          : weight->matrix(p.weight_use);
      part.split = gathered && compact_d && PackedWeight::tiled(part.b);
    }
    // oneDNN takes a single column for contiguous, whatever its stride says.
    bool column_with_gaps = part.columns == 1 && p.d.stride[0] != 1;
    bool fused = p.low_rank_count == 0 && !(nonlinear && present(p.residual)) && !column_with_gaps && part.inner > 0;
    int64_t panel = gathered ? kPanelRowsOfThread * threads_ : part.rows;
    for (; part.first < end; part.first += panel) {
      part.rows = std::min(panel, end - part.first);
      fused ? run_fused(p, part) : run_in_pieces(p, part, terms);
    }
  }
}

void Gemm::product(const Part& part, const Matrix& a, const Matrix& d, const Fusion& fusion) {
  int64_t rest = part.columns % kPanelColumns, whole = part.columns - rest;
  if (!part.split || rest == 0 || whole == 0) {
    product(a, part.b, d, fusion);
    return;
  }
  auto columns_of_d = [&](int64_t first, int64_t count) {
    auto dims = d.desc.get_dims();
    auto type = d.desc.get_data_type();
    char* start = static_cast<char*>(d.data) + first * static_cast<int64_t>(dnnl::memory::data_type_size(type));
    return Matrix{start, dnnl::memory::desc({dims[0], count}, type, d.desc.get_strides())};
  };
  Fusion rest_fusion = fusion;
  if (fusion.bias) rest_fusion.bias += whole;
  product(a, PackedWeight::columns(part.b, 0, whole), columns_of_d(0, whole), fusion);
  product(a, PackedWeight::columns(part.b, whole, rest), columns_of_d(whole, rest), rest_fusion);
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
  product(part, rows_of(p.a, part.first, part.rows, part.inner), rows_of(p.d, part.first, part.rows, part.columns), fusion);
  if (p.epilogue == PNB_EPILOGUE_NONE) return;

  bool wide = p.d.dtype == PNB_DTYPE_F32;
  int64_t bit_bytes = (part.columns + 7) / 8;
  uint8_t* bits = static_cast<uint8_t*>(bits_.bytes(threads_ * bit_bytes));
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
  for (int64_t share = 0; share < threads_; ++share) {
    for (int64_t i = part.first + part.rows * share / threads_; i < part.first + part.rows * (share + 1) / threads_; ++i) {
      float* row = row_of<float>(p.d, i);
      uint16_t* half_row = row_of<uint16_t>(p.d, i);
      uint8_t* mask = present(p.relu_mask) ? row_of<uint8_t>(p.relu_mask, i) : nullptr;
      MaskRow compact(mask, part.runs, part.compact_mask, bits + share * bit_bytes);
      if (p.epilogue == PNB_EPILOGUE_RELU) {
        wide ? relu_row(row, part.columns) : relu_bf16_row(half_row, part.columns);
        if (mask == nullptr) continue;
        wide ? mask_row(row, compact.bits(), part.columns) : mask_bf16_row(half_row, compact.bits(), part.columns);
        compact.spread();
      } else {
        compact.gather();
        wide ? keep_row(row, compact.bits(), part.columns) : keep_bf16_row(half_row, compact.bits(), part.columns);
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
  int64_t bit_bytes = (n + 7) / 8;
  uint8_t* bits = static_cast<uint8_t*>(bits_.bytes(threads_ * bit_bytes));

  for (int64_t from = part.first; from < part.first + part.rows; from += piece_rows) {
    int64_t count = std::min(piece_rows, part.first + part.rows - from);
    if (part.inner > 0) {
      product(part, rows_of(p.a, from, count, part.inner), plain_matrix(piece, PNB_DTYPE_F32, count, n, n, 1));
    } else {
      std::fill_n(piece, count * n, 0.0f);
    }
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (int64_t share = 0; share < threads_; ++share) {
      for (int64_t i = from + count * share / threads_; i < from + count * (share + 1) / threads_; ++i) {
        finish_row(p, part, factors, i, piece + (i - from) * n, dropped + share * factors.widest, bits + share * bit_bytes);
      }
    }
  }
}

void Gemm::finish_row(const pnb_gemm_params& p, const Part& part, const Factors& factors, int64_t i, float* row,
                      float* term_row, uint8_t* bits) const {
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
    if (present(p.bias)) add_row(row + run.column, static_cast<const float*>(p.bias.data) + run.neuron, run.count);
  }
  MaskRow mask(present(p.relu_mask) ? row_of<uint8_t>(p.relu_mask, i) : nullptr, part.runs, part.compact_mask, bits);
  if (p.epilogue == PNB_EPILOGUE_RELU) {
    relu_row(row, part.columns);
    if (present(p.relu_mask)) {
      mask_row(row, mask.bits(), part.columns);
      mask.spread();
    }
  } else if (p.epilogue == PNB_EPILOGUE_DRELU) {
    mask.gather();
    keep_row(row, mask.bits(), part.columns);
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
