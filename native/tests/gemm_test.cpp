// Matrix products against double: dtypes, odd sizes, strides, packed weights, every epilogue, low-rank terms.
#include "block_tensors.h"
#include "harness.h"

using namespace test;

namespace {

struct Case {
  int64_t m, n, k;
  int32_t dtype;
  int32_t d_dtype;
  int32_t epilogue;
  bool bias, residual, mask;
  int low_rank;  // 0, 1 or 2 terms
  float dropout;
};

std::string text(const Case& c, const char* kind) {
  char buffer[200];
  std::snprintf(buffer, sizeof buffer, "gemm %s m %lld n %lld k %lld %s->%s epilogue %d bias %d residual %d mask %d terms %d p %g",
                kind, static_cast<long long>(c.m), static_cast<long long>(c.n), static_cast<long long>(c.k), name(c.dtype),
                name(c.d_dtype), c.epilogue, c.bias, c.residual, c.mask, c.low_rank, static_cast<double>(c.dropout));
  return buffer;
}

// kind 0: plain b; 1: packed, forward; 2: packed, backward; 3: both operands transposed views.
void run(pnb_context* context, const Case& c, int kind) {
  std::string what = text(c, kind == 0 ? "plain" : kind == 1 ? "forward" : kind == 2 ? "backward" : "transposed");
  bool a_transposed = kind == 3;
  bool b_transposed = kind == 1 || kind == 3;
  Tensor a(c.dtype, a_transposed ? std::vector<int64_t>{c.k, c.m} : std::vector<int64_t>{c.m, c.k});
  Tensor b(c.dtype, b_transposed ? std::vector<int64_t>{c.n, c.k} : std::vector<int64_t>{c.k, c.n});
  Tensor bias(PNB_DTYPE_F32, {c.n}), residual(c.d_dtype, {c.m, c.n}), d(c.d_dtype, {c.m, c.n}, 0.0);
  Tensor mask(PNB_DTYPE_U8, {c.m, (c.n + 7) / 8}, 0.0);
  for (size_t i = 0; i < mask.bytes.size(); ++i) mask.bytes[i] = static_cast<char>(generator()());
  std::vector<char> mask_before = mask.bytes;

  auto p = params<pnb_gemm_params>();
  p.a = a.t;
  if (a_transposed) p.a = {a.t.data, c.dtype, 2, {c.m, c.k}, {1, c.m}};
  std::vector<char> storage;
  pnb_weight* weight = nullptr;
  if (kind == 1 || kind == 2) {
    auto w = params<pnb_weight_params>();
    w.dtype = c.dtype;
    w.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD;
    // Two parts, stacked.
    int64_t half = b.t.shape[0] / 2;
    pnb_tensor parts[2] = {b.t, b.t};
    parts[0].shape[0] = half;
    parts[1].shape[0] = b.t.shape[0] - half;
    parts[1].data = b.bytes.data() + half * b.t.shape[1] * (c.dtype == PNB_DTYPE_F32 ? 4 : 2);
    w.parts = half > 0 ? parts : &b.t;
    w.part_count = half > 0 ? 2 : 1;
    ok(pnb_weight_storage(context, &w, &w.storage_bytes), what);
    storage.resize(w.storage_bytes + 256);
    w.storage = storage.data() + (256 - reinterpret_cast<uintptr_t>(storage.data()) % 256);
    ok(pnb_weight_create(context, &w, &weight), what);
    p.weight = weight;
    p.weight_use = kind == 1 ? PNB_WEIGHT_FORWARD : PNB_WEIGHT_BACKWARD;
  } else {
    p.b = b_transposed ? pnb_tensor{b.t.data, c.dtype, 2, {c.k, c.n}, {1, c.k}} : b.t;
  }
  int64_t rank = 5;
  int64_t wide = (c.n + 1) / 2;
  Tensor h(PNB_DTYPE_F32, {c.m, rank}), right(PNB_DTYPE_F32, {rank, wide});
  uint64_t state[2] = {42, 7};
  pnb_low_rank terms[2] = {};
  for (int t = 0; t < c.low_rank; ++t) {
    terms[t].h = h.t;
    terms[t].b = {right.t.data, PNB_DTYPE_F32, 2, {wide, rank}, {1, wide}};
    terms[t].column = t == 0 ? 0 : c.n - wide;
    terms[t].scale = 0.5f;
    terms[t].dropout.p = c.dropout;
    terms[t].dropout.stream = t;
    terms[t].dropout.state = {state, PNB_DTYPE_U64, 1, {2}, {1}};
  }
  p.low_rank_count = c.low_rank;
  p.low_rank = terms;
  p.epilogue = c.epilogue;
  if (c.bias) p.bias = bias.t;
  if (c.residual) p.residual = residual.t;
  if (c.mask) p.relu_mask = mask.t;
  p.d = d.t;
  ok(pnb_gemm(context, &p), what);

  std::vector<double> expected(c.m * c.n);
  int64_t wrong_bits = 0;
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < c.k; ++k) {
        sum += a.at(a_transposed ? k * c.m + i : i * c.k + k) * b.at(b_transposed ? j * c.k + k : k * c.n + j);
      }
      for (int t = 0; t < c.low_rank; ++t) {
        int64_t column = j - terms[t].column;
        for (int64_t r = 0; r < rank && column >= 0 && column < wide; ++r) {
          sum += 0.5 * h.at(i * rank + r) * right.at(r * wide + column);
        }
      }
      if (c.bias) sum += bias.at(j);
      int bit = (static_cast<uint8_t>(mask.bytes[i * ((c.n + 7) / 8) + j / 8]) >> (j % 8)) & 1;
      if (c.epilogue == PNB_EPILOGUE_RELU) {
        if (c.mask && std::fabs(sum) > 1e-3 && bit != (sum > 0)) ++wrong_bits;
        sum = std::max(sum, 0.0);
      } else if (c.epilogue == PNB_EPILOGUE_DRELU && bit == 0) {
        sum = 0;
      }
      expected[i * c.n + j] = sum + (c.residual ? residual.at(i * c.n + j) : 0.0);
    }
  }
  expect(wrong_bits == 0, what + ": " + std::to_string(wrong_bits) + " wrong mask bits");
  expect(c.epilogue != PNB_EPILOGUE_DRELU || mask.bytes == mask_before, what + ": the mask was written");
  if (c.dropout == 0.0f) close(d.values(), expected, c.d_dtype, what);
  pnb_weight_destroy(weight);
}

// A NaN in one row of a is in that row of d and in no other, whichever way the epilogue is computed.
void relu_keeps_nan(pnb_context* context, int32_t dtype, bool packed, bool mask, bool residual) {
  const int64_t m = 5, n = packed ? 96 : 40, k = 24;
  std::string what = std::string("relu of NaN ") + name(dtype) + " packed with a term " + std::to_string(packed) + " mask " +
                     std::to_string(mask) + " residual " + std::to_string(residual);
  Packed weight(context, dtype, n, k);
  Tensor h(PNB_DTYPE_F32, {m, 3}), right(PNB_DTYPE_F32, {n, 3});
  pnb_low_rank term{};
  term.h = h.t, term.b = right.t, term.scale = 0.5f;
  Tensor a(dtype, {m, k}), b(dtype, {k, n}), d(dtype, {m, n}, 0.0), rest(dtype, {m, n}), bits(PNB_DTYPE_U8, {m, n / 8}, 0.0);
  a.set(2 * k + 7, NAN);
  auto p = params<pnb_gemm_params>();
  p.a = a.t, p.d = d.t, p.epilogue = PNB_EPILOGUE_RELU;
  if (packed) {
    p.weight = weight.weight, p.weight_use = PNB_WEIGHT_FORWARD, p.low_rank = &term, p.low_rank_count = 1;
  } else {
    p.b = b.t;
  }
  if (mask) p.relu_mask = bits.t;
  if (residual) p.residual = rest.t;
  ok(pnb_gemm(context, &p), what);
  int64_t wrong = 0;
  for (int64_t i = 0; i < m * n; ++i) {
    wrong += std::isnan(d.at(i)) != (i / n == 2);
    wrong += mask && i / n == 2 && (bits.bytes[i / 8] >> (i % 8) & 1) != 0;  // NaN is not above 0
  }
  expect(wrong == 0, what + ": " + std::to_string(wrong) + " wrong elements");
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  const int64_t sizes[][3] = {{1, 1, 1}, {3, 17, 5}, {64, 96, 32}, {300, 70, 129}, {33, 256, 64}, {13, 224, 62}};
  for (const auto& size : sizes) {
    for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
      for (int kind = 0; kind < 4; ++kind) {
        for (int epilogue = PNB_EPILOGUE_NONE; epilogue <= PNB_EPILOGUE_DRELU; ++epilogue) {
          for (int options = 0; options < 4; ++options) {
            bool mask = epilogue == PNB_EPILOGUE_DRELU || (epilogue == PNB_EPILOGUE_RELU && options != 1);
            run(context, {size[0], size[1], size[2], dtype, options == 3 ? PNB_DTYPE_F32 : dtype, epilogue, options != 1,
                          options == 2, mask, options == 1 ? 2 : options == 3 ? 1 : 0, 0.0f},
                kind);
          }
        }
      }
    }
  }
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    for (int options = 0; options < 8; ++options) relu_keeps_nan(context, dtype, options & 4, options & 1, options & 2);
  }
  pnb_context_destroy(context);
  return finish("gemm_test");
}
