#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/tensor.h"
#include "cuda/kernels/gemm/gemm.h"

namespace pnb::cuda {

namespace {

// What the copy engine asks of a row's start.
constexpr int64_t kRowBytes = 16;

// Half of the pinned memory that rows are converted into while the half before is copied: 4 MiB take a copy about 0.1 ms.
constexpr size_t kStagingBytes = size_t{4} << 20;

int64_t padded_columns(int64_t in, int32_t dtype) {
  int64_t multiple = kRowBytes / dtype_size(dtype);
  return (in + multiple - 1) / multiple * multiple;
}

int64_t rows_of(const pnb_weight_params& p) {
  int64_t rows = 0;
  for (int i = 0; i < p.part_count; ++i) rows += p.parts[i].shape[0];
  return rows;
}

float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

uint16_t float_to_bf16(float value) {
  uint32_t bits = float_to_bits(value);
  uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<uint16_t>((nan ? bits | 0x400000u : rounded) >> 16);
}

float f16_to_float(uint16_t half) {
  uint32_t sign = (half & 0x8000u) << 16;
  uint32_t exponent = (half >> 10) & 0x1f;
  uint32_t fraction = half & 0x3ff;
  if (exponent == 0x1f) return bits_to_float(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return std::copysign(std::ldexp(static_cast<float>(fraction), -24), bits_to_float(sign));
  return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}

float load(const float* x) { return *x; }

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
float load(const Bf16* x) { return bits_to_float(static_cast<uint32_t>(x->bits) << 16); }
float load(const F16* x) { return f16_to_float(x->bits); }

void store(float value, float* d) { *d = value; }
void store(float value, Bf16* d) { d->bits = float_to_bf16(value); }

template <typename D, typename S>
void convert_row(const S* s, int64_t stride, D* d, int64_t count) {
  if (stride == 1) {
    for (int64_t j = 0; j < count; ++j) store(load(s + j), d + j);
  } else {
    for (int64_t j = 0; j < count; ++j) store(load(s + j * stride), d + j);
  }
}

template <typename D>
void convert_row(const pnb_tensor& part, int64_t row, D* d) {
  int64_t first = row * part.stride[0];
  int64_t stride = part.stride[1];
  int64_t count = part.shape[1];
  switch (part.dtype) {
    case PNB_DTYPE_F32: return convert_row(static_cast<const float*>(part.data) + first, stride, d, count);
    case PNB_DTYPE_BF16: return convert_row(static_cast<const Bf16*>(part.data) + first, stride, d, count);
    default: return convert_row(static_cast<const F16*>(part.data) + first, stride, d, count);
  }
}

// One row of a part in the weight's dtype, and zeros up to the next row.
void pack_row(const pnb_tensor& part, int64_t row, int32_t dtype, char* d, size_t row_bytes) {
  size_t used = part.shape[1] * dtype_size(dtype);
  if (part.dtype == dtype && part.stride[1] == 1) {
    std::memcpy(d, static_cast<const char*>(part.data) + row * part.stride[0] * dtype_size(dtype), used);
  } else if (dtype == PNB_DTYPE_F32) {
    convert_row(part, row, reinterpret_cast<float*>(d));
  } else {
    convert_row(part, row, reinterpret_cast<Bf16*>(d));
  }
  std::memset(d + used, 0, row_bytes - used);
}

// Two halves of pinned memory: one is filled while the other is copied.
class Staging {
 public:
  explicit Staging(size_t half_bytes) : half_bytes_(half_bytes) {
    try {
      check(cudaMallocHost(&data_, 2 * half_bytes), "weight: pinned memory");
      for (cudaEvent_t& event : copied_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "weight");
    } catch (...) {
      release();
      throw;
    }
  }
  ~Staging() { release(); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // The half that may be written now.
  char* next() {
    check(cudaEventSynchronize(copied_[current_]), "weight");
    return static_cast<char*>(data_) + current_ * half_bytes_;
  }

  void copy(void* d, size_t bytes, cudaStream_t stream) {
    const char* s = static_cast<char*>(data_) + current_ * half_bytes_;
    check(cudaMemcpyAsync(d, s, bytes, cudaMemcpyHostToDevice, stream), "weight");
    check(cudaEventRecord(copied_[current_], stream), "weight");
    current_ ^= 1;
  }

 private:
  void release() {
    for (cudaEvent_t event : copied_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (data_ != nullptr) cudaFreeHost(data_);
  }

  size_t half_bytes_;
  void* data_ = nullptr;
  cudaEvent_t copied_[2] = {};
  int current_ = 0;
};

}  // namespace

uint64_t weight_storage(const pnb_weight_params& p) {
  return static_cast<uint64_t>(rows_of(p) * padded_columns(p.parts[0].shape[1], p.dtype) * dtype_size(p.dtype));
}

std::unique_ptr<pnb_weight> weight_create(const Device&, const pnb_weight_params& p) {
  auto weight = std::make_unique<Weight>();
  weight->out = rows_of(p);
  weight->in = p.parts[0].shape[1];
  weight->dtype = p.dtype;
  weight->uses = p.uses;
  weight->data = p.storage;
  weight->row_stride = padded_columns(weight->in, p.dtype);

  cudaStream_t stream = stream_of(p.stream);
  size_t row_bytes = weight->row_stride * dtype_size(p.dtype);
  int64_t rows_at_once = std::max<int64_t>(1, kStagingBytes / row_bytes);
  Staging staging(std::min<int64_t>(rows_at_once, weight->out) * row_bytes);
  char* target = static_cast<char*>(p.storage);
  try {
    for (int i = 0; i < p.part_count; ++i) {
      for (int64_t from = 0; from < p.parts[i].shape[0]; from += rows_at_once) {
        int64_t rows = std::min(rows_at_once, p.parts[i].shape[0] - from);
        char* packed = staging.next();
        for (int64_t row = 0; row < rows; ++row) pack_row(p.parts[i], from + row, p.dtype, packed + row * row_bytes, row_bytes);
        staging.copy(target, rows * row_bytes, stream);
        target += rows * row_bytes;
      }
    }
    check(cudaStreamSynchronize(stream), "weight");
  } catch (...) {
    cudaStreamSynchronize(stream);  // the staging memory goes away
    throw;
  }
  return weight;
}

}  // namespace pnb::cuda
