// Matrix products against double: dtypes, odd sizes, views, frozen weights, every epilogue, low-rank terms, dropout.
// An argument limits the number of random cases (for a memory checker).
#include <cuda_fp16.h>

#include "cpu/philox.h"
#include "cuda/harness.cuh"

using namespace test;

namespace {

enum Kind { kForward, kBackward, kPlain, kTransposedB, kTransposedA, kKinds };
const char* const kKindNames[] = {"forward", "backward", "plain b", "transposed b", "transposed a"};

enum Residual { kNone, kOwn, kAliased };

struct Term {
  int64_t rank, column, columns;
  bool transposed;
  float p;
};

struct Case {
  int64_t m, n, k;
  int32_t dtype, d_dtype;
  Kind kind;
  int32_t epilogue = PNB_EPILOGUE_NONE;
  bool bias = false, mask = false;
  Residual residual = kNone;
  int64_t pad = 0;  // columns between the rows of a, d, residual and mask: a multiple of 8 keeps them aligned
  std::vector<Term> terms;

  std::string text() const {
    char buffer[256];
    std::snprintf(buffer, sizeof buffer, "gemm %s m %lld n %lld k %lld dtype %d d %d epilogue %d bias %d mask %d residual %d pad %lld",
                  kKindNames[kind], static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k), dtype, d_dtype,
                  epilogue, bias, mask, residual, static_cast<long long>(pad));
    std::string text = buffer;
    for (const Term& t : terms) {
      std::snprintf(buffer, sizeof buffer, " + rank %lld at %lld of %lld%s p %g", static_cast<long long>(t.rank),
                    static_cast<long long>(t.column), static_cast<long long>(t.columns), t.transposed ? " transposed" : "",
                    static_cast<double>(t.p));
      text += buffer;
    }
    return text;
  }
};

int64_t padded(int64_t columns, int64_t pad) { return pad % 8 == 0 && pad > 0 ? (columns + 7) / 8 * 8 + pad - 8 : columns + pad; }

// A matrix in a wider buffer: `t` is the view, `buffer` owns the memory.
struct View {
  int64_t rows, columns, stride;
  Tensor buffer;
  pnb_tensor t;
  View(int32_t dtype, int64_t rows, int64_t columns, int64_t pad, double scale)
      : rows(rows), columns(columns), stride(padded(columns, pad)), buffer(dtype, {rows, stride}, scale), t(buffer.columns(0, columns)) {}

  std::vector<double> values() const {
    std::vector<double> all = buffer.values(), inside;
    inside.reserve(rows * columns);
    for (int64_t i = 0; i < rows; ++i) inside.insert(inside.end(), all.begin() + i * stride, all.begin() + i * stride + columns);
    return inside;
  }

  // Whether what lies between the rows still has its poison.
  bool gaps_untouched() const {
    std::vector<char> bits = buffer.bits();
    int64_t bytes = element_bytes(buffer.t.dtype);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t b = (i * stride + columns) * bytes; b < (i + 1) * stride * bytes; ++b) {
        if (bits[b] != 0x7f) return false;
      }
    }
    return true;
  }
};

__global__ void reference_product(const double* a, const double* b, double* d, int m, int n, int k) {
  int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (e >= static_cast<int64_t>(m) * n) return;
  int64_t i = e / n, j = e % n;
  double sum = 0;
  for (int64_t x = 0; x < k; ++x) sum += a[i * k + x] * b[x * n + j];
  d[e] = sum;
}

std::vector<double> product_in_double(const std::vector<double>& a, const std::vector<double>& b, const Case& c) {
  double *da, *db, *dd;
  std::vector<double> d(c.m * c.n);
  cuda(cudaMalloc(&da, a.size() * 8));
  cuda(cudaMalloc(&db, b.size() * 8));
  cuda(cudaMalloc(&dd, d.size() * 8));
  cuda(cudaMemcpy(da, a.data(), a.size() * 8, cudaMemcpyHostToDevice));
  cuda(cudaMemcpy(db, b.data(), b.size() * 8, cudaMemcpyHostToDevice));
  reference_product<<<static_cast<unsigned>((d.size() + 127) / 128), 128>>>(da, db, dd, static_cast<int>(c.m), static_cast<int>(c.n), static_cast<int>(c.k));
  cuda(cudaMemcpy(d.data(), dd, d.size() * 8, cudaMemcpyDeviceToHost), "the reference");
  cudaFree(da);
  cudaFree(db);
  cudaFree(dd);
  return d;
}

std::vector<double> transposed(const std::vector<double>& x, int64_t rows, int64_t columns) {
  std::vector<double> y(x.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) y[j * rows + i] = x[i * columns + j];
  }
  return y;
}

double rounded_to(double value, int32_t dtype) {
  float narrow = static_cast<float>(value);
  if (dtype == PNB_DTYPE_BF16) return bf16_to_float(float_to_bf16(narrow));
  if (dtype == PNB_DTYPE_F16) return __half2float(__float2half(narrow));
  return narrow;
}

// A frozen weight from two stacked host parts of different dtypes, and the values that it must have.
struct FrozenWeight {
  std::vector<double> values;
  std::unique_ptr<pnb_weight> weight;
  void* storage = nullptr;

  FrozenWeight(int64_t out, int64_t in, int32_t dtype) {
    std::normal_distribution<float> normal;
    int64_t first = out / 2;
    const int32_t dtypes[2] = {dtype == PNB_DTYPE_F32 ? PNB_DTYPE_F32 : PNB_DTYPE_BF16, out % 2 ? PNB_DTYPE_F16 : PNB_DTYPE_F32};
    std::vector<std::vector<char>> bytes;
    std::vector<pnb_tensor> parts;
    for (int part = 0; part < 2; ++part) {
      int64_t rows = part == 0 ? first : out - first;
      if (rows == 0) continue;
      int64_t size = dtypes[part] == PNB_DTYPE_F32 ? 4 : 2;
      bytes.emplace_back(rows * in * size);
      for (int64_t e = 0; e < rows * in; ++e) {
        float value = normal(generator());
        char* at = bytes.back().data() + e * size;
        uint16_t half = dtypes[part] == PNB_DTYPE_BF16 ? float_to_bf16(value) : __half_as_ushort(__float2half(value));
        std::memcpy(at, size == 4 ? static_cast<const void*>(&value) : &half, size);
        values.push_back(rounded_to(rounded_to(value, dtypes[part]), dtype));
      }
      parts.push_back({nullptr, dtypes[part], 2, {rows, in}, {in, 1}});
    }
    for (size_t part = 0; part < parts.size(); ++part) parts[part].data = bytes[part].data();
    pnb_weight_params p{};
    p.struct_size = sizeof p;
    p.dtype = dtype;
    p.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD;
    p.part_count = static_cast<int32_t>(parts.size());
    p.parts = parts.data();
    p.storage_bytes = backend().weight_storage(p);
    cuda(cudaMalloc(&storage, p.storage_bytes));
    cuda(cudaMemset(storage, 0x7f, p.storage_bytes));
    p.storage = storage;
    weight = backend().weight_create(p);
  }
  ~FrozenWeight() { cudaFree(storage); }
};

// Bounds every element: what rounding to d's dtype costs, plus what sums of k products in f32 may lose.
void elements_close(const std::vector<double>& found, const std::vector<double>& expected, const Case& c, const std::string& what) {
  double relative = c.d_dtype == PNB_DTYPE_BF16 ? 1.05 / 256 : 2e-6;
  double absolute = 4e-6 * static_cast<double>(c.k + 64);
  for (size_t e = 0; e < expected.size(); ++e) {
    if (std::fabs(found[e] - expected[e]) <= relative * std::fabs(expected[e]) + absolute) continue;
    char text[160];
    std::snprintf(text, sizeof text, ": element [%lld, %lld] is %.9g, expected %.9g", static_cast<long long>(e) / static_cast<long long>(c.n),
                  static_cast<long long>(e) % static_cast<long long>(c.n), found[e], expected[e]);
    expect(false, what + text);
    return;
  }
}

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

  Tensor state(PNB_DTYPE_U64, {2}, 0.0);
  state.set({42, 7});
  uint64_t host_state[2] = {42, 7};
  std::vector<std::unique_ptr<Tensor>> factors;
  std::vector<pnb_low_rank> terms;
  for (size_t t = 0; t < c.terms.size(); ++t) {
    const Term& term = c.terms[t];
    factors.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{c.m, term.rank + 1}));
    factors.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, term.transposed ? std::vector<int64_t>{term.rank, term.columns}
                                                                              : std::vector<int64_t>{term.columns, term.rank}));
    pnb_low_rank low_rank{};
    low_rank.h = factors[2 * t]->columns(1, term.rank);
    low_rank.b = {factors[2 * t + 1]->t.data, PNB_DTYPE_F32, 2, {term.columns, term.rank},
                  {term.transposed ? 1 : term.rank, term.transposed ? term.columns : 1}};
    low_rank.column = term.column;
    low_rank.scale = 0.5f;
    low_rank.dropout.p = term.p;
    low_rank.dropout.stream = static_cast<uint32_t>(t);
    low_rank.dropout.state = state.t;
    terms.push_back(low_rank);
  }
  p.low_rank = terms.data();
  p.low_rank_count = static_cast<int32_t>(terms.size());
  Workspace workspace(backend().gemm_workspace(p));
  p.workspace = workspace.w;
  ok(what, [&] { backend().gemm(p); });
  cuda(cudaDeviceSynchronize(), what.c_str());

  std::vector<double> expected = product_in_double(a_values, b_values, c);
  for (size_t t = 0; t < c.terms.size(); ++t) {
    const Term& term = c.terms[t];
    std::vector<double> h = factors[2 * t]->values(), right = factors[2 * t + 1]->values();
    pnb_dropout dropout = terms[t].dropout;
    dropout.state.data = host_state;
    pnb::cpu::DropoutMask kept(dropout);
    std::vector<float> factor(term.columns);
    for (int64_t i = 0; i < c.m; ++i) {
      std::fill(factor.begin(), factor.end(), 1.0f);
      if (kept.active()) kept.apply(factor.data(), i * term.columns, term.columns);
      for (int64_t j = 0; j < term.columns; ++j) {
        double sum = 0;
        for (int64_t r = 0; r < term.rank; ++r) {
          sum += h[i * (term.rank + 1) + 1 + r] * right[term.transposed ? r * term.columns + j : j * term.rank + r];
        }
        expected[i * c.n + term.column + j] += 0.5 * sum * factor[j];
      }
    }
  }
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
  elements_close(found, expected, c, what);

  if (c.residual == kAliased) return;
  std::vector<char> first = d.buffer.bits();
  ok(what, [&] { backend().gemm(p); });
  expect(d.buffer.bits() == first, what + ": other bits the second time");
}

template <typename T>
T one_of(std::initializer_list<T> choices) {
  return choices.begin()[generator()() % choices.size()];
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
  for (int64_t t = 0; t < count; ++t) {
    Term term;
    term.column = one_of({true, false}) ? 0 : static_cast<int64_t>(generator()() % c.n);
    term.columns = one_of({true, false}) ? c.n - term.column : 1 + static_cast<int64_t>(generator()() % (c.n - term.column));
    term.rank = one_of<int64_t>({1, 4, 8, 15, 16, 33, 64});
    term.transposed = one_of({false, true});
    term.p = one_of({0.0f, 0.0f, 0.1f, 0.5f});
    c.terms.push_back(term);
  }
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
  // What a decoder's layer asks for, larger than a wave of tiles.
  if (argc < 2) {
    int32_t bf16 = PNB_DTYPE_BF16;
    run({1500, 6144, 2048, bf16, bf16, kForward, PNB_EPILOGUE_NONE, true, false, kNone, 0, {{4, 0, 2048, false, 0.0f}, {4, 4096, 2048, false, 0.0f}}});
    run({1500, 3072, 768, bf16, bf16, kForward, PNB_EPILOGUE_RELU, true, true, kNone, 0, {}});
    run({1500, 2048, 4096, bf16, bf16, kForward, PNB_EPILOGUE_NONE, true, false, kAliased, 0, {{16, 0, 2048, false, 0.0f}}});
    run({1500, 4096, 2048, bf16, bf16, kBackward, PNB_EPILOGUE_DRELU, false, true, kNone, 0, {{8, 0, 4096, true, 0.1f}}});
    run({1500, 2048, 3072, bf16, bf16, kBackward, PNB_EPILOGUE_NONE, false, false, kOwn, 0, {{64, 0, 2048, true, 0.0f}, {4, 0, 2048, true, 0.0f}}});
    run({700, 5027, 512, bf16, PNB_DTYPE_F32, kForward, PNB_EPILOGUE_NONE, false, false, kNone, 16, {}});
    run({700, 512, 5024, bf16, PNB_DTYPE_F32, kBackward, PNB_EPILOGUE_NONE, false, false, kAliased, 8, {}});
  }
  int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  for (int i = 0; i < cases; ++i) run(random_case());
  nan_stays_behind_relu();
  return finish("gemm");
}
