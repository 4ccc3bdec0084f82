#include <algorithm>
#include <atomic>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/sparse/sparse.h"

// One kernel. A cluster takes sixteen pooled rows of a list: its blocks share out the columns of z = pooled * a^T, add up what
// they found in each other's shared memory, and share out the scores. What several clusters find of a list is added up by the
// last of them that comes there, in the order of the rows.

namespace pnb::cuda {

namespace {

namespace cg = cooperative_groups;

constexpr int kTileRows = 16;
constexpr int kTileRanks = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kSliceColumns = 32;               // of a warp and step
constexpr int kStepColumns = kWarps * kSliceColumns;
constexpr int kSlicePitch = kSliceColumns + 4;  // eight rows' vectors lie in different banks
constexpr int kMostRanks = 128;
constexpr int kZPitch = kMostRanks + 4;
constexpr int kUnitLanes = 4;                   // of a warp, side by side; the others share out the rows
constexpr int kRowLanes = kWarp / kUnitLanes;
constexpr int kLaneRows = kTileRows / kRowLanes;

struct Predict {
  const float* pooled;
  const float* a;
  const float* b;
  const float* bias;   // or NULL
  const float* norms;  // or NULL
  float* scores;       // [lists, scores_per_list]
  float* parts;        // [lists, tiles, scores_per_list], where there are several tiles
  uint64_t* arrived;   // [lists, blocks of a cluster, tiles]: `ticket` where a part is complete
  uint64_t ticket;
  int64_t rows, h, pooled_stride, rows_per_list, scores_per_list;
  int64_t share;            // columns of a block, a multiple of four
  int64_t scores_per_block;
  int r, units_per_score;
  int tiles;                // clusters of a list
  bool vectors;             // rows of b are whole 16-byte vectors
};

// Of a warp, which nobody else reads until they hold its sums.
union Slice {
  struct {
    float pooled[kTileRows][kSlicePitch];
    float a[kTileRanks][kSlicePitch];
  } in;
  float sums[kTileRows][kTileRanks];
};

struct Shared {
  Slice slices[kWarps];
  float found[kTileRows][kTileRanks];  // of the block's columns
  float z[kTileRows][kZPitch];
  bool last;
};

// A warp's slice of so many rows; a missing element is 0.
template <int kRows, bool kAligned>
__device__ void load_rows(float (*to)[kSlicePitch], const float* from, int64_t stride, int64_t present_rows, int64_t columns) {
  int lane = threadIdx.x % kWarp;
  if constexpr (kAligned) {
    constexpr int kVectors = kSliceColumns / 4;
#pragma unroll
    for (int k = 0; k < kRows * kVectors / kWarp; ++k) {
      int row = (k * kWarp + lane) / kVectors, column = lane % kVectors * 4;
      bool inside = row < present_rows && column < columns;
      asm volatile(
          "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(&to[row][column]))),
          "l"(inside ? from + row * stride + column : from), "r"(inside ? 16 : 0)
          : "memory");
    }
  } else {
    for (int row = 0; row < kRows; ++row) to[row][lane] = row < present_rows && lane < columns ? from[row * stride + lane] : 0.0f;
  }
}

// z of some rows and ranks [rank, rank + 32), in the shared memory of each of the cluster's blocks.
template <bool kAligned>
__device__ void low_rank(const Predict& p, Shared& shared, cg::cluster_group& cluster, int64_t row, int64_t rows, int rank) {
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int row_lane = lane / 8;   // rows row_lane + 4 i
  int rank_lane = lane % 8;  // ranks rank_lane + 8 i
  int64_t first = cluster.block_rank() * p.share, end = min(p.h, first + p.share);
  Slice& slice = shared.slices[warp];
  float sums[4][4] = {};
  for (int64_t column = first + warp * kSliceColumns; column < end; column += kStepColumns) {
    __syncwarp();
    load_rows<kTileRanks, kAligned>(slice.in.a, p.a + rank * p.h + column, p.h, p.r - rank, end - column);
    load_rows<kTileRows, kAligned>(slice.in.pooled, p.pooled + min(row, p.rows - 1) * p.pooled_stride + column, p.pooled_stride,
                                   rows, end - column);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();
#pragma unroll 1
    for (int k = 0; k < kSliceColumns; k += 4) {
      float4 left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = *reinterpret_cast<const float4*>(&slice.in.pooled[row_lane + 4 * i][k]);
        right[i] = *reinterpret_cast<const float4*>(&slice.in.a[rank_lane + 8 * i][k]);
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
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) slice.sums[row_lane + 4 * i][rank_lane + 8 * j] = sums[i][j];
  }
  __syncthreads();
  static_assert(kTileRows * kTileRanks == 2 * kThreads, "a thread adds up two neighbours");
  int at_row = 2 * threadIdx.x / kTileRanks, at_rank = 2 * threadIdx.x % kTileRanks;
  auto two = [&](float (&of)[kTileRows][kTileRanks]) { return reinterpret_cast<float2*>(&of[at_row][at_rank]); };
  float2 sum = {};
#pragma unroll
  for (Slice& other : shared.slices) sum = sum + *two(other.sums);
  *two(shared.found) = sum;
  cluster.sync();
  float2 parts[kMaxCluster];
#pragma unroll
  for (int other = 0; other < kMaxCluster; ++other) {
    parts[other] = other < static_cast<int>(cluster.num_blocks()) ? *cluster.map_shared_rank(two(shared.found), other) : float2{};
  }
  sum = {};
#pragma unroll
  for (float2 part : parts) sum = sum + part;
  *reinterpret_cast<float2*>(&shared.z[at_row][rank + at_rank]) = sum;
  cluster.barrier_arrive();  // whoever writes `found` again, or ends, waits for all to have read
  __syncthreads();
}

// The sum of a unit's values over this lane's rows.
__device__ inline float unit_sum(const Predict& p, const Shared& shared, int64_t unit, int row_lane, int64_t rows) {
  const float* b = p.b + unit * p.r;
  float bias = p.bias == nullptr ? 0.0f : p.bias[unit];
  float values[kLaneRows];
#pragma unroll
  for (float& value : values) value = bias;
  int rank = 0;
  if (p.vectors) {
#pragma unroll 4
    for (; rank < p.r; rank += 4) {
      float4 right = *reinterpret_cast<const float4*>(b + rank);
#pragma unroll
      for (int i = 0; i < kLaneRows; ++i) {
        float4 left = *reinterpret_cast<const float4*>(&shared.z[row_lane + i * kRowLanes][rank]);
        values[i] += left.x * right.x + left.y * right.y + left.z * right.z + left.w * right.w;
      }
    }
  } else {
    for (; rank < p.r; ++rank) {
#pragma unroll
      for (int i = 0; i < kLaneRows; ++i) values[i] += shared.z[row_lane + i * kRowLanes][rank] * b[rank];
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneRows; ++i) {
    if (row_lane + i * kRowLanes < rows) sum += fmaxf(values[i], 0.0f);
  }
  return p.norms == nullptr ? sum : sum * p.norms[unit];
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads, 2) predict_kernel(Predict p) {
  extern __shared__ __align__(16) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  cg::cluster_group cluster = cg::this_cluster();
  let_next_begin();
  after_previous();
  int rank = static_cast<int>(cluster.block_rank()), blocks = static_cast<int>(cluster.num_blocks());
  int64_t group = blockIdx.x / blocks, list = group / p.tiles;
  int tile = static_cast<int>(group % p.tiles);
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, unit_lane = lane % kUnitLanes, row_lane = lane / kUnitLanes;
  int64_t end_row = min(p.rows, (list + 1) * p.rows_per_list);
  int64_t first_score = rank * p.scores_per_block, end_score = min(p.scores_per_list, first_score + p.scores_per_block);
  bool single = p.units_per_score == 1;  // then a warp takes four scores side by side, else one
  int together = single ? kUnitLanes : 1;
  float* to = (p.tiles == 1 ? p.scores + list * p.scores_per_list : p.parts + group * p.scores_per_list);
  bool first = true;
  int64_t row = list * p.rows_per_list + static_cast<int64_t>(tile) * kTileRows;
  do {  // once at least: a last list that is short has no rows for some clusters, whose part is 0
    for (int from = 0; from < p.r; from += kTileRanks) {
      if (!first || from > 0) cluster.barrier_wait();
      low_rank<kAligned>(p, shared, cluster, row, end_row - row, from);
    }
    for (int64_t score = first_score + warp * together; score < end_score; score += kWarps * together) {
      int64_t own = min(score + (single ? unit_lane : 0), end_score - 1);
      float sum = 0.0f;
      for (int unit = single ? 0 : unit_lane; unit < p.units_per_score; unit += kUnitLanes) {
        sum += unit_sum(p, shared, own * p.units_per_score + unit, row_lane, end_row - row);
      }
      for (int mask = single ? kUnitLanes : 1; mask < kWarp; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
      if (lane < together && score + lane < end_score) to[score + lane] = first ? sum : to[score + lane] + sum;
    }
    first = false;
    row += static_cast<int64_t>(p.tiles) * kTileRows;
  } while (row < end_row);
  if (p.tiles > 1) {
    __syncthreads();
    uint64_t* arrived = p.arrived + (list * blocks + rank) * p.tiles;
    if (warp == 0) {
      if (lane == 0) {
        __threadfence();
        *const_cast<volatile uint64_t*>(arrived + tile) = p.ticket;
        __threadfence();
      }
      __syncwarp();
      bool all = true;
      for (int other = lane; other < p.tiles; other += kWarp) all &= *const_cast<volatile uint64_t*>(arrived + other) == p.ticket;
      all = __all_sync(~0u, all);
      if (lane == 0) shared.last = all;
    }
    __syncthreads();
    // Two may both see that all have come; they add up the same.
    if (shared.last) {
      __threadfence();
      for (int64_t score = first_score + threadIdx.x; score < end_score; score += kThreads) {
        const float* part = p.parts + list * p.tiles * p.scores_per_list + score;
        float sum = 0.0f;
#pragma unroll 16
        for (int other = 0; other < p.tiles; ++other) sum += __ldcg(part + other * p.scores_per_list);
        p.scores[list * p.scores_per_list + score] = sum;
      }
      // A graph that is launched again has the same ticket.
      for (int other = threadIdx.x; other < p.tiles; other += kThreads) arrived[other] = 0;
    }
  }
  cluster.barrier_wait();
}

struct Plan {
  int64_t lists, scores;  // scores of a list
  int tiles;              // likewise: clusters

  explicit Plan(const pnb_predict_mass_params& p) {
    lists = ceil_div(p.pooled.shape[0], p.pooled_per_list);
    scores = p.b.shape[0] / p.units_per_score;
    tiles = static_cast<int>(ceil_div(std::min(p.pooled.shape[0], p.pooled_per_list), kTileRows));
  }
  int64_t part_bytes() const { return round_up(lists * tiles * scores * static_cast<int64_t>(sizeof(float)), sizeof(uint64_t)); }
  int64_t bytes() const {
    return tiles == 1 ? 0 : part_bytes() + lists * kMaxCluster * tiles * static_cast<int64_t>(sizeof(uint64_t));
  }
};

// What no memory holds by chance, another one at each call.
uint64_t next_ticket() {
  static std::atomic<uint64_t> calls{0};
  uint64_t x = ++calls * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

}  // namespace

uint64_t predict_mass_workspace(const pnb_predict_mass_params& p) { return Plan(p).bytes(); }

void predict_mass(const Device& device, const pnb_predict_mass_params& p) {
  Plan plan(p);
  if (plan.lists == 0 || plan.scores == 0) return;
  int64_t h = p.pooled.shape[1], groups = plan.lists * plan.tiles;
  int cluster = cluster_for(groups, std::min<int64_t>(device.multiprocessors, groups * ceil_div(h, kStepColumns)));
  Predict args{static_cast<const float*>(p.pooled.data),
               static_cast<const float*>(p.a.data),
               static_cast<const float*>(p.b.data),
               static_cast<const float*>(p.bias.data),
               static_cast<const float*>(p.norms.data),
               static_cast<float*>(p.scores.data),
               static_cast<float*>(p.workspace.data),
               reinterpret_cast<uint64_t*>(static_cast<char*>(p.workspace.data) + plan.part_bytes()),
               next_ticket(),
               p.pooled.shape[0],
               h,
               p.pooled.stride[0],
               p.pooled_per_list,
               plan.scores,
               round_up(ceil_div(h, cluster), 4),
               ceil_div(plan.scores, cluster),
               static_cast<int>(p.a.shape[0]),
               p.units_per_score,
               plan.tiles,
               p.a.shape[0] % 4 == 0 && aligned(p.b.data)};
  auto kernel = rows_aligned(p.pooled) && rows_aligned(p.a) && h % 4 == 0 ? predict_kernel<true> : predict_kernel<false>;
  allow_shared_memory(kernel, sizeof(Shared), "predict_mass");
  dim3 grid(static_cast<unsigned>(groups * cluster));
  launch(kernel, {grid, kThreads, sizeof(Shared), stream_of(p.stream), cluster, true}, "predict_mass", args);
}

}  // namespace pnb::cuda
