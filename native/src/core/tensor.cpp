#include "core/tensor.h"

namespace pnb {

bool is_contiguous(const pnb_tensor& t) {
  int64_t expected = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.stride[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

int dtype_size(int32_t dtype) {
  switch (dtype) {
    case PNB_DTYPE_F32:
    case PNB_DTYPE_I32: return 4;
    case PNB_DTYPE_BF16:
    case PNB_DTYPE_F16: return 2;
    case PNB_DTYPE_U8: return 1;
    case PNB_DTYPE_U64: return 8;
    default: return 0;
  }
}

const char* dtype_name(int32_t dtype) {
  switch (dtype) {
    case PNB_DTYPE_F32: return "f32";
    case PNB_DTYPE_BF16: return "bf16";
    case PNB_DTYPE_F16: return "f16";
    case PNB_DTYPE_I32: return "i32";
    case PNB_DTYPE_U8: return "u8";
    case PNB_DTYPE_U64: return "u64";
    default: return "?";
  }
}

std::string shape_text(const pnb_tensor& t) {
  std::string text = "[";
  for (int i = 0; i < t.rank && i < PNB_MAX_RANK; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(t.shape[i]);
  }
  return text + "]";
}

}  // namespace pnb
