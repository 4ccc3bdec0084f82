// The little that the native tests need: random tensors, a context, comparisons that print what they saw.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cpu/bf16.h"
#include "penumbra/penumbra.h"

namespace test {

inline int failures = 0;

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

inline void ok(pnb_status status, const std::string& what) {
  expect(status == PNB_OK, what + ": " + std::to_string(status) + " " + pnb_last_error());
}

inline int finish(const char* name) {
  std::printf("%s: %s\n", name, failures == 0 ? "passed" : "failed");
  return failures == 0 ? 0 : 1;
}

inline pnb_context* context(int threads = 2) {
  pnb_context_params params{};
  params.struct_size = sizeof params;
  params.device = PNB_DEVICE_CPU;
  params.threads = threads;
  pnb_context* created = nullptr;
  ok(pnb_context_create(&params, &created), "context");
  if (created == nullptr) std::exit(1);
  return created;
}

inline std::mt19937& generator() {
  static std::mt19937 engine(20240607);  // fixed: a failure repeats itself
  return engine;
}

// A tensor with its values in double, rounded to what the dtype holds.
struct Tensor {
  std::vector<char> bytes;
  pnb_tensor t{};

  Tensor() = default;
  Tensor(int32_t dtype, std::vector<int64_t> shape, double scale = 1.0) {
    t.dtype = dtype;
    t.rank = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; --i) {
      t.shape[i] = shape[i];
      t.stride[i] = stride;
      stride *= shape[i];
    }
    bytes.assign(stride * (dtype == PNB_DTYPE_BF16 ? 2 : dtype == PNB_DTYPE_U8 ? 1 : dtype == PNB_DTYPE_U64 ? 8 : 4) + 64, 0x7f);
    t.data = bytes.data();
    if (scale == 0.0) return;  // poisoned: every byte 0x7f
    std::normal_distribution<double> normal(0.0, scale);
    for (int64_t i = 0; i < stride; ++i) set(i, normal(generator()));
  }

  int64_t size() const {
    int64_t count = 1;
    for (int i = 0; i < t.rank; ++i) count *= t.shape[i];
    return count;
  }
  double at(int64_t i) const {
    if (t.dtype == PNB_DTYPE_F32) return reinterpret_cast<const float*>(bytes.data())[i];
    return pnb::cpu::bf16_to_float(reinterpret_cast<const uint16_t*>(bytes.data())[i]);
  }
  void set(int64_t i, double value) {
    if (t.dtype == PNB_DTYPE_F32) {
      reinterpret_cast<float*>(bytes.data())[i] = static_cast<float>(value);
    } else {
      reinterpret_cast<uint16_t*>(bytes.data())[i] = pnb::cpu::float_to_bf16(static_cast<float>(value));
    }
  }
  std::vector<double> values() const {
    std::vector<double> result(size());
    for (int64_t i = 0; i < size(); ++i) result[i] = at(i);
    return result;
  }
};

inline Tensor ints(const std::vector<int32_t>& values) {
  Tensor tensor;
  tensor.bytes.resize(values.size() * 4 + 4);
  std::copy(values.begin(), values.end(), reinterpret_cast<int32_t*>(tensor.bytes.data()));
  tensor.t = {tensor.bytes.data(), PNB_DTYPE_I32, 1, {static_cast<int64_t>(values.size())}, {1}};
  return tensor;
}

// ||found - expected|| / ||expected|| is at most twice what rounding the exact result to the dtype costs, plus a floor.
inline void close(const std::vector<double>& found, const std::vector<double>& expected, int32_t dtype, const std::string& what,
                  double floor = 3e-6) {
  double difference = 0, size = 0, rounding = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
    if (dtype == PNB_DTYPE_BF16) {
      double rounded = pnb::cpu::bf16_to_float(pnb::cpu::float_to_bf16(static_cast<float>(expected[i])));
      rounding += (rounded - expected[i]) * (rounded - expected[i]);
    }
  }
  if (size == 0) size = 1;  // an exact zero is met absolutely
  double error = std::sqrt(difference / size);
  double bound = 2 * std::sqrt(rounding / size) + floor;
  char text[256];
  std::snprintf(text, sizeof text, ": relative error %.3g, allowed %.3g", error, bound);
  expect(found.size() == expected.size() && error <= bound, what + text);
}

template <typename Params>
Params params() {
  Params p{};
  p.struct_size = sizeof p;
  return p;
}

inline const char* name(int32_t dtype) { return dtype == PNB_DTYPE_F32 ? "f32" : "bf16"; }

}  // namespace test
