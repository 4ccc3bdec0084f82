#include <cooperative_groups.h>

#include <algorithm>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/lora/fragment.cuh"
#include "cuda/kernels/lora/passes.h"
#include "cuda/kernels/reduce.cuh"

// The same two passes for up to eight ranks over aligned rows. A multiply-add for each rank and element is then little work
// beside reading the element, so ordinary arithmetic does it and every register holds loads on their way or sums.

namespace pnb::cuda::lora {

namespace {

namespace cg = cooperative_groups;

struct ProjectArgs {
  const void* x;
  const float* factor;
  float* h;
  DropoutParams dropout;
  int64_t m, columns, x_stride, h_row, h_rank, factor_rank, factor_column;
  int r;
  float scale;
};

constexpr int kProjectRows = 4;     // of a warp: the factor is read once for all of them
constexpr int kProjectThreads = 128;

enum class FactorLayout { kColumns, kRanks, kAny };  // what lies side by side, at multiples of 16 bytes

// factor[rank][i] of the eight columns from `column` on; zero for ranks that are not there.
template <int kRanks, FactorLayout kLayout>
__device__ void load_factor(const ProjectArgs& p, int64_t column, float (&factor)[kRanks][kRun]) {
  if constexpr (kLayout == FactorLayout::kColumns) {
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      Pack<float, kRun> run{};
      if (rank < p.r) run = Pack<float, kRun>::load(p.factor + rank * p.factor_rank + column);
#pragma unroll
      for (int i = 0; i < kRun; ++i) factor[rank][i] = run.v[i];
    }
  } else if constexpr (kLayout == FactorLayout::kRanks) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      auto ranks = Pack<float, kRanks>::load(p.factor + (column + i) * p.factor_column);
#pragma unroll
      for (int rank = 0; rank < kRanks; ++rank) factor[rank][i] = ranks.v[rank];
    }
  } else {
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        factor[rank][i] = rank < p.r ? p.factor[rank * p.factor_rank + (column + i) * p.factor_column] : 0.0f;
      }
    }
  }
}

template <typename T, int kRanks, FactorLayout kLayout>
__global__ void __launch_bounds__(kProjectThreads) project_kernel(ProjectArgs p) {
  int64_t warp = (static_cast<int64_t>(blockIdx.x) * kProjectThreads + threadIdx.x) / kWarp;
  int lane = threadIdx.x % kWarp;
  int64_t first_row = warp * kProjectRows;
  if (first_row >= p.m) return;
  const T* x = static_cast<const T*>(p.x);
  bool drops = p.dropout.active();
  float sums[kProjectRows][kRanks] = {};
#pragma unroll 2
  for (int64_t column = lane * kRun; column < p.columns; column += kWarp * kRun) {
    Pack<T, kRun> runs[kProjectRows];
#pragma unroll
    for (int i = 0; i < kProjectRows; ++i) {
      // The last row again where there are fewer: loads without a branch, sums that nobody writes.
      runs[i] = Pack<T, kRun>::load(x + min(first_row + i, p.m - 1) * p.x_stride + column);
    }
    if (drops) {
      DropoutMask mask(p.dropout);
#pragma unroll
      for (int i = 0; i < kProjectRows; ++i) drop(runs[i], mask, static_cast<uint64_t>((first_row + i) * p.columns + column));
    }
    float factor[kRanks][kRun];
    load_factor<kRanks, kLayout>(p, column, factor);
#pragma unroll
    for (int i = 0; i < kProjectRows; ++i) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        float v = to_float(runs[i].v[j]);
#pragma unroll
        for (int rank = 0; rank < kRanks; ++rank) sums[i][rank] += v * factor[rank][j];
      }
    }
  }
  float scale = p.scale * p.dropout.keep;
#pragma unroll
  for (int i = 0; i < kProjectRows; ++i) {
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      float sum = warp_combine(sums[i][rank], [](float a, float b) { return a + b; });
      if (lane == rank && rank < p.r && first_row + i < p.m) p.h[(first_row + i) * p.h_row + rank * p.h_rank] = scale * sum;
    }
  }
}

// Sums over tokens: a block takes 128 columns and an eighth of the tokens, sixteen threads side by side and sixteen tokens at
// a time; the eight blocks of a cluster add up in each other's shared memory, in a fixed order.
constexpr int kCluster = 8;
constexpr int kSumThreads = 256;
constexpr int kSumColumns = 128;
constexpr int kSideBySide = kSumColumns / kRun;
constexpr int kTokenLanes = kSumThreads / kSideBySide;

struct Sum {
  const void* x;
  const float* left;
  float* d;
  DropoutParams dropout;
  int64_t columns, x_stride, left_row, left_rank, d_rank, d_column;
  float scale;
};

struct SumArgs {
  Sum sums[2];
  int64_t m, tokens;  // in all, and of a block
  int r;
};

template <typename T, int kRanks>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kSumThreads, 2) accumulate_kernel(SumArgs p) {
  extern __shared__ float shared[];  // the block's tokens of left, then the sums
  const Sum& s = p.sums[blockIdx.z];
  int64_t first_column = static_cast<int64_t>(blockIdx.y) * kSumColumns;
  if (first_column >= s.columns) return;  // the whole cluster does
  int side = threadIdx.x % kSideBySide;
  int token_lane = threadIdx.x / kSideBySide;
  int64_t column = first_column + side * kRun;
  int64_t first = blockIdx.x * p.tokens;
  int64_t count = max(static_cast<int64_t>(0), min(p.tokens, p.m - first));
  for (int64_t i = threadIdx.x; i < count * kRanks; i += kSumThreads) {
    int64_t token = i / kRanks, rank = i % kRanks;
    shared[i] = rank < p.r ? s.left[(first + token) * s.left_row + rank * s.left_rank] : 0.0f;
  }
  __syncthreads();
  const T* x = static_cast<const T*>(s.x) + first * s.x_stride + column;
  bool drops = s.dropout.active();
  float sums[kRanks][kRun] = {};
  if (column < s.columns) {
#pragma unroll 4
    for (int64_t token = token_lane; token < count; token += kTokenLanes) {
      auto run = Pack<T, kRun>::load(x + token * s.x_stride);
      if (drops) drop(run, DropoutMask(s.dropout), static_cast<uint64_t>((first + token) * s.columns + column));
      auto left = Pack<float, kRanks>::load(shared + token * kRanks);
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        float v = to_float(run.v[j]);
#pragma unroll
        for (int rank = 0; rank < kRanks; ++rank) sums[rank][j] += left.v[rank] * v;
      }
    }
  }
  __syncthreads();
  // Two token lanes share a warp; the eight warps meet in shared memory.
  constexpr int kWarps = kSumThreads / kWarp;
  float(*found)[kRanks][kSumColumns] = reinterpret_cast<float(*)[kRanks][kSumColumns]>(shared);
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      float sum = sums[rank][j] + __shfl_xor_sync(~0u, sums[rank][j], kSideBySide);
      if (threadIdx.x % kWarp < kSideBySide) found[threadIdx.x / kWarp][rank][side * kRun + j] = sum;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRanks * kSumColumns; i += kSumThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += (&found[warp][0][0])[i];
    (&found[0][0][0])[i] = sum;
  }
  cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  // A block adds up its share of ranks and columns over the cluster.
  constexpr int kShare = kRanks * kSumColumns / kCluster;
  float scale = s.scale * s.dropout.keep;
  for (int i = threadIdx.x; i < kShare; i += kSumThreads) {
    int at = static_cast<int>(cluster.block_rank()) * kShare + i;
    int rank = at / kSumColumns;
    int64_t to = first_column + at % kSumColumns;
    float sum = 0.0f;
#pragma unroll
    for (int other = 0; other < kCluster; ++other) sum += *cluster.map_shared_rank(&found[0][0][0] + at, other);
    if (rank < p.r && to < s.columns) s.d[rank * s.d_rank + to * s.d_column] += scale * sum;
  }
  cluster.sync();  // before a block ends, the others have read
}

template <typename T, int kRanks>
void launch_project(const ProjectArgs& args, FactorLayout layout, cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(ceil_div(args.m, kProjectRows * kProjectThreads / kWarp));
  auto kernel = layout == FactorLayout::kColumns ? project_kernel<T, kRanks, FactorLayout::kColumns>
                : layout == FactorLayout::kRanks ? project_kernel<T, kRanks, FactorLayout::kRanks>
                                                 : project_kernel<T, kRanks, FactorLayout::kAny>;
  kernel<<<blocks, kProjectThreads, 0, stream>>>(args);
}

template <typename T, int kRanks>
void launch_sums(const SumArgs& args, cudaStream_t stream) {
  int64_t columns = std::max(args.sums[0].columns, args.sums[1].columns);
  dim3 grid(kCluster, static_cast<unsigned>(ceil_div(columns, kSumColumns)), 2);
  size_t floats = std::max<int64_t>(args.tokens * kRanks, kSumThreads / kWarp * kRanks * kSumColumns);
  auto kernel = accumulate_kernel<T, kRanks>;
  allow_shared_memory(kernel, floats * sizeof(float), "lora: dA and dB");
  kernel<<<grid, kSumThreads, floats * sizeof(float), stream>>>(args);
}

// A block keeps its tokens of left in shared memory; two blocks share a multiprocessor's.
constexpr int64_t kMaxTokens = 3072;

}  // namespace

bool small_rank_projects(const pnb_tensor& x, int64_t rank) {
  return rank <= kSmallRank && rows_aligned(x) && x.shape[1] % kRun == 0;
}

void project_small_rank(const pnb_tensor& x, const pnb_tensor& factor, const pnb_dropout& dropout, float scale, const pnb_tensor& h,
                        cudaStream_t stream) {
  ProjectArgs args{x.data,         static_cast<const float*>(factor.data), static_cast<float*>(h.data), DropoutParams(dropout),
                   x.shape[0],     x.shape[1],                             x.stride[0],                 h.stride[0],
                   h.stride[1],    factor.stride[0],                       factor.stride[1],            static_cast<int>(factor.shape[0]),
                   scale};
  int ranks = args.r <= 4 ? 4 : kSmallRank;
  FactorLayout layout = FactorLayout::kAny;
  if (factor.stride[1] == 1 && rows_aligned(factor)) layout = FactorLayout::kColumns;
  else if (factor.stride[0] == 1 && args.r == ranks && factor.stride[1] % 4 == 0 && aligned(factor.data)) layout = FactorLayout::kRanks;
  with_type(x.dtype, [&](auto type) {
    using T = decltype(type);
    if (ranks == 4) launch_project<T, 4>(args, layout, stream);
    else launch_project<T, kSmallRank>(args, layout, stream);
  });
  check_launch("lora: h = x A^T");
}

bool small_rank_accumulates(const Accumulation (&sums)[2]) {
  bool fits = sums[0].d.shape[0] <= kSmallRank && ceil_div(sums[0].x.shape[0], kCluster) <= kMaxTokens;
  for (const Accumulation& s : sums) fits = fits && rows_aligned(s.x) && s.x.shape[1] % kRun == 0;
  return fits;
}

void accumulate_small_rank(const Accumulation (&accumulations)[2], cudaStream_t stream) {
  SumArgs args{};
  args.m = accumulations[0].x.shape[0];
  args.tokens = ceil_div(args.m, kCluster);
  args.r = static_cast<int>(accumulations[0].d.shape[0]);
  for (int k = 0; k < 2; ++k) {
    const Accumulation& a = accumulations[k];
    args.sums[k] = {a.x.data,       static_cast<const float*>(a.left.data), static_cast<float*>(a.d.data), DropoutParams(a.dropout),
                    a.x.shape[1],   a.x.stride[0],                          a.left.stride[0],              a.left.stride[1],
                    a.d.stride[0],  a.d.stride[1],                          a.scale};
  }
  with_type(accumulations[0].x.dtype, [&](auto type) {
    using T = decltype(type);
    if (args.r <= 4) launch_sums<T, 4>(args, stream);
    else launch_sums<T, kSmallRank>(args, stream);
  });
  check_launch("lora: dA and dB");
}

}  // namespace pnb::cuda::lora
