// What tests of matrix products share: views, frozen weights, low-rank terms, and the reference in double.
#pragma once

#include <cuda_fp16.h>

#include "cpu/philox.h"
#include "cuda/harness.cuh"

namespace test {

template <typename T>
T one_of(std::initializer_list<T> choices) {
  return choices.begin()[generator()() % choices.size()];
}

// Runs a product as on this device, or as on one of two multiprocessors: each then computes several tiles, and wide ones waste
// nothing.
inline void multiply(const pnb_gemm_params& p, bool few) {
  static const pnb::cuda::Device two = [] {
    pnb::cuda::Device device = backend().device();
    device.multiprocessors = 2;
    return device;
  }();
  static pnb::cuda::Gemm gemm(two);
  if (few) gemm.run(p);
  else backend().gemm(p);
}

// A low-rank term to make.
struct Term {
  int64_t rank, column, columns;
  bool transposed;
  float p;

  std::string text() const {
    char buffer[96];
    std::snprintf(buffer, sizeof buffer, " + rank %lld at %lld of %lld%s p %g", static_cast<long long>(rank),
                  static_cast<long long>(column), static_cast<long long>(columns), transposed ? " transposed" : "",
                  static_cast<double>(p));
    return buffer;
  }
};

inline Term random_term(int64_t n) {
  Term term;
  term.column = one_of({true, false}) ? 0 : static_cast<int64_t>(generator()() % n);
  term.columns = one_of({true, false}) ? n - term.column : 1 + static_cast<int64_t>(generator()() % (n - term.column));
  term.rank = one_of<int64_t>({1, 4, 6, 8, 15, 16, 33, 64});
  term.transposed = one_of({false, true});
  term.p = one_of({0.0f, 0.0f, 0.1f, 0.5f});
  return term;
}

inline int64_t padded(int64_t columns, int64_t pad) {
  return pad % 8 == 0 && pad > 0 ? (columns + 7) / 8 * 8 + pad - 8 : columns + pad;
}

// A matrix in a wider buffer: `t` is the view, `buffer` owns the memory.
struct View {
  int64_t rows, columns, stride;
  Tensor buffer;
  pnb_tensor t;
  View(int32_t dtype, int64_t rows, int64_t columns, int64_t pad, double scale)
      : rows(rows), columns(columns), stride(padded(columns, pad)), buffer(dtype, {rows, stride}, scale),
        t(buffer.columns(0, columns)) {}

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

inline std::vector<double> product_in_double(const std::vector<double>& a, const std::vector<double>& b, int64_t m, int64_t n,
                                             int64_t k) {
  double *da, *db, *dd;
  std::vector<double> d(m * n);
  cuda(cudaMalloc(&da, a.size() * 8));
  cuda(cudaMalloc(&db, b.size() * 8));
  cuda(cudaMalloc(&dd, d.size() * 8));
  cuda(cudaMemcpy(da, a.data(), a.size() * 8, cudaMemcpyHostToDevice));
  cuda(cudaMemcpy(db, b.data(), b.size() * 8, cudaMemcpyHostToDevice));
  reference_product<<<static_cast<unsigned>((d.size() + 127) / 128), 128>>>(da, db, dd, static_cast<int>(m), static_cast<int>(n),
                                                                                  static_cast<int>(k));
  cuda(cudaMemcpy(d.data(), dd, d.size() * 8, cudaMemcpyDeviceToHost), "the reference");
  cudaFree(da);
  cudaFree(db);
  cudaFree(dd);
  return d;
}

inline std::vector<double> transposed(const std::vector<double>& x, int64_t rows, int64_t columns) {
  std::vector<double> y(x.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) y[j * rows + i] = x[i * columns + j];
  }
  return y;
}

inline double rounded_to(double value, int32_t dtype) {
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
inline void elements_close(const std::vector<double>& found, const std::vector<double>& expected, int64_t n, int64_t k,
                           int32_t dtype, const std::string& what, double roundings = 1.0) {
  double relative = roundings * (dtype == PNB_DTYPE_BF16 ? 1.05 / 256 : 2e-6);
  double absolute = 4e-6 * static_cast<double>(k + 64);
  for (size_t e = 0; e < expected.size(); ++e) {
    if (std::fabs(found[e] - expected[e]) <= relative * std::fabs(expected[e]) + absolute) continue;
    char text[160];
    std::snprintf(text, sizeof text, ": element [%lld, %lld] is %.9g, expected %.9g",
                  static_cast<long long>(e) / static_cast<long long>(n), static_cast<long long>(e) % static_cast<long long>(n),
                  found[e], expected[e]);
    expect(false, what + text);
    return;
  }
}

// The terms of a product of m rows, with random factors.
class Terms {
 public:
  std::vector<pnb_low_rank> terms;

  Terms(const std::vector<Term>& made, int64_t m) : made_(made), m_(m), state_(PNB_DTYPE_U64, {2}, 0.0) {
    state_.set({42, 7});
    for (size_t t = 0; t < made.size(); ++t) {
      const Term& term = made[t];
      h_.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{m, term.rank + 1}));
      b_.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, term.transposed ? std::vector<int64_t>{term.rank, term.columns}
                                                                           : std::vector<int64_t>{term.columns, term.rank}));
      pnb_low_rank low_rank{};
      low_rank.h = h_[t]->columns(1, term.rank);
      low_rank.b = {b_[t]->t.data, PNB_DTYPE_F32, 2, {term.columns, term.rank},
                    {term.transposed ? 1 : term.rank, term.transposed ? term.columns : 1}};
      low_rank.column = term.column;
      low_rank.scale = 0.5f;
      low_rank.dropout.p = term.p;
      low_rank.dropout.stream = static_cast<uint32_t>(t);
      low_rank.dropout.state = state_.t;
      terms.push_back(low_rank);
    }
  }

  void set(pnb_gemm_params& p) const {
    p.low_rank = terms.data();
    p.low_rank_count = static_cast<int32_t>(terms.size());
  }

  // Adds them to a product of n columns.
  void add(std::vector<double>& expected, int64_t n) const {
    uint64_t host_state[2] = {42, 7};
    for (size_t t = 0; t < made_.size(); ++t) {
      const Term& term = made_[t];
      std::vector<double> h = h_[t]->values(), right = b_[t]->values();
      pnb_dropout dropout = terms[t].dropout;
      dropout.state.data = host_state;
      pnb::cpu::DropoutMask kept(dropout);
      std::vector<float> factor(term.columns);
      for (int64_t i = 0; i < m_; ++i) {
        std::fill(factor.begin(), factor.end(), 1.0f);
        if (kept.active()) kept.apply(factor.data(), i * term.columns, term.columns);
        for (int64_t j = 0; j < term.columns; ++j) {
          double sum = 0;
          for (int64_t r = 0; r < term.rank; ++r) {
            sum += h[i * (term.rank + 1) + 1 + r] * right[term.transposed ? r * term.columns + j : j * term.rank + r];
          }
          expected[i * n + term.column + j] += 0.5 * sum * factor[j];
        }
      }
    }
  }

 private:
  std::vector<Term> made_;
  int64_t m_;
  Tensor state_;
  std::vector<std::unique_ptr<Tensor>> h_, b_;
};

}  // namespace test
