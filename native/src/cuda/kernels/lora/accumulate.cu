#include <cooperative_groups.h>

#include <algorithm>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/lora/fragment.cuh"
#include "cuda/kernels/lora/passes.h"
#include "cuda/kernels/reduce.cuh"

// Sums over tokens. The eight blocks of a cluster share out the tokens of 128 columns and add up what they found in each
// other's shared memory, in a fixed order: no partial sums in device memory, no second launch, the same bits every time.
// A lane takes four tokens of eight neighbouring columns; column i of its eight belongs to the tensor cores' product i.

namespace pnb::cuda::lora {

namespace {

namespace cg = cooperative_groups;

constexpr int kCluster = 8;            // the largest that every device of the architecture runs
constexpr int kColumnWarps = 2;        // warps side by side
constexpr int kTokenWarps = 4;         // warps that share out a block's tokens
constexpr int kThreads = kColumnWarps * kTokenWarps * kWarp;
constexpr int kWarpColumns = 8 * kRun;
constexpr int kColumns = kColumnWarps * kWarpColumns;
constexpr int kTokens = 16;            // of a warp's step
constexpr int kMaxRankTiles = 4;       // of 16 ranks; more are another launch

struct Sum {
  const void* x;
  const float* left;
  float* d;
  DropoutParams dropout;
  Norm norm;
  Columns blocks;
  int64_t columns, width, x_stride, left_row, left_rank, d_rank, d_column;
  float scale;
};

struct Args {
  Sum sums[2];
  int64_t first, m;  // rows
  int64_t list;      // of these rows, where there are lists
  int64_t tokens;    // of a block; a multiple of what its warps take in one step
  int r;
};

template <typename T, int kRankTiles, bool kAligned>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads) accumulate_kernel(Args p) {
  const Sum& s = p.sums[blockIdx.z];
  int64_t first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
  int64_t columns = s.blocks.active(p.list, s.columns);
  if (first_column >= columns) return;  // the whole cluster does
  int warp = threadIdx.x / kWarp;
  int group = threadIdx.x % kWarp / 4;
  int lane = threadIdx.x % 4;
  int column_warp = warp % kColumnWarps;
  int token_warp = warp / kColumnWarps;
  int64_t column = first_column + column_warp * kWarpColumns + group * kRun;
  int64_t block_first = blockIdx.x * p.tokens;
  int64_t block_end = min(p.m, block_first + p.tokens);
  const T* x = static_cast<const T*>(s.x) + p.first * s.x_stride;
  const float* left = s.left + p.first * s.left_row;
  bool drops = s.dropout.active();

  float sums[kRankTiles][kRun][4] = {};
#pragma unroll 2
  for (int64_t first = block_first + token_warp * kTokens; first < block_end; first += kTokenWarps * kTokens) {
    int64_t token = first + 4 * lane;
    Pack<T, kRun> runs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      runs[i] = load_run<kAligned>(x + (token + i) * s.x_stride, column, token + i < block_end ? columns : 0);
    }
    if (s.norm.present()) {
      float gamma[kRun], beta[kRun];
#pragma unroll
      for (int n = 0; n < kRun; ++n) {
        bool inside = column + n < columns;
        gamma[n] = inside ? s.norm.gamma[column + n] : 0.0f, beta[n] = inside ? s.norm.beta[column + n] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (token + i < block_end) s.norm.apply(runs[i], p.first + token + i, gamma, beta);
      }
    }
    if (drops) {
      DropoutMask mask(s.dropout);
      int64_t neuron = column < columns ? s.blocks.neuron(p.list, column) : 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) drop(runs[i], mask, static_cast<uint64_t>((p.first + token + i) * s.width + neuron));
    }
    uint32_t a[kRankTiles][4][kFloatParts];
#pragma unroll
    for (int tile = 0; tile < kRankTiles; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        int rank = 16 * tile + 8 * (k % 2) + group;
        float v[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          int64_t row = token + k / 2 * 2 + i;
          v[i] = rank < p.r && row < block_end ? left[row * s.left_row + rank * s.left_rank] : 0.0f;
        }
        split(v[0], v[1], a[tile][k]);
      }
    }
#pragma unroll
    for (int n = 0; n < kRun; ++n) {
      uint32_t b[2][kParts<T>];
      split(runs[0].v[n], runs[1].v[n], b[0]);
      split(runs[2].v[n], runs[3].v[n], b[1]);
#pragma unroll
      for (int tile = 0; tile < kRankTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < kParts<T>; ++i) {
#pragma unroll
          for (int j = 0; j < kFloatParts - i; ++j) {
            mma(sums[tile][n], {a[tile][0][j], a[tile][1][j], a[tile][2][j], a[tile][3][j]}, b[0][i], b[1][i]);
          }
        }
      }
    }
  }

  __shared__ float shared[kTokenWarps][16][kColumns];
  cg::cluster_group cluster = cg::this_cluster();
  int block = static_cast<int>(cluster.block_rank());
  float scale = s.scale * s.dropout.keep;
#pragma unroll
  for (int tile = 0; tile < kRankTiles; ++tile) {
#pragma unroll
    for (int n = 0; n < kRun; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        int at = column_warp * kWarpColumns + (2 * lane + k % 2) * kRun + n;
        shared[token_warp][8 * (k / 2) + group][at] = sums[tile][n][k];
      }
    }
    cluster.sync();
    // A block adds up its share of the columns.
    constexpr int kShare = kColumns / kCluster;
    int rank = threadIdx.x / kShare;
    int at = block * kShare + threadIdx.x % kShare;
    static_assert(kThreads == 16 * kShare);
    if (16 * tile + rank < p.r && first_column + at < columns) {
      float sum = 0.0f;
#pragma unroll
      for (int other = 0; other < kCluster; ++other) {
        const float* found = cluster.map_shared_rank(&shared[0][rank][at], other);
#pragma unroll
        for (int i = 0; i < kTokenWarps; ++i) sum += found[i * 16 * kColumns];
      }
      s.d[(16 * tile + rank) * s.d_rank + s.blocks.neuron(p.list, first_column + at) * s.d_column] += scale * sum;
    }
    cluster.sync();  // before a block ends or writes again, the others have read
  }
}

template <typename T, int kRankTiles>
void launch(const Args& args, int count, bool aligned, cudaStream_t stream) {
  int64_t columns = std::max(args.sums[0].columns, args.sums[count - 1].columns);
  dim3 grid(kCluster, static_cast<unsigned>(ceil_div(columns, kColumns)), static_cast<unsigned>(count));
  if (aligned) accumulate_kernel<T, kRankTiles, true><<<grid, kThreads, 0, stream>>>(args);
  else accumulate_kernel<T, kRankTiles, false><<<grid, kThreads, 0, stream>>>(args);
}

// One or two sums over args' rows; columns of all of them are whole vectors where `aligned` says so.
void accumulate_rows(Args args, const Accumulation* accumulations, int count, bool aligned, cudaStream_t stream) {
  args.tokens = round_up(ceil_div(args.m, kCluster), kTokenWarps * kTokens);
  for (int k = 0; k < count; ++k) {
    const Accumulation& a = accumulations[k];
    Sum& s = args.sums[k];
    s.x = a.x.data;
    s.dropout = DropoutParams(a.dropout);
    s.norm = Norm(a.norm);
    s.blocks = Columns(a.blocks);
    s.columns = a.x.shape[1];
    s.width = a.d.shape[1];
    s.x_stride = a.x.stride[0];
    s.left_row = a.left.stride[0];
    s.left_rank = a.left.stride[1];
    s.d_rank = a.d.stride[0];
    s.d_column = a.d.stride[1];
    s.scale = a.scale;
  }
  int64_t ranks = accumulations[0].d.shape[0];
  if (std::max(args.sums[0].columns, args.sums[count - 1].columns) == 0) return;
  for (int64_t rank = 0; rank < ranks; rank += 16 * kMaxRankTiles) {
    for (int k = 0; k < count; ++k) {
      args.sums[k].left = static_cast<const float*>(accumulations[k].left.data) + rank * args.sums[k].left_rank;
      args.sums[k].d = static_cast<float*>(accumulations[k].d.data) + rank * args.sums[k].d_rank;
    }
    args.r = static_cast<int>(std::min<int64_t>(ranks - rank, 16 * kMaxRankTiles));
    with_type(accumulations[0].x.dtype, [&](auto type) {
      using T = decltype(type);
      if (args.r <= 16) launch<T, 1>(args, count, aligned, stream);
      else if (args.r <= 32) launch<T, 2>(args, count, aligned, stream);
      else launch<T, kMaxRankTiles>(args, count, aligned, stream);
    });
    check_launch("lora: dA and dB");
  }
}

}  // namespace

void accumulate(const Accumulation (&accumulations)[2], cudaStream_t stream) {
  int64_t m = accumulations[0].x.shape[0];
  if (m == 0) return;
  bool aligned = true, listed = false;
  for (const Accumulation& a : accumulations) {
    aligned = aligned && rows_aligned(a.x) && a.x.shape[1] % kRun == 0;
    listed = listed || present(a.blocks.indices);
  }
  if (!listed) {
    Args args{};
    args.m = m;
    return accumulate_rows(args, accumulations, 2, aligned, stream);
  }
  // A launch for each list: blocks that several lists name are added to by one after the other.
  for (const Accumulation& a : accumulations) {
    int64_t rows = present(a.blocks.indices) ? a.blocks.rows_per_list : m;
    for (int64_t first = 0, list = 0; first < m; first += rows, ++list) {
      Args args{};
      args.first = first;
      args.m = std::min(rows, m - first);
      args.list = list;
      accumulate_rows(args, &a, 1, aligned, stream);
    }
  }
}

}  // namespace pnb::cuda::lora
