#include "cuda/kernels/gemm/finish_row.cuh"
#include "cuda/runtime/device.h"

namespace pnb::cuda {

namespace {

// A block computes eight columns of four rows; its warps share k. Eight times 16 bytes of b a thread are 32 KB a block under
// way, which a few blocks a multiprocessor turn into the memory's full rate. Further rows find b in L2.
constexpr int kRows = 4;
constexpr int kColumns = 8;
constexpr int kWarps = 8;
constexpr int kVector = 8;  // bf16 elements in 16 bytes
static_assert(kRows * kColumns == 32, "a lane a sum");

__device__ void unpack(uint4 bits, float (&values)[kVector]) {
  uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(words[i] << 16);
    values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// Elements [from, from + 8) of a row of k, zeros past its end.
__device__ void read(const __nv_bfloat16* row, int from, int k, float (&values)[kVector]) {
  if (from + kVector <= k) {
    unpack(*reinterpret_cast<const uint4*>(row + from), values);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = from + i < k ? __bfloat162float(row[from + i]) : 0.0f;
  }
}

// Adds up 32 values over a warp's lanes; lane i gets the sum of the i-th.
__device__ float sums_over_lanes(float (&values)[32]) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 16; half >= 1; half /= 2) {
    bool upper = (lane & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      float sent = upper ? values[i] : values[i + half];
      float kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(0xffffffffu, sent, half);
    }
  }
  return values[0];
}

template <typename D>
__global__ void __launch_bounds__(kWarps * 32) skinny_kernel(const __grid_constant__ Product p) {
  int first_row = blockIdx.x * kRows;
  int first_column = blockIdx.y * kColumns;
  int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  const auto* a = static_cast<const __nv_bfloat16*>(p.a.data);
  const auto* b = static_cast<const __nv_bfloat16*>(p.b.data);

  float sums[kRows * kColumns] = {};
  for (int from = static_cast<int>(threadIdx.x) * kVector; from < p.k; from += kWarps * 32 * kVector) {
    float x[kRows][kVector];
#pragma unroll
    for (int i = 0; i < kRows; ++i) read(a + min(first_row + i, p.m - 1) * p.a.row_stride, from, p.k, x[i]);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      float y[kVector];
      read(b + min(first_column + j, p.n - 1) * p.b.column_stride, from, p.k, y);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int e = 0; e < kVector; ++e) sums[i * kColumns + j] += x[i][e] * y[e];
      }
    }
  }
  __shared__ float of_warps[kWarps][32];
  __shared__ float totals[kRows][kColumns];
  of_warps[warp][lane] = sums_over_lanes(sums);
  __syncthreads();
  if (warp != 0) return;
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += of_warps[w][lane];
  totals[lane / kColumns][lane % kColumns] = total;
  __syncwarp();
  if (lane >= kRows) return;
  float values[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) values[j] = totals[lane][j];
  finish_row<D>(p, first_row + lane, first_column, first_column, values);
}

}  // namespace

void skinny_product(const Product& p, cudaStream_t stream) {
  dim3 grid((p.m + kRows - 1) / kRows, (p.n + kColumns - 1) / kColumns);
  auto kernel = p.d_dtype == PNB_DTYPE_F32 ? skinny_kernel<float> : skinny_kernel<__nv_bfloat16>;
  kernel<<<grid, kWarps * 32, 0, stream>>>(p);
  check_launch("gemm");
}

}  // namespace pnb::cuda
