#pragma once

#include <algorithm>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/norm/rows.cuh"

// How rows are shared out over threads and blocks, forward and backward.
//
// Where a warp's columns divide a row, a block takes many rows and each of its threads the same eight columns of all of them:
// gamma and beta stay in registers, bulk copies bring the next rows while these are reduced, and one barrier serves several
// rows. A mean over the rows of a pool is then a sum that a thread keeps.
// Other rows are a block's each. Aligned ones lie in registers, up to four 16-byte vectors a thread, and are read once; the
// rest are read again for each sum. An operand that is written over has been read before.

namespace pnb::cuda {

constexpr int kVectors = 4;
constexpr int kThreads = 512;       // at most; 512 * 4 vectors hold 16384 elements of bf16, 8192 of f32
constexpr int kPlainThreads = 256;  // of the kernels for other rows

template <typename T>
__device__ const T* row_of(const void* data, int64_t stride) {
  return static_cast<const T*>(data) + blockIdx.x * stride;
}
template <typename T>
__device__ T* row_of(void* data, int64_t stride) {
  return static_cast<T*>(data) + blockIdx.x * stride;
}

// kCount floats of a parameter, starting where a 16-byte vector of T starts; the parameters themselves need not be aligned.
template <int kCount>
__device__ void load_parameter(const float* p, bool aligned, float (&v)[kCount]) {
  if (aligned) {
    auto pack = Pack<float, kCount>::load(p);
#pragma unroll
    for (int j = 0; j < kCount; ++j) v[j] = pack.v[j];
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) v[j] = p[j];
  }
}

// A bit for each of kRows rows, of which so many are left. Comparisons would let the compiler write the rest of a loop again for
// every number of rows.
template <int kRows>
__device__ uint32_t rows_there(int left) {
  return left >= kRows ? (1u << kRows) - 1 : (1u << left) - 1;
}

// Rows for each of about as many blocks as the device holds at once, a multiple of `step`.
inline int64_t rows_of_block(const Device& device, int64_t m, int threads, int step) {
  int64_t blocks = std::max(2, 512 / threads) * static_cast<int64_t>(device.multiprocessors);
  return round_up(ceil_div(m, blocks), step);
}

// Stages of so many bytes: what keeps the memory busy, and lets two blocks share a multiprocessor.
inline int stages_of(size_t bytes) {
  constexpr size_t kRing = 96 << 10;
  return static_cast<int>(std::clamp<size_t>(kRing / bytes, 2, 4));
}

template <typename T>
size_t row_bytes(int64_t h) {
  return static_cast<size_t>(h) * sizeof(T) + kRowPadding;
}

// Whether the kernels that keep a thread at its columns can take rows of this length.
inline bool many_rows(int64_t h, bool rows_aligned) {
  return rows_aligned && h % (kRowColumns * kWarp) == 0 && h <= kRowColumns * kMostRowThreads;
}

// Threads a row, so that each has at most kVectors vectors; 0 where the row does not fit or is not aligned.
template <typename T>
int vector_threads(int64_t h, bool rows_aligned) {
  if (!rows_aligned || h % kVector<T> != 0) return 0;
  int64_t threads = round_up(ceil_div(h / kVector<T>, kVectors), kWarp);
  return threads <= kThreads ? static_cast<int>(threads) : 0;
}

}  // namespace pnb::cuda
