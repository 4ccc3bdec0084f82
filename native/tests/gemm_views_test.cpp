// Operands of a product that share memory or lie strangely: d that is its own residual, rows and columns with gaps, single
// rows and columns, repeated rows. Shapes are large enough for oneDNN to split k.
#include <algorithm>

#include "harness.h"

using namespace test;

namespace {

struct View {
  Tensor tensor;
  pnb_tensor t;
};

// [rows, columns] inside a larger buffer; every kind has other strides.
View view(int32_t dtype, int64_t rows, int64_t columns, int kind) {
  int64_t row_stride = kind == 0 ? columns : kind == 1 ? columns + 7 : kind == 2 ? 1 : kind == 3 ? 3 * columns : kind == 4 ? 2 : 0;
  int64_t column_stride = kind == 2 ? rows + 5 : kind == 3 ? 3 : kind == 4 ? 2 * rows + 1 : 1;
  View v{Tensor(dtype, {rows * std::max<int64_t>(row_stride, 1) + columns * column_stride}), {}};
  v.t = {v.tensor.bytes.data(), dtype, 2, {rows, columns}, {row_stride, column_stride}};
  return v;
}

double at(const View& v, int64_t i, int64_t j) { return v.tensor.at(i * v.t.stride[0] + j * v.t.stride[1]); }

void run(pnb_context* context, int64_t m, int64_t n, int64_t k, int32_t dtype, int32_t d_dtype, int a_kind, int b_kind, bool packed,
         int residual, int32_t epilogue, bool bias) {
  char buffer[240];
  std::snprintf(buffer, sizeof buffer, "views m %lld n %lld k %lld %s->%s a %d b %d packed %d residual %d epilogue %d bias %d",
                static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k), name(dtype), name(d_dtype), a_kind,
                b_kind, packed, residual, epilogue, bias);
  std::string what = buffer;
  View a = view(dtype, m, k, a_kind), b = view(dtype, k, n, b_kind);
  View d = view(d_dtype, m, n, 1);
  View other = view(d_dtype, m, n, 1);
  Tensor bias_values(PNB_DTYPE_F32, {n});
  View before = d;
  before.t.data = before.tensor.bytes.data();
  a.t.data = a.tensor.bytes.data(), b.t.data = b.tensor.bytes.data();
  d.t.data = d.tensor.bytes.data(), other.t.data = other.tensor.bytes.data();

  auto p = params<pnb_gemm_params>();
  p.a = a.t;
  p.d = d.t;
  p.epilogue = epilogue;
  if (bias) p.bias = bias_values.t;
  if (residual == 1) p.residual = d.t;
  if (residual == 2) p.residual = other.t;
  pnb_weight* weight = nullptr;
  std::vector<char> storage;
  if (packed) {  // W [n, k] as the transposed view of b
    pnb_tensor part = b.t;
    std::swap(part.shape[0], part.shape[1]);
    std::swap(part.stride[0], part.stride[1]);
    auto w = params<pnb_weight_params>();
    w.dtype = dtype;
    w.uses = PNB_WEIGHT_FORWARD;
    w.parts = &part;
    w.part_count = 1;
    ok(pnb_weight_storage(context, &w, &w.storage_bytes), what);
    storage.resize(w.storage_bytes + 256);
    w.storage = storage.data() + (256 - reinterpret_cast<uintptr_t>(storage.data()) % 256);
    ok(pnb_weight_create(context, &w, &weight), what);
    p.weight = weight;
    p.weight_use = PNB_WEIGHT_FORWARD;
  } else {
    p.b = b.t;
  }
  ok(pnb_gemm(context, &p), what);
  std::vector<double> right(k * n), found, expected;
  for (int64_t x = 0; x < k; ++x) {
    for (int64_t j = 0; j < n; ++j) right[x * n + j] = at(b, x, j);
  }
  for (int64_t i = 0; i < m; ++i) {
    std::vector<double> row(n);
    for (int64_t x = 0; x < k; ++x) {
      double left = at(a, i, x);
      for (int64_t j = 0; j < n; ++j) row[j] += left * right[x * n + j];
    }
    for (int64_t j = 0; j < n; ++j) {
      double value = row[j] + (bias ? bias_values.at(j) : 0.0);
      if (epilogue == PNB_EPILOGUE_RELU) value = std::max(value, 0.0);
      if (residual == 1) value += at(before, i, j);
      if (residual == 2) value += at(other, i, j);
      expected.push_back(value);
      found.push_back(at(d, i, j));
    }
    for (int64_t gap = n; gap < d.t.stride[0]; ++gap) {
      if (at(d, i, gap) != at(before, i, gap)) expect(false, what + ": wrote beyond row " + std::to_string(i));
    }
  }
  close(found, expected, d_dtype, what);
  pnb_weight_destroy(weight);
}

// Each low-rank element is either kept and scaled by 1 / (1 - p) or zero, in about the right share, and alike twice.
void dropout(pnb_context* context) {
  const int64_t m = 300, n = 96;
  Tensor a(PNB_DTYPE_F32, {m, 4}), b(PNB_DTYPE_F32, {4, n}), d(PNB_DTYPE_F32, {m, n}, 0.0), again(PNB_DTYPE_F32, {m, n}, 0.0);
  std::fill(a.bytes.begin(), a.bytes.end(), 0);
  Tensor h(PNB_DTYPE_F32, {m, 2}), right(PNB_DTYPE_F32, {n, 2});
  uint64_t state[2] = {11, 3};
  pnb_low_rank term{};
  term.h = h.t, term.b = right.t, term.scale = 2.0f;
  term.dropout = {0.25f, 5, {state, PNB_DTYPE_U64, 1, {2}, {1}}};
  auto p = params<pnb_gemm_params>();
  p.a = a.t, p.b = b.t, p.d = d.t, p.low_rank = &term, p.low_rank_count = 1;
  ok(pnb_gemm(context, &p), "dropout");
  p.d = again.t;
  ok(pnb_gemm(context, &p), "dropout again");
  int64_t dropped = 0, wrong = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double full = 2.0 * (h.at(i * 2) * right.at(j * 2) + h.at(i * 2 + 1) * right.at(j * 2 + 1)) / 0.75;
      double value = d.at(i * n + j);
      if (value == 0.0) ++dropped;
      else if (std::fabs(value - full) > 1e-5 * (1 + std::fabs(full))) ++wrong;
    }
  }
  double share = static_cast<double>(dropped) / (m * n);
  expect(wrong == 0, "dropout: " + std::to_string(wrong) + " kept elements differ from term / (1 - p)");
  expect(share > 0.24 && share < 0.26, "dropout: expected a quarter dropped, found " + std::to_string(share));
  expect(d.bytes == again.bytes, "dropout: the same state drew another mask");
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    for (int a_kind = 0; a_kind <= 5; ++a_kind) {
      for (int b_kind = 0; b_kind <= 4; ++b_kind) run(context, 19, 21, 33, dtype, dtype, a_kind, b_kind, b_kind == 3, 0, 0, false);
      run(context, 1, 40, 17, dtype, dtype, a_kind, 0, false, 1, 0, true);
      run(context, 40, 1, 17, dtype, dtype, a_kind, 2, false, 1, 0, true);
      run(context, 40, 17, 1, dtype, dtype, a_kind, 1, true, 2, 0, true);
    }
    for (int32_t d_dtype : {static_cast<int32_t>(PNB_DTYPE_F32), dtype}) {
      for (int residual = 0; residual <= 2; ++residual) {
        for (bool packed : {false, true}) {
          run(context, 130, 192, 3072, dtype, d_dtype, 0, 0, packed, residual, PNB_EPILOGUE_NONE, true);
          run(context, 130, 192, 3072, dtype, d_dtype, 0, 2, packed, residual, PNB_EPILOGUE_RELU, false);
        }
      }
    }
  }
  dropout(context);
  pnb_context_destroy(context);
  return finish("gemm_views_test");
}
