// Small questions about tensors.
#pragma once

#include <cstdint>
#include <string>

#include "penumbra/tensor.h"

namespace pnb {

inline bool present(const pnb_tensor& t) { return t.data != nullptr; }

inline int64_t element_count(const pnb_tensor& t) {
  int64_t count = 1;
  for (int i = 0; i < t.rank; ++i) count *= t.shape[i];
  return count;
}

inline bool is_float(int32_t dtype) {
  return dtype == PNB_DTYPE_F32 || dtype == PNB_DTYPE_BF16 || dtype == PNB_DTYPE_F16;
}

// Whether elements lie one after another in row-major order.
bool is_contiguous(const pnb_tensor& t);

int dtype_size(int32_t dtype);          // bytes; 0 for an unknown code
const char* dtype_name(int32_t dtype);  // "bf16"; "?" for an unknown code
std::string shape_text(const pnb_tensor& t);  // "[4096, 768]"

}  // namespace pnb
