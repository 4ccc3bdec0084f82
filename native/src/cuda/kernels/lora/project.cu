#include <algorithm>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/lora/fragment.cuh"
#include "cuda/kernels/lora/passes.h"
#include "cuda/kernels/reduce.cuh"

// A block takes 32 rows of x; its warps share out the columns and add up what they found at the end. A lane's four products
// are neighbours in a row: it loads eight at a time and serves two products of the tensor cores with them.

namespace pnb::cuda::lora {

namespace {

constexpr int kWarps = 16;
constexpr int kRowTiles = 2;                 // of 16 rows: the factor is read and split once for both
constexpr int kRows = 16 * kRowTiles;
constexpr int kColumns = 4 * kRun;           // columns of a warp's step: four lanes' runs
constexpr int kMaxRankTiles = 8;             // of 8 ranks; more are another launch

struct Args {
  const void* x;
  const float* factor;
  float* h;
  DropoutParams dropout;
  Columns blocks;
  int64_t m, columns, width, x_stride, h_row, h_rank, factor_rank, factor_column;
  int r;
  float scale;
  bool factor_aligned;  // a lane's eight floats of the factor are neighbours, at a multiple of 16 bytes
};

// Of the neurons behind the first `columns` of x's columns.
__device__ void load_factor(const Args& p, int rank, int64_t list, int64_t column, int64_t columns, float (&v)[kRun]) {
  const float* row = p.factor + rank * p.factor_rank;
  int64_t neuron = column < columns ? p.blocks.neuron(list, column) : 0;
  if (rank < p.r && p.factor_aligned && column < columns) {
    auto run = Pack<float, kRun>::load(row + neuron);
#pragma unroll
    for (int i = 0; i < kRun; ++i) v[i] = run.v[i];
  } else {
#pragma unroll
    for (int i = 0; i < kRun; ++i) v[i] = rank < p.r && column + i < columns ? row[(neuron + i) * p.factor_column] : 0.0f;
  }
}

template <typename T, int kRankTiles, bool kAligned>
__global__ void __launch_bounds__(kWarps * kWarp) project_kernel(Args p) {
  int warp = threadIdx.x / kWarp;
  int group = threadIdx.x % kWarp / 4;
  int lane_run = threadIdx.x % 4 * kRun;
  int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  const T* x = static_cast<const T*>(p.x);
  bool drops = p.dropout.active();
  int64_t list = p.blocks.list_of(first_row);  // of all rows here: kRows divides the rows of a list
  int64_t columns = p.blocks.active(list, p.columns);

  float sums[kRowTiles][kRankTiles][4] = {};
#pragma unroll 2
  for (int64_t column = warp * kColumns + lane_run; column - lane_run < columns; column += kWarps * kColumns) {
    Pack<T, kRun> runs[kRowTiles][2];  // rows g and g + 8
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int64_t row = first_row + 16 * tile + 8 * half + group;
        runs[tile][half] = load_run<kAligned>(x + row * p.x_stride, column, row < p.m ? columns : 0);
      }
    }
    if (drops) {
      DropoutMask mask(p.dropout);
      int64_t neuron = column < columns ? p.blocks.neuron(list, column) : 0;
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int64_t row = first_row + 16 * tile + 8 * half + group;
          drop(runs[tile][half], mask, static_cast<uint64_t>(row * p.width + neuron));
        }
      }
    }
#pragma unroll
    for (int rank_tile = 0; rank_tile < kRankTiles; ++rank_tile) {
      float factor[kRun];
      load_factor(p, 8 * rank_tile + group, list, column, columns, factor);
#pragma unroll
      for (int from = 0; from < kRun; from += 4) {  // four of the eight serve one product
        uint32_t b[2][kFloatParts];
        split(factor[from], factor[from + 1], b[0]);
        split(factor[from + 2], factor[from + 3], b[1]);
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          uint32_t a[4][kParts<T>];
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const auto& run = runs[tile][k % 2];
            split(run.v[from + k / 2 * 2], run.v[from + k / 2 * 2 + 1], a[k]);
          }
#pragma unroll
          for (int i = 0; i < kParts<T>; ++i) {
#pragma unroll
            for (int j = 0; j < kFloatParts - i; ++j) {
              mma(sums[tile][rank_tile], {a[0][i], a[1][i], a[2][i], a[3][i]}, b[0][j], b[1][j]);
            }
          }
        }
      }
    }
  }

  __shared__ float shared[kWarps][kRows][8];
  float scale = p.scale * p.dropout.keep;
#pragma unroll
  for (int rank_tile = 0; rank_tile < kRankTiles; ++rank_tile) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        shared[warp][16 * tile + 8 * (k / 2) + group][2 * (threadIdx.x % 4) + k % 2] = sums[tile][rank_tile][k];
      }
    }
    __syncthreads();
    int row = threadIdx.x / 8;
    int rank = 8 * rank_tile + threadIdx.x % 8;
    if (row < kRows && first_row + row < p.m && rank < p.r) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) sum += shared[i][row][threadIdx.x % 8];
      p.h[(first_row + row) * p.h_row + rank * p.h_rank] = scale * sum;
    }
    __syncthreads();
  }
}

template <typename T, int kRankTiles>
void launch(const Args& args, bool aligned, cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(ceil_div(args.m, kRows));
  if (aligned) project_kernel<T, kRankTiles, true><<<blocks, kWarps * kWarp, 0, stream>>>(args);
  else project_kernel<T, kRankTiles, false><<<blocks, kWarps * kWarp, 0, stream>>>(args);
}

}  // namespace

void project(const Projection& p, cudaStream_t stream) {
  const pnb_tensor &x = p.x, &factor = p.factor, &h = p.h;
  if (x.shape[0] == 0) return;
  Args args{};
  args.x = x.data;
  args.dropout = DropoutParams(p.dropout);
  args.blocks = Columns(p.blocks);
  args.width = factor.shape[1];
  args.m = x.shape[0];
  args.columns = x.shape[1];
  args.x_stride = x.stride[0];
  args.h_row = h.stride[0];
  args.h_rank = h.stride[1];
  args.factor_rank = factor.stride[0];
  args.factor_column = factor.stride[1];
  args.scale = p.scale;
  bool x_aligned = rows_aligned(x) && args.columns % kRun == 0;
  args.factor_aligned = rows_aligned(factor) && factor.stride[1] == 1 && args.width % kRun == 0;
  for (int64_t rank = 0; rank < factor.shape[0]; rank += 8 * kMaxRankTiles) {
    args.factor = static_cast<const float*>(factor.data) + rank * args.factor_rank;
    args.h = static_cast<float*>(h.data) + rank * args.h_rank;
    args.r = static_cast<int>(std::min<int64_t>(factor.shape[0] - rank, 8 * kMaxRankTiles));
    with_type(x.dtype, [&](auto type) {
      using T = decltype(type);
      if (args.r <= 8) launch<T, 1>(args, x_aligned, stream);
      else if (args.r <= 16) launch<T, 2>(args, x_aligned, stream);
      else launch<T, kMaxRankTiles>(args, x_aligned, stream);
    });
    check_launch("lora: h = x A^T");
  }
}

}  // namespace pnb::cuda::lora
