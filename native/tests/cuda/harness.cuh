// What the kernels' tests need: device tensors with random contents, references in double, comparisons that print what
// they saw, and times taken with events.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/tensor.h"
#include "cuda/cuda_backend.h"

namespace test {

inline int failures = 0;

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// Ends the test when CUDA itself fails: nothing after it would mean anything.
inline void cuda(cudaError_t result, const char* what = "CUDA") {
  if (result == cudaSuccess) return;
  std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(result));
  std::exit(1);
}

// Runs an operation; its refusal is a failure.
template <typename Body>
void ok(const std::string& what, Body&& body) {
  try {
    body();
  } catch (const pnb::Error& error) {
    expect(false, what + ": " + error.what());
  }
}

// The backend of device 0, or the exit code that says "skipped" where there is none.
inline pnb::cuda::CudaBackend& backend(bool deterministic = false) {
  static pnb::cuda::CudaBackend* created[2] = {};
  auto& slot = created[deterministic];
  if (slot == nullptr) {
    pnb_context_params params{};
    params.struct_size = sizeof params;
    params.device = PNB_DEVICE_CUDA;
    params.deterministic = deterministic;
    try {
      slot = new pnb::cuda::CudaBackend(params);
    } catch (const pnb::Error& error) {
      std::printf("skipped: %s\n", error.what());
      std::exit(error.status() == PNB_ERROR_UNAVAILABLE ? 77 : 1);
    }
  }
  return *slot;
}

inline int finish(const char* name) {
  cuda(cudaDeviceSynchronize(), name);
  std::printf("%s: %s\n", name, failures == 0 ? "passed" : "failed");
  return failures == 0 ? 0 : 1;
}

inline std::mt19937& generator() {
  static std::mt19937 engine(20240607);  // fixed: a failure repeats itself
  return engine;
}

inline int64_t element_bytes(int32_t dtype) { return pnb::dtype_size(dtype); }

inline float bf16_to_float(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A contiguous device tensor. Operations get `t`, which may be made a view; values() reads the whole buffer back.
class Tensor {
 public:
  pnb_tensor t{};

  // scale 0: poisoned, every byte 0x7f, so that an element nobody writes shows.
  Tensor(int32_t dtype, const std::vector<int64_t>& shape, double scale = 1.0) {
    t.dtype = dtype;
    t.rank = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; --i) {
      t.shape[i] = shape[i];
      t.stride[i] = stride;
      stride *= shape[i];
    }
    count_ = stride;
    cuda(cudaMalloc(&t.data, std::max<int64_t>(256, count_ * element_bytes(dtype))), "a test's tensor");
    cuda(cudaMemset(t.data, 0x7f, std::max<int64_t>(256, count_ * element_bytes(dtype))));
    if (scale != 0.0) {
      std::normal_distribution<float> normal(0.0f, static_cast<float>(scale));
      std::vector<double> values(count_);
      for (double& value : values) value = normal(generator());
      set(values);
    }
  }
  ~Tensor() { cudaFree(data_to_free()); }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  int64_t size() const { return count_; }

  // Rounds to the dtype.
  void set(const std::vector<double>& values) {
    std::vector<char> bytes(count_ * element_bytes(t.dtype));
    for (int64_t i = 0; i < count_; ++i) {
      if (t.dtype == PNB_DTYPE_F32) reinterpret_cast<float*>(bytes.data())[i] = static_cast<float>(values[i]);
      else if (t.dtype == PNB_DTYPE_BF16) reinterpret_cast<uint16_t*>(bytes.data())[i] =
                                              float_to_bf16(static_cast<float>(values[i]));
      else if (t.dtype == PNB_DTYPE_I32) reinterpret_cast<int32_t*>(bytes.data())[i] = static_cast<int32_t>(values[i]);
      else if (t.dtype == PNB_DTYPE_U8) reinterpret_cast<uint8_t*>(bytes.data())[i] = static_cast<uint8_t>(values[i]);
      else reinterpret_cast<uint64_t*>(bytes.data())[i] = static_cast<uint64_t>(values[i]);
    }
    cuda(cudaMemcpy(t.data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }

  std::vector<double> values() const {
    std::vector<char> bytes(count_ * element_bytes(t.dtype));
    cuda(cudaMemcpy(bytes.data(), t.data, bytes.size(), cudaMemcpyDeviceToHost), "reading a result");
    std::vector<double> values(count_);
    for (int64_t i = 0; i < count_; ++i) {
      if (t.dtype == PNB_DTYPE_F32) values[i] = reinterpret_cast<const float*>(bytes.data())[i];
      else if (t.dtype == PNB_DTYPE_BF16) values[i] = bf16_to_float(reinterpret_cast<const uint16_t*>(bytes.data())[i]);
      else if (t.dtype == PNB_DTYPE_I32) values[i] = reinterpret_cast<const int32_t*>(bytes.data())[i];
      else if (t.dtype == PNB_DTYPE_U8) values[i] = reinterpret_cast<const uint8_t*>(bytes.data())[i];
      else values[i] = static_cast<double>(reinterpret_cast<const uint64_t*>(bytes.data())[i]);
    }
    return values;
  }

  std::vector<char> bits() const {
    std::vector<char> bytes(count_ * element_bytes(t.dtype));
    cuda(cudaMemcpy(bytes.data(), t.data, bytes.size(), cudaMemcpyDeviceToHost));
    return bytes;
  }

  // Columns [column, column + width) of a matrix.
  pnb_tensor columns(int64_t column, int64_t width) const {
    pnb_tensor view = t;
    view.data = static_cast<char*>(t.data) + column * element_bytes(t.dtype);
    view.shape[1] = width;
    return view;
  }

 private:
  void* data_to_free() const { return t.data; }
  int64_t count_ = 0;
};

inline std::vector<double> ints(const std::vector<int32_t>& values) { return {values.begin(), values.end()}; }

// A workspace of as many bytes, poisoned.
class Workspace {
 public:
  pnb_workspace w{};
  explicit Workspace(uint64_t bytes) {
    w.bytes = bytes;
    if (bytes == 0) return;
    cuda(cudaMalloc(&w.data, bytes), "a workspace");
    cuda(cudaMemset(w.data, 0x7f, bytes));
  }
  ~Workspace() { cudaFree(w.data); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
};

// ||found - expected|| / ||expected||; NaN anywhere gives NaN, which no comparison passes.
inline double relative_error(const std::vector<double>& found, const std::vector<double>& expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return size == 0 ? std::sqrt(difference) : std::sqrt(difference / size);
}

// The error is at most `allowed`, and prints in any case when it is not.
inline void close(const std::vector<double>& found, const std::vector<double>& expected, double allowed, const std::string& what) {
  expect(found.size() == expected.size(), what + ": sizes differ");
  double error = relative_error(found, expected);
  char text[128];
  std::snprintf(text, sizeof text, ": relative error %.3g, allowed %.3g", error, allowed);
  expect(error <= allowed, what + text);
}

// What rounding the exact result to the dtype costs; twice this plus a floor is what an operation may be wrong by.
inline double rounding_error(const std::vector<double>& exact, int32_t dtype) {
  std::vector<double> rounded(exact.size());
  for (size_t i = 0; i < exact.size(); ++i) {
    rounded[i] = dtype == PNB_DTYPE_BF16 ? bf16_to_float(float_to_bf16(static_cast<float>(exact[i])))
                                         : static_cast<float>(exact[i]);
  }
  return relative_error(rounded, exact);
}

// Median milliseconds of one call, from events around batches of calls, after a warm-up.
inline double milliseconds(const std::function<void()>& call, int repeats = 11, int calls = 5) {
  for (int i = 0; i < 3; ++i) call();
  cudaEvent_t start, stop;
  cuda(cudaEventCreate(&start));
  cuda(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < repeats; ++i) {
    cuda(cudaEventRecord(start));
    for (int j = 0; j < calls; ++j) call();
    cuda(cudaEventRecord(stop));
    cuda(cudaEventSynchronize(stop), "a timed call");
    float ms;
    cuda(cudaEventElapsedTime(&ms, start, stop));
    times.push_back(ms / static_cast<float>(calls));
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace test
