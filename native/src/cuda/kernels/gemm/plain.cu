#include "cuda/kernels/gemm/blocks.cuh"
#include "cuda/kernels/gemm/finish_row.cuh"
#include "cuda/runtime/device.h"

namespace pnb::cuda {

namespace {

// A block's tile, and a thread's part of it: 12 reads of shared memory feed 32 multiply-adds.
constexpr int kTile = 64;
constexpr int kStep = 16;  // along k
constexpr int kRows = 4;
constexpr int kColumns = 8;
constexpr int kThreads = kTile / kRows * (kTile / kColumns);
constexpr int kPitch = kTile + 4;  // rows stay aligned to 16 bytes, and columns spread over the banks

// Where in b a product's columns and steps lie, and how many there are.
template <Gather kGather>
struct Places {
  int columns, k;

  __device__ Places(const Product& p, int) : columns(p.n), k(p.k) {}
  __device__ int column(int j) const { return j; }
  __device__ int step(int x) const { return x; }
};

template <>
struct Places<Gather::kColumns> {
  ActiveBlocks active;
  int columns, k;

  __device__ Places(const Product& p, int row) : active(p.blocks, row), columns(active.columns()), k(p.k) {}
  __device__ int column(int j) const { return active.neuron(j); }
  __device__ int step(int x) const { return x; }
};

template <>
struct Places<Gather::kSteps> {
  ActiveBlocks active;
  int columns, k;

  __device__ Places(const Product& p, int row) : active(p.blocks, row), columns(p.n), k(active.columns()) {}
  __device__ int column(int j) const { return j; }
  __device__ int step(int x) const { return active.neuron(x); }
};

// s[kStep][kTile] = x[first .. , from .. from + kStep)^T, each at its place; zeros outside of x. Neighbouring threads read
// neighbouring addresses.
template <typename T, typename Outer, typename Step>
__device__ void fetch(float (&s)[kStep][kPitch], const Matrix& x, int64_t outer_stride, int64_t k_stride, int first, int outer,
                      int from, int k, Outer outer_place, Step step_place) {
  const T* data = static_cast<const T*>(x.data);
  bool along_k = k_stride <= outer_stride;
#pragma unroll
  for (int i = threadIdx.x; i < kTile * kStep; i += kThreads) {
    int step = along_k ? i % kStep : i / kTile;
    int lane = along_k ? i / kStep : i % kTile;
    bool inside = first + lane < outer && from + step < k;
    s[step][lane] = inside ? widened(data[outer_place(first + lane) * outer_stride + step_place(from + step) * k_stride]) : 0.0f;
  }
}

template <typename T, typename D, Gather kGather>
__global__ void __launch_bounds__(kThreads) plain_kernel(const __grid_constant__ Product p) {
  __shared__ alignas(16) float a[kStep][kPitch];
  __shared__ alignas(16) float b[kStep][kPitch];
  int across = (p.n + kTile - 1) / kTile;
  int first_row = static_cast<int>(blockIdx.x / across) * kTile;
  int first_column = static_cast<int>(blockIdx.x % across) * kTile;
  int row = threadIdx.x / (kTile / kColumns) * kRows;
  int column = threadIdx.x % (kTile / kColumns) * kColumns;

  Places<kGather> places(p, first_row);
  int columns = places.columns, k = places.k;
  if (first_column >= columns) return;
  float sums[kRows][kColumns] = {};
  for (int from = 0; from < k; from += kStep) {
    auto own = [](int i) { return i; };
    fetch<T>(a, p.a, p.a.row_stride, p.a.column_stride, first_row, p.m, from, k, own, own);
    fetch<T>(b, p.b, p.b.column_stride, p.b.row_stride, first_column, columns, from, k, [&](int j) { return places.column(j); },
             [&](int x) { return places.step(x); });
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kStep; ++step) {
      float x[kRows], y[kColumns];
      *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(&a[step][row]);
      *reinterpret_cast<float4*>(y) = *reinterpret_cast<const float4*>(&b[step][column]);
      *reinterpret_cast<float4*>(y + 4) = *reinterpret_cast<const float4*>(&b[step][column + 4]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sums[i][j] += x[i] * y[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    int at = first_column + column;
    if (at >= columns) return;
    finish_row<D>(p, first_row + row + i, at, places.column(at), sums[i]);
  }
}

template <Gather kGather>
void launch(const Product& p, cudaStream_t stream) {
  int64_t down = (p.m + kTile - 1) / kTile;
  int64_t across = (p.n + kTile - 1) / kTile;
  auto kernel = p.dtype == PNB_DTYPE_F32     ? plain_kernel<float, float, kGather>
                : p.d_dtype == PNB_DTYPE_F32 ? plain_kernel<__nv_bfloat16, float, kGather>
                                             : plain_kernel<__nv_bfloat16, __nv_bfloat16, kGather>;
  kernel<<<static_cast<unsigned>(down * across), kThreads, 0, stream>>>(p);
  check_launch("gemm");
}

}  // namespace

void plain_product(const Product& p, cudaStream_t stream) {
  switch (p.gather) {
    case Gather::kNone: return launch<Gather::kNone>(p, stream);
    case Gather::kColumns: return launch<Gather::kColumns>(p, stream);
    case Gather::kSteps: return launch<Gather::kSteps>(p, stream);
  }
}

}  // namespace pnb::cuda
