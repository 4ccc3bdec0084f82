// Matrix products against double: dtypes, odd sizes, views, frozen weights, every epilogue, low-rank terms, dropout.
// An argument limits the number of random cases (for a memory checker).
#include "cuda/gemm_case.cuh"

using namespace test;

namespace {

enum Kind { kForward, kBackward, kPlain, kTransposedB, kTransposedA, kKinds };
const char* const kKindNames[] = {"forward", "backward", "plain b", "transposed b", "transposed a"};

enum Residual { kNone, kOwn, kAliased };

struct Case {
  int64_t m, n, k;
  int32_t dtype, d_dtype;
  Kind kind;
  int32_t epilogue = PNB_EPILOGUE_NONE;
  bool bias = false, mask = false;
  Residual residual = kNone;
  int64_t pad = 0;  // columns between the rows of a, d, residual and mask: a multiple of 8 keeps them aligned
  std::vector<Term> terms;
  bool few = false;  // on two multiprocessors

  std::string text() const {
    char buffer[256];
    std::snprintf(buffer, sizeof buffer,
                  "gemm %s m %lld n %lld k %lld dtype %d d %d epilogue %d bias %d mask %d residual %d pad %lld", kKindNames[kind],
                  static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k), dtype, d_dtype, epilogue, bias,
                  mask, residual, static_cast<long long>(pad));
    std::string text = buffer;
    for (const Term& t : terms) text += t.text();
    return few ? text + " on two multiprocessors" : text;
  }
};

void run(const Case& c) {
  std::string what = c.text();
  std::unique_ptr<FrozenWeight> frozen;
  std::vector<double> b_values;  // [k, n]
  Tensor b(c.dtype, c.kind == kTransposedB ? std::vector<int64_t>{c.n, c.k} : std::vector<int64_t>{c.k, c.n});
  pnb_gemm_params p{};
  p.struct_size = sizeof p;
  if (c.kind == kForward) {
    frozen = std::make_unique<FrozenWeight>(c.n, c.k, c.dtype);
    b_values = transposed(frozen->values, c.n, c.k);
  } else if (c.kind == kBackward) {
    frozen = std::make_unique<FrozenWeight>(c.k, c.n, c.dtype);
    b_values = frozen->values;
  } else if (c.kind == kTransposedB) {
    p.b = {b.t.data, c.dtype, 2, {c.k, c.n}, {1, c.k}};
    b_values = transposed(b.values(), c.n, c.k);
  } else {
    p.b = b.t;
    b_values = b.values();
  }
  if (frozen) {
    p.weight = frozen->weight.get();
    p.weight_use = c.kind == kForward ? PNB_WEIGHT_FORWARD : PNB_WEIGHT_BACKWARD;
  }
  bool turned = c.kind == kTransposedA;
  View a(c.dtype, turned ? c.k : c.m, turned ? c.m : c.k, c.pad, 1.0);
  p.a = a.t;
  std::vector<double> a_values = a.values();
  if (turned) {
    std::swap(p.a.shape[0], p.a.shape[1]);
    std::swap(p.a.stride[0], p.a.stride[1]);
    a_values = transposed(a_values, c.k, c.m);
  }

  Tensor bias(PNB_DTYPE_F32, {c.n});
  View residual(c.d_dtype, c.m, c.n, c.pad, 1.0), d(c.d_dtype, c.m, c.n, c.pad, 0.0);
  if (c.residual == kAliased) {
    cuda(cudaMemcpy2D(d.t.data, d.stride * element_bytes(c.d_dtype), residual.t.data, residual.stride * element_bytes(c.d_dtype),
                      c.n * element_bytes(c.d_dtype), c.m, cudaMemcpyDeviceToDevice));
  }
  int64_t mask_columns = (c.n + 7) / 8;
  View mask(PNB_DTYPE_U8, c.m, mask_columns, c.pad, 0.0);
  if (c.epilogue == PNB_EPILOGUE_DRELU) {
    std::vector<double> bytes(mask.buffer.size());
    for (double& byte : bytes) byte = generator()() % 256;
    mask.buffer.set(bytes);
  }
  std::vector<char> mask_before = mask.buffer.bits();
  p.epilogue = c.epilogue;
  if (c.bias) p.bias = bias.t;
  if (c.mask) p.relu_mask = mask.t;
  if (c.residual != kNone) p.residual = c.residual == kOwn ? residual.t : d.t;
  p.d = d.t;

  Terms terms(c.terms, c.m);
  terms.set(p);
  Workspace workspace(backend().gemm_workspace(p));
  p.workspace = workspace.w;
  ok(what, [&] { multiply(p, c.few); });
  cuda(cudaDeviceSynchronize(), what.c_str());

  std::vector<double> expected = product_in_double(a_values, b_values, c.m, c.n, c.k);
  terms.add(expected, c.n);
  std::vector<double> bias_values = bias.values(), residual_values = residual.values();
  std::vector<char> mask_bytes = mask.buffer.bits();
  int64_t wrong_bits = 0;
  double unsure = 4e-6 * static_cast<double>(c.k + 64);
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      double& value = expected[i * c.n + j];
      if (c.bias) value += bias_values[j];
      bool bit = (mask_bytes[i * mask.stride + j / 8] >> (j % 8)) & 1;
      if (c.epilogue == PNB_EPILOGUE_RELU) {
        wrong_bits += c.mask && std::fabs(value) > unsure && bit != (value > 0);
        value = std::max(value, 0.0);
      } else if (c.epilogue == PNB_EPILOGUE_DRELU && !bit) {
        value = 0;
      }
      if (c.residual != kNone) value += residual_values[i * c.n + j];
    }
    for (int64_t j = c.n; c.epilogue == PNB_EPILOGUE_RELU && c.mask && j < mask_columns * 8; ++j) {
      wrong_bits += (mask_bytes[i * mask.stride + j / 8] >> (j % 8)) & 1;
    }
  }
  expect(wrong_bits == 0, what + ": " + std::to_string(wrong_bits) + " wrong mask bits");
  if (c.epilogue != PNB_EPILOGUE_RELU || !c.mask) expect(mask_bytes == mask_before, what + ": the mask was written");
  if (c.epilogue != PNB_EPILOGUE_DRELU) expect(mask.gaps_untouched(), what + ": wrote between the mask's rows");
  expect(d.gaps_untouched(), what + ": wrote between d's rows");
  std::vector<double> found = d.values();
  close(found, expected, 2 * rounding_error(expected, c.d_dtype) + 2e-6 + 1e-9 * static_cast<double>(c.k), what);
  elements_close(found, expected, c.n, c.k, c.d_dtype, what);

  if (c.residual == kAliased) return;
  std::vector<char> first = d.buffer.bits();
  ok(what, [&] { multiply(p, c.few); });
  expect(d.buffer.bits() == first, what + ": other bits the second time");
}

Case random_case() {
  Case c;
  c.m = one_of<int64_t>({1, 2, 5, 16, 17, 64, 127, 128, 129, 200, 257, 300});
  c.n = one_of<int64_t>({1, 7, 8, 31, 32, 33, 100, 128, 130, 256, 264, 384, 500});
  c.k = one_of<int64_t>({1, 5, 8, 16, 63, 64, 65, 72, 128, 200, 264, 520});
  c.dtype = one_of({PNB_DTYPE_F32, PNB_DTYPE_BF16, PNB_DTYPE_BF16, PNB_DTYPE_BF16});
  c.d_dtype = one_of<int32_t>({PNB_DTYPE_F32, c.dtype});
  c.kind = one_of({kForward, kForward, kBackward, kBackward, kPlain, kTransposedB, kTransposedA});
  c.epilogue = one_of({PNB_EPILOGUE_NONE, PNB_EPILOGUE_RELU, PNB_EPILOGUE_DRELU});
  c.bias = one_of({false, true});
  c.mask = c.epilogue == PNB_EPILOGUE_DRELU || (c.epilogue == PNB_EPILOGUE_RELU && one_of({false, true, true}));
  c.residual = one_of({kNone, kOwn, kAliased});
  c.pad = one_of<int64_t>({0, 3, 8, 8, 16});
  int64_t count = one_of<int64_t>({0, 0, 1, 1, 2, 3, 4});
  for (int64_t t = 0; t < count; ++t) c.terms.push_back(random_term(c.n));
  c.few = one_of({false, true});
  return c;
}

void nan_stays_behind_relu() {
  for (int64_t m : {1, 200}) {
    Tensor a(PNB_DTYPE_BF16, {m, 64}), b(PNB_DTYPE_BF16, {128, 64}), d(PNB_DTYPE_BF16, {m, 128}, 0.0);
    std::vector<double> values = a.values();
    values[3] = NAN;
    a.set(values);
    Tensor mask(PNB_DTYPE_U8, {m, 16}, 0.0);
    pnb_gemm_params p{};
    p.struct_size = sizeof p;
    p.epilogue = PNB_EPILOGUE_RELU;
    p.a = a.t;
    p.b = {b.t.data, PNB_DTYPE_BF16, 2, {64, 128}, {1, 64}};
    p.relu_mask = mask.t;
    p.d = d.t;
    ok("relu of NaN", [&] { backend().gemm(p); });
    std::vector<double> found = d.values(), bits = mask.values();
    int64_t nans = 0;
    for (double value : found) nans += std::isnan(value);
    expect(nans == 128, "expected NaN in the row of a's NaN alone, found " + std::to_string(nans) + " at m " + std::to_string(m));
    expect(bits[0] == 0, "expected no mask bits for NaN");
  }
}

}  // namespace

int main(int argc, char** argv) {
  backend();
  auto both = [](Case c) {
    run(c);
    c.few = true;
    run(c);
  };
  // What a decoder's layer asks for, larger than a wave of tiles.
  if (argc < 2) {
    int32_t bf16 = PNB_DTYPE_BF16;
    both({1500, 6144, 2048, bf16, bf16, kForward, PNB_EPILOGUE_NONE, true, false, kNone, 0,
         {{4, 0, 2048, false, 0.0f}, {4, 4096, 2048, false, 0.0f}}});
    both({1500, 3072, 768, bf16, bf16, kForward, PNB_EPILOGUE_RELU, true, true, kNone, 0, {}});
    both({1500, 2048, 4096, bf16, bf16, kForward, PNB_EPILOGUE_NONE, true, false, kAliased, 0, {{16, 0, 2048, false, 0.0f}}});
    both({1500, 4096, 2048, bf16, bf16, kBackward, PNB_EPILOGUE_DRELU, false, true, kNone, 0, {{8, 0, 4096, true, 0.1f}}});
    both({1500, 2048, 3072, bf16, bf16, kBackward, PNB_EPILOGUE_NONE, false, false, kOwn, 0,
         {{64, 0, 2048, true, 0.0f}, {4, 0, 2048, true, 0.0f}}});
    both({700, 5027, 512, bf16, PNB_DTYPE_F32, kForward, PNB_EPILOGUE_NONE, false, false, kNone, 16, {}});
    both({700, 512, 5024, bf16, PNB_DTYPE_F32, kBackward, PNB_EPILOGUE_NONE, false, false, kAliased, 8, {}});
    // Tiles of one step, one after another: without a bias their threads meet at their turns alone.
    for (int64_t k : {8, 64}) {
      both({2000, 2048, k, bf16, bf16, kForward, PNB_EPILOGUE_NONE, false, false, kNone, 0, {}});
      both({2000, 2048, k, bf16, bf16, kBackward, PNB_EPILOGUE_DRELU, false, true, kNone, 0, {}});
    }
  }
  int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  for (int i = 0; i < cases; ++i) run(random_case());
  nan_stays_behind_relu();
  return finish("gemm");
}
