// oneDNN's matmul: primitives cached by shape, weights in its packed layouts.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>

#include "cpu/scratch.h"

namespace pnb::cpu {

// A matrix operand: where it lies and how.
struct Matrix {
  void* data;
  dnnl::memory::desc desc;
};

dnnl::memory::data_type dnnl_type(int32_t dtype);
Matrix plain_matrix(void* data, int32_t dtype, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride);

// What is fused behind a product.
struct Fusion {
  const float* bias = nullptr;     // [n]
  const Matrix* residual = nullptr;  // [m, n], added last; d itself or memory apart from it
};

class Matmul {
 public:
  explicit Matmul(int threads);

  // d = a * b + bias + residual.
  void run(const Matrix& a, const Matrix& b, const Matrix& d, const Fusion& fusion = {});

  // The layout that products [*, k] x [k, n] read b fastest in.
  dnnl::memory::desc packed_desc(int64_t k, int64_t n, dnnl::memory::data_type type);
  void reorder(const Matrix& source, const Matrix& target);

  // Whether this processor multiplies bf16 matrices with more than scalar code.
  bool bf16() const { return bf16_; }
  size_t memory() const { return scratchpad_.size(); }

 private:
  struct Entry {
    dnnl::matmul primitive;
    dnnl::memory::desc scratchpad;
  };
  using Key = std::string;  // the bytes of all that a primitive was made for

  const Entry& entry(const Matrix& a, const Matrix& b, const Matrix& d, const Fusion& fusion);

  int threads_;
  bool bf16_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  Scratch scratchpad_;
  std::map<Key, std::list<std::pair<Key, Entry>>::iterator> index_;
  std::list<std::pair<Key, Entry>> recent_;  // most recently used first
};

}  // namespace pnb::cpu
