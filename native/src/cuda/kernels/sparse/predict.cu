#include <algorithm>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/sparse/sparse.h"

// Two small kernels. The first makes z = pooled * a^T: a cluster takes sixteen pooled rows and thirty-two ranks, its blocks share
// out the columns. The second takes a few units over all pooled rows of a list, so that nothing is added up across blocks.

namespace pnb::cuda {

namespace {

namespace cg = cooperative_groups;

constexpr int kTileRows = 16;
constexpr int kTileRanks = 32;
constexpr int kTileColumns = 256;              // of a step
constexpr int kTilePitch = kTileColumns + 4;   // eight rows' vectors lie in different banks
constexpr int kTileWarps = 8;
constexpr int kTileThreads = kTileWarps * kWarp;
constexpr int kTileSums = kTileRows * kTileRanks;

struct Low {
  const float* pooled;
  const float* a;
  float* z;  // [rows, r]
  int64_t rows, h, pooled_stride;
  int64_t share;  // columns of a block, a multiple of four
  int r;
};

struct Tile {
  float pooled[kTileRows][kTilePitch];
  float a[kTileRanks][kTilePitch];
};

// All of a thread's loads are on their way before the first is stored.
template <int kRows, bool kAligned>
__device__ void load_rows(float (*to)[kTilePitch], const float* from, int64_t stride, int64_t present_rows, int64_t columns) {
  if constexpr (kAligned) {
    constexpr int kLoads = kRows * (kTileColumns / 4) / kTileThreads;
    float4 v[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      int i = k * kTileThreads + threadIdx.x;
      int row = i / (kTileColumns / 4), column = i % (kTileColumns / 4) * 4;
      v[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (row < present_rows && column < columns) v[k] = *reinterpret_cast<const float4*>(from + row * stride + column);
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      int i = k * kTileThreads + threadIdx.x;
      *reinterpret_cast<float4*>(&to[i / (kTileColumns / 4)][i % (kTileColumns / 4) * 4]) = v[k];
    }
  } else {
    for (int i = threadIdx.x; i < kRows * kTileColumns; i += kTileThreads) {
      int row = i / kTileColumns, column = i % kTileColumns;
      to[row][column] = row < present_rows && column < columns ? from[row * stride + column] : 0.0f;
    }
  }
}

template <bool kAligned>
__global__ void __launch_bounds__(kTileThreads) low_rank_kernel(Low p) {
  extern __shared__ __align__(16) char memory[];
  Tile& tile = *reinterpret_cast<Tile*>(memory);
  let_next_begin();
  after_previous();
  int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTileRows;
  int first_rank = static_cast<int>(blockIdx.z) * kTileRanks;
  int64_t end = min(p.h, (blockIdx.x + 1) * p.share);
  int warp = threadIdx.x / kWarp;
  int row_lane = threadIdx.x % kWarp / 8;   // rows row_lane + 4 i
  int rank_lane = threadIdx.x % 8;          // ranks rank_lane + 8 i
  float sums[4][4] = {};
  for (int64_t column = blockIdx.x * p.share; column < end; column += kTileColumns) {
    __syncthreads();
    load_rows<kTileRanks, kAligned>(tile.a, p.a + first_rank * p.h + column, p.h, p.r - first_rank, end - column);
    load_rows<kTileRows, kAligned>(tile.pooled, p.pooled + first_row * p.pooled_stride + column, p.pooled_stride, p.rows - first_row, end - column);
    __syncthreads();
    constexpr int kWarpColumns = kTileColumns / kTileWarps;
#pragma unroll 2
    for (int k = 0; k < kWarpColumns; k += 4) {
      float4 left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = *reinterpret_cast<const float4*>(&tile.pooled[row_lane + 4 * i][warp * kWarpColumns + k]);
        right[i] = *reinterpret_cast<const float4*>(&tile.a[rank_lane + 8 * i][warp * kWarpColumns + k]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[i][j] += left[i].x * right[j].x + left[i].y * right[j].y + left[i].z * right[j].z + left[i].w * right[j].w;
        }
      }
    }
  }
  __syncthreads();
  float(*parts)[kTileRows][kTileRanks] = reinterpret_cast<float(*)[kTileRows][kTileRanks]>(memory);  // of the warps
  static_assert(sizeof(float) * (kTileWarps + 1) * kTileSums <= sizeof(Tile));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) parts[warp][row_lane + 4 * i][rank_lane + 8 * j] = sums[i][j];
  }
  __syncthreads();
  float* found = &parts[kTileWarps][0][0];
  for (int i = threadIdx.x; i < kTileSums; i += kTileThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kTileWarps; ++k) sum += (&parts[k][0][0])[i];
    found[i] = sum;
  }
  cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  int blocks = static_cast<int>(cluster.num_blocks());
  for (int i = static_cast<int>(cluster.block_rank()) * kTileThreads + threadIdx.x; i < kTileSums; i += blocks * kTileThreads) {
    float parts_of[kMaxCluster];
#pragma unroll
    for (int other = 0; other < kMaxCluster; ++other) parts_of[other] = other < blocks ? *cluster.map_shared_rank(found + i, other) : 0.0f;
    float sum = 0.0f;
#pragma unroll
    for (float part : parts_of) sum += part;
    int64_t row = first_row + i / kTileRanks;
    int rank = first_rank + i % kTileRanks;
    if (row < p.rows && rank < p.r) p.z[row * p.r + rank] = sum;
  }
  cluster.sync();  // before a block ends, the others have read
}

struct Units {
  const float* z;  // [rows, r]
  const float* b;
  const float* bias;   // or NULL
  const float* norms;  // or NULL
  float* scores;
  int64_t rows, rows_per_list, units, scores_per_list;
  int r, units_per_score, scores_per_block;
  bool vectors;  // rows of z and b are whole 16-byte vectors
};

// Lanes side by side take kLanes units, the others of a warp and all warps share out the pooled rows.
template <int kLanes, int kThreads>
__global__ void __launch_bounds__(kThreads) units_kernel(Units p) {
  constexpr int kRowLanes = kThreads / kLanes;
  constexpr int kWarps = kThreads / kWarp;
  constexpr int kRowStep = kLanes == 1 ? 1 : 2;  // pooled rows that a thread works on at a time
  static_assert(kLanes <= kWarps && kWarps <= kWarp);
  __shared__ float found[kWarps][kLanes];
  __shared__ float units[kLanes];
  int lane = threadIdx.x % kWarp;
  int warp = threadIdx.x / kWarp;
  int row_lane = threadIdx.x / kLanes;
  int64_t first_row = blockIdx.y * p.rows_per_list;
  int64_t end_row = min(p.rows, first_row + p.rows_per_list);
  int64_t first_score = static_cast<int64_t>(blockIdx.x) * p.scores_per_block;
  int here = static_cast<int>(min(static_cast<int64_t>(p.scores_per_block), p.scores_per_list - first_score));
  int64_t first_unit = first_score * p.units_per_score;
  int64_t end_unit = first_unit + static_cast<int64_t>(here) * p.units_per_score;
  float score = 0.0f;  // of thread i < here: score i of the block
  let_next_begin();
  after_previous();
  for (int64_t from = first_unit; from < end_unit; from += kLanes) {
    int64_t unit = min(from + lane % kLanes, end_unit - 1);
    const float* b = p.b + unit * p.r;
    float bias = p.bias == nullptr ? 0.0f : p.bias[unit];
    float norm = p.norms == nullptr || from + warp >= end_unit ? 1.0f : p.norms[from + warp];  // for the end, by then it has come
    float sum = 0.0f;
    for (int64_t row = first_row + row_lane; row < end_row; row += kRowStep * kRowLanes) {
      const float* z[kRowStep];
      float values[kRowStep];
#pragma unroll
      for (int i = 0; i < kRowStep; ++i) {
        z[i] = p.z + min(row + i * kRowLanes, end_row - 1) * p.r;
        values[i] = bias;
      }
      int rank = 0;
      if (p.vectors) {
#pragma unroll 4
        for (; rank < p.r; rank += 4) {
          float4 right = *reinterpret_cast<const float4*>(b + rank);
#pragma unroll
          for (int i = 0; i < kRowStep; ++i) {
            float4 left = *reinterpret_cast<const float4*>(z[i] + rank);
            values[i] += left.x * right.x + left.y * right.y + left.z * right.z + left.w * right.w;
          }
        }
      } else {
        for (; rank < p.r; ++rank) {
#pragma unroll
          for (int i = 0; i < kRowStep; ++i) values[i] += z[i][rank] * b[rank];
        }
      }
#pragma unroll
      for (int i = 0; i < kRowStep; ++i) {
        if (row + i * kRowLanes < end_row) sum += fmaxf(values[i], 0.0f);
      }
    }
#pragma unroll
    for (int mask = kLanes; mask < kWarp; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
    __syncthreads();
    if (lane < kLanes) found[warp][lane] = sum;
    __syncthreads();
    if (warp < kLanes) {
      float total = warp_combine(lane < kWarps ? found[lane][warp] : 0.0f, [](float x, float y) { return x + y; });
      if (lane == 0) units[warp] = total * norm;
    }
    __syncthreads();
    if (threadIdx.x < here) {
      int64_t first = max(from, first_unit + static_cast<int64_t>(threadIdx.x) * p.units_per_score);
      int64_t end = min(from + kLanes, first_unit + static_cast<int64_t>(threadIdx.x + 1) * p.units_per_score);
      for (int64_t i = first; i < end; ++i) score += units[i - from];
    }
  }
  if (threadIdx.x < here) p.scores[blockIdx.y * p.scores_per_list + first_score + threadIdx.x] = score;
}

}  // namespace

uint64_t predict_mass_workspace(const pnb_predict_mass_params& p) { return p.pooled.shape[0] * p.a.shape[0] * sizeof(float); }

void predict_mass(const Device& device, const pnb_predict_mass_params& p) {
  int64_t rows = p.pooled.shape[0];
  if (rows == 0) return;
  cudaStream_t stream = stream_of(p.stream);
  Low low{static_cast<const float*>(p.pooled.data),
          static_cast<const float*>(p.a.data),
          static_cast<float*>(p.workspace.data),
          rows,
          p.pooled.shape[1],
          p.pooled.stride[0],
          0,
          static_cast<int>(p.a.shape[0])};
  int64_t row_tiles = ceil_div(rows, kTileRows), rank_tiles = ceil_div(low.r, kTileRanks);
  int cluster = cluster_for(row_tiles * rank_tiles, std::min<int64_t>(device.multiprocessors, row_tiles * rank_tiles * ceil_div(low.h, kTileColumns)));
  low.share = round_up(ceil_div(low.h, cluster), 4);
  auto kernel = rows_aligned(p.pooled) && rows_aligned(p.a) && low.h % 4 == 0 ? low_rank_kernel<true> : low_rank_kernel<false>;
  allow_shared_memory(kernel, sizeof(Tile), "predict_mass");
  dim3 tiles(static_cast<unsigned>(cluster), static_cast<unsigned>(row_tiles), static_cast<unsigned>(rank_tiles));
  launch(kernel, {tiles, kTileThreads, sizeof(Tile), stream, cluster, true}, "predict_mass", low);

  Units units{low.z,
              static_cast<const float*>(p.b.data),
              static_cast<const float*>(p.bias.data),
              static_cast<const float*>(p.norms.data),
              static_cast<float*>(p.scores.data),
              rows,
              p.pooled_per_list,
              p.b.shape[0],
              p.b.shape[0] / p.units_per_score,
              low.r,
              p.units_per_score,
              1,
              low.r % 4 == 0 && aligned(p.b.data)};
  if (units.units == 0) return;
  int64_t lists = ceil_div(rows, p.pooled_per_list);
  // Few units of many rows are a small block each, so that they spread over the device; few rows need no large ones.
  struct Form {
    void (*kernel)(Units);
    int lanes, threads;
  };
  bool few = units.units * lists <= 32 * device.multiprocessors;
  bool single = p.units_per_score == 1 && p.pooled_per_list >= 128 && units.units * lists <= 4 * device.multiprocessors;
  Form form = single                          ? Form{units_kernel<1, 256>, 1, 256}
              : few && p.pooled_per_list <= 64 ? Form{units_kernel<8, 256>, 8, 256}
              : few                            ? Form{units_kernel<8, 1024>, 8, 1024}
                                               : Form{units_kernel<32, 1024>, 32, 1024};
  units.scores_per_block = std::max(1, form.lanes / p.units_per_score);
  dim3 grid(static_cast<unsigned>(ceil_div(units.scores_per_list, units.scores_per_block)), static_cast<unsigned>(lists));
  launch(form.kernel, {grid, form.threads, 0, stream, 1, true}, "predict_mass: units", units);
}

}  // namespace pnb::cuda
