#include <algorithm>
#include <atomic>

#include "cuda/kernels/cluster.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/sparse/sparse.h"

// One kernel. A cluster takes sixteen pooled rows of a list: its blocks share out the columns of z = pooled * a^T, send each
// other what they found, and share out the scores. What several clusters find of a list is added up by the last one, in an order
// that is always the same. Both products are the tensor cores', of floats in two parts that tf32 holds. The predictor itself,
// which no kernel writes, is fetched while the kernel before still ends.

namespace pnb::cuda {

namespace {

namespace cg = cooperative_groups;

constexpr int kRowTiles = 2;  // of a cluster, each the tensor cores' eight rows
constexpr int kTileRows = 8 * kRowTiles;
constexpr int kTileRanks = 32;
constexpr int kUnits = 16;  // the tensor cores' sixteen
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kChunk = 16;  // columns: four of each of a quad's lanes, 64 bytes of a row
constexpr int kChunks = 4;  // of a warp, on their way at once: clusters of four take h 2048 in one go
constexpr int kBlockColumns = kWarps * kChunks * kChunk;
constexpr int kMostRanks = 128;
constexpr int kSumPitch = kTileRanks + 4;  // what a warp's lanes store lies in different banks
constexpr int kZPitch = kMostRanks + 16;   // and what two rows' quads read
constexpr int kGatherScores = 64;
constexpr int kGatherGroups = kThreads / kGatherScores;
constexpr int kGatherParts = 16 / kGatherGroups;  // of a thread, on their way at once

// What a cluster found of a score. It is written and read as a whole, and is there when it bears the launch's ticket.
struct alignas(16) Part {
  float value;
  uint32_t unused;
  uint64_t ticket;
};

struct Predict {
  const float* pooled;
  const float* a;
  const float* b;
  const float* bias;   // or NULL
  const float* norms;  // or NULL
  float* scores;       // [lists, scores_per_list]
  Part* parts;         // [lists, tiles, scores_per_list], where there are several tiles
  uint64_t ticket;
  int64_t rows, pooled_stride, rows_per_list;
  int scores_per_list, scores_per_block;
  int h;
  int share;  // columns of a block, whole chunks
  int r, units_per_score;
  int tiles;  // clusters of a list
};

struct Shared {
  Barrier arrived;  // all of `found`
  union {
    alignas(16) float sums[kWarps][kTileRows][kSumPitch];  // of a warp's columns
    float gathered[kGatherGroups][kGatherScores];
  };
  alignas(16) float z[kTileRows][kZPitch];
  // By each block of the cluster; for as many ranks as there are.
  alignas(16) float found[kMostRanks / kTileRanks][kMaxCluster][kTileRows][kTileRanks];

  static constexpr size_t bytes(int rank_tiles) {
    return sizeof(Shared) - (kMostRanks / kTileRanks - rank_tiles) * sizeof(found[0]);
  }
};

// `there` of four neighbours; a missing one is 0.
template <bool kAligned>
__device__ inline float4 load_four(const float* from, int there) {
  float4 v{};
  if constexpr (kAligned) {
    if (there > 0) v = *reinterpret_cast<const float4*>(from);
  } else {
    if (there > 0) v.x = from[0];
    if (there > 1) v.y = from[1];
    if (there > 2) v.z = from[2];
    if (there > 3) v.w = from[3];
  }
  return v;
}

// A float as two that tf32 holds, but for 2^-22 of it.
struct Split {
  uint32_t high, low;
  __device__ explicit Split(float v) {
    constexpr uint32_t kMask = 0xffffe000u;
    high = __float_as_uint(v) & kMask;
    low = __float_as_uint(v - __uint_as_float(high)) & kMask;
  }
};

__device__ inline void multiply_tf32(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                     uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Sixteen rows by eight: those of lane / 4 and lane / 4 + 8, by 2 (lane % 4) and the next. Two sums, so that a product does not
// wait for the one before.
struct Products {
  float high[4], low[4];

  __device__ float operator[](int i) const { return high[i] + low[i]; }

  // Adds rows times rows, over a chunk of sixteen columns of which a lane has four of one's rows lane / 4 and lane / 4 + 8, and
  // of the other's row lane / 4. Which columns these are does not matter, as long as they are the same ones.
  __device__ void add(const float4& upper, const float4& lower, const float4& right) {
    add(upper.x, lower.x, upper.y, lower.y, right.x, right.y);
    add(upper.z, lower.z, upper.w, lower.w, right.z, right.w);
  }

 private:
  __device__ void add(float v0, float v1, float v2, float v3, float w0, float w1) {
    Split a0(v0), a1(v1), a2(v2), a3(v3), b0(w0), b1(w1);
    multiply_tf32(high, a0.high, a1.high, a2.high, a3.high, b0.high, b1.high);
    multiply_tf32(low, a0.low, a1.low, a2.low, a3.low, b0.high, b1.high);
    multiply_tf32(low, a0.high, a1.high, a2.high, a3.high, b0.low, b1.low);
  }
};

// Sends the cluster's blocks what this one's columns give to z of `rows` rows from `row` on and ranks [rank, rank + 32).
template <bool kAligned>
__device__ void low_rank(const Predict& p, Shared& shared, int own, int blocks, int64_t row, int64_t rows, int rank) {
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, group = lane / 4, quad_lane = lane % 4;
  int first = own * p.share, end = min(p.h, first + p.share);
  const float* a = p.a + static_cast<int64_t>(rank + group) * p.h;
  const float* pooled = p.pooled + (row + group) * p.pooled_stride;
  Products sums[2][kRowTiles] = {};  // by sixteen ranks and eight rows
  bool waited = rank > 0;
  int from = first + warp * kChunk + quad_lane * 4;
  do {
    float4 left[kChunks][4], right[kChunks][kRowTiles];
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      int column = from + chunk * kWarps * kChunk;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int there = rank + group + 8 * i < p.r ? end - column : 0;
        left[chunk][i] = load_four<kAligned>(a + static_cast<int64_t>(8 * i) * p.h + column, there);
      }
    }
    if (!waited) after_previous();
    waited = true;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      int column = from + chunk * kWarps * kChunk;
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        int there = group + 8 * i < rows ? end - column : 0;
        right[chunk][i] = load_four<kAligned>(pooled + 8 * i * p.pooled_stride + column, there);
      }
    }
    __syncwarp();  // lest the compiler let the last loads wait for the first products
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < kRowTiles; ++j) sums[i][j].add(left[chunk][2 * i], left[chunk][2 * i + 1], right[chunk][j]);
      }
    }
    from += kBlockColumns;
  } while (from - quad_lane * 4 < end);
  if (rank > 0) __syncthreads();  // the sums before have been read
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        shared.sums[warp][8 * j + 2 * quad_lane + k % 2][16 * i + 8 * (k / 2) + group] = sums[i][j][k];
      }
    }
  }
  __syncthreads();
  if (rank == 0) all_begun();
  constexpr int kVectors = kTileRows * kTileRanks / 4;
  static_assert(kThreads % kVectors == 0, "a thread's vector is the same for every block that it sends to");
  int of_row = threadIdx.x % kVectors / (kTileRanks / 4), of_rank = threadIdx.x % (kTileRanks / 4) * 4;
  float4 sum{};
#pragma unroll
  for (int other = 0; other < kWarps; ++other) {
    float4 one = *reinterpret_cast<const float4*>(&shared.sums[other][of_row][of_rank]);
    sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
  }
  float* found = &shared.found[rank / kTileRanks][own][of_row][of_rank];
  if (blocks == 1) {
    *reinterpret_cast<float4*>(found) = sum;
    return;
  }
#pragma unroll 1
  for (int to = threadIdx.x / kVectors; to < blocks; to += kThreads / kVectors) send(sum, found, shared.arrived, to);
}

// z, when all blocks have sent their parts.
__device__ void add_found(const Predict& p, Shared& shared, int blocks) {
  if (blocks == 1) __syncthreads();
  else shared.arrived.wait(0);
  int rank = threadIdx.x % kTileRanks;
  int end = (p.r + kTileRanks - 1) / kTileRanks * kTileRows;
#pragma unroll 1
  for (int at = threadIdx.x / kTileRanks; at < end; at += kWarps) {
    int row = at % kTileRows, tile = at / kTileRows;
    float sum = 0.0f;
#pragma unroll
    for (int other = 0; other < kMaxCluster; ++other) {
      if (other < blocks) sum += shared.found[tile][other][row][rank];
    }
    shared.z[row][tile * kTileRanks + rank] = sum;
  }
  __syncthreads();
}

__device__ inline void write_part(Part* to, float value, uint64_t ticket) {
  asm volatile(
      "{\n.reg .b128 part;\nmov.b128 part, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], part;\n}" ::"l"(to),
      "l"(static_cast<uint64_t>(__float_as_uint(value))), "l"(ticket)
      : "memory");
}

__device__ inline Part read_part(const Part* from) {
  uint64_t value, ticket;
  asm volatile("{\n.reg .b128 part;\nld.relaxed.gpu.global.b128 part, [%2];\nmov.b128 {%0, %1}, part;\n}"
               : "=l"(value), "=l"(ticket)
               : "l"(from)
               : "memory");
  return {__uint_as_float(static_cast<uint32_t>(value)), 0, ticket};
}

// What a lane multiplies of sixteen units: four of each sixteen ranks of those of lane / 4 and lane / 4 + 8. What would lie
// behind `end` is 0 and adds nothing.
template <bool kAligned>
struct Units {
  float4 b[2][kTileRanks / kChunk];
  float bias[2], norms[2];

  __device__ void load_ranks(const Predict& p, int first, int end, int rank) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int unit = first + lane / 4 + 8 * i;
#pragma unroll
      for (int chunk = 0; chunk < kTileRanks / kChunk; ++chunk) {
        int at = rank + chunk * kChunk + lane % 4 * 4;
        b[i][chunk] = load_four<kAligned>(p.b + static_cast<int64_t>(unit) * p.r + at, unit < end ? p.r - at : 0);
      }
    }
  }

  // All but the ranks from 32 on.
  __device__ void load(const Predict& p, int first, int end) {
    load_ranks(p, first, end, 0);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int unit = first + threadIdx.x % kWarp / 4 + 8 * i;
      bias[i] = p.bias != nullptr && unit < end ? p.bias[unit] : 0.0f;
      norms[i] = p.norms != nullptr && unit < end ? p.norms[unit] : 1.0f;
    }
  }

  // The sums of what units lane / 4 and lane / 4 + 8 of those from `first` on, which have been loaded, are over this lane's rows.
  // A quad's lanes together have all rows.
  __device__ float2 sums(const Predict& p, const Shared& shared, int first, int end, int64_t rows) {
    int group = threadIdx.x % kWarp / 4, quad_lane = threadIdx.x % 4;
    Products products[kRowTiles] = {};
#pragma unroll 1
    for (int rank = 0; rank < p.r; rank += kTileRanks) {
      if (rank > 0) load_ranks(p, first, end, rank);
#pragma unroll
      for (int chunk = 0; chunk < kTileRanks / kChunk; ++chunk) {
#pragma unroll
        for (int j = 0; j < kRowTiles; ++j) {
          auto* z = reinterpret_cast<const float4*>(&shared.z[8 * j + group][rank + chunk * kChunk + quad_lane * 4]);
          products[j].add(b[0][chunk], b[1][chunk], *z);
        }
      }
    }
    float2 sums{};
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (8 * j + 2 * quad_lane + k >= rows) continue;
        sums.x += fmaxf(products[j][k] + bias[0], 0.0f);
        sums.y += fmaxf(products[j][k + 2] + bias[1], 0.0f);
      }
    }
    return make_float2(sums.x * norms[0], sums.y * norms[1]);
  }
};

// Scores of blocks that are units, sixteen a warp; the first of them have been loaded.
template <bool kAligned>
__device__ void score_units(const Predict& p, const Shared& shared, Units<kAligned>& units, int first, int end, int64_t rows,
                            float* scores, Part* parts) {
  int lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (first += static_cast<int>(threadIdx.x) / kWarp * kUnits; first < end; first += kWarps * kUnits) {
    float2 sums = units.sums(p, shared, first, end, rows);
    units.load(p, first + kWarps * kUnits, end);
    sums = sums + shuffle_xor(sums, 1);
    sums = sums + shuffle_xor(sums, 2);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int unit = first + lane / 4 + 8 * i;
      float sum = i == 0 ? sums.x : sums.y;
      if (lane % 4 > 0 || unit >= end) continue;
      if (p.tiles == 1) scores[unit] = sum;
      else write_part(parts + unit, sum, p.ticket);
    }
  }
}

// Scores of blocks of several units, one a warp.
template <bool kAligned>
__device__ void score_blocks(const Predict& p, const Shared& shared, int first, int end, int64_t rows, float* scores,
                             Part* parts) {
#pragma unroll 1
  for (int score = first + static_cast<int>(threadIdx.x) / kWarp; score < end; score += kWarps) {
    int unit = score * p.units_per_score, end_unit = unit + p.units_per_score;
    Units<kAligned> next;
    next.load(p, unit, end_unit);
    float sum = 0.0f;
#pragma unroll 1
    for (; unit < end_unit; unit += kUnits) {
      Units<kAligned> units = next;
      next.load(p, unit + kUnits, end_unit);
      float2 sums = units.sums(p, shared, unit, end_unit, rows);
      sum += sums.x + sums.y;
    }
    sum = warp_combine(sum, [](float x, float y) { return x + y; });
    if (threadIdx.x % kWarp > 0) continue;
    if (p.tiles == 1) scores[score] = sum;
    else write_part(parts + score, sum, p.ticket);
  }
}

// Scores [first, end) of a list from its clusters' parts, as they come. Those clusters come before this one in the grid and
// so have begun. A graph that is launched again has the same ticket: it is taken off what has been read.
__device__ void gather(const Predict& p, Shared& shared, int first, int end, float* scores, Part* parts) {
  int column = threadIdx.x % kGatherScores, group = threadIdx.x / kGatherScores;
  int64_t pitch = p.scores_per_list;
#pragma unroll 1
  for (; first < end; first += kGatherScores) {
    int score = first + column;
    float sum = 0.0f;
#pragma unroll 1
    for (int tile = score < end ? group : p.tiles; tile < p.tiles; tile += kGatherGroups * kGatherParts) {
      Part* from = parts + tile * pitch + score;
      int last = (p.tiles - 1 - tile) / kGatherGroups;
      Part found[kGatherParts];
      bool all;
      do {
        all = true;
#pragma unroll
        for (int i = 0; i < kGatherParts; ++i) {
          found[i] = read_part(from + min(i, last) * kGatherGroups * pitch);
          all &= found[i].ticket == p.ticket;
        }
      } while (!all);
#pragma unroll
      for (int i = 0; i < kGatherParts; ++i) {
        if (i > last) continue;
        sum += found[i].value;
        from[i * kGatherGroups * pitch].ticket = 0;
      }
    }
    __syncthreads();
    shared.gathered[group][column] = sum;
    __syncthreads();
    if (group > 0 || score >= end) continue;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kGatherGroups; ++i) sum += shared.gathered[i][column];
    scores[score] = sum;
  }
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) predict_kernel(const __grid_constant__ Predict p) {
  extern __shared__ __align__(16) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  cg::cluster_group cluster = cg::this_cluster();
  int own = static_cast<int>(cluster.block_rank()), blocks = static_cast<int>(cluster.num_blocks());
  if (threadIdx.x == 0) {
    shared.arrived.init(1);
    fence_barrier_init();
    shared.arrived.arrive_and_expect(ceil_div(p.r, kTileRanks) * blocks * sizeof(shared.found[0][0]));
  }
  __syncwarp();
  tell_begun();
  let_next_begin();
  int first = min(p.scores_per_list, own * p.scores_per_block), end = min(p.scores_per_list, first + p.scores_per_block);
  Units<kAligned> units;
  if (p.units_per_score == 1) units.load(p, first + static_cast<int>(threadIdx.x) / kWarp * kUnits, end);
  int list = static_cast<int>(__clusterIdx().x), tile = static_cast<int>(blockIdx.y);
  // A last list that is short has no rows for some clusters, whose part is 0.
  int64_t row = min(p.rows, list * p.rows_per_list + static_cast<int64_t>(tile) * kTileRows);
  int64_t rows = min(p.rows, (list + 1) * p.rows_per_list) - row;
#pragma unroll 1
  for (int rank = 0; rank < p.r; rank += kTileRanks) low_rank<kAligned>(p, shared, own, blocks, row, rows, rank);
  add_found(p, shared, blocks);
  float* scores = p.scores + static_cast<int64_t>(list) * p.scores_per_list;
  Part* parts = p.parts + static_cast<int64_t>(list) * p.tiles * p.scores_per_list;
  Part* parts_of_tile = parts + static_cast<int64_t>(tile) * p.scores_per_list;
  if (p.units_per_score == 1) score_units(p, shared, units, first, end, rows, scores, parts_of_tile);
  else score_blocks<kAligned>(p, shared, first, end, rows, scores, parts_of_tile);
  if (p.tiles > 1 && tile == p.tiles - 1) gather(p, shared, first, end, scores, parts);
}

struct Plan {
  int64_t lists, scores;  // scores of a list
  int tiles;              // likewise: clusters

  explicit Plan(const pnb_predict_mass_params& p) {
    lists = ceil_div(p.pooled.shape[0], p.pooled_per_list);
    scores = p.b.shape[0] / p.units_per_score;
    tiles = static_cast<int>(ceil_div(std::min(p.pooled.shape[0], p.pooled_per_list), kTileRows));
  }
  int64_t bytes() const { return tiles == 1 ? 0 : lists * tiles * scores * static_cast<int64_t>(sizeof(Part)); }
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
  int64_t h = p.pooled.shape[1], groups = plan.lists * plan.tiles, r = p.a.shape[0];
  int64_t most = std::clamp<int64_t>(ceil_div(h, kBlockColumns), 1, kMaxCluster);
  int cluster = static_cast<int>(std::clamp<int64_t>(device.multiprocessors / groups, 1, most));
  Predict args{static_cast<const float*>(p.pooled.data),
               static_cast<const float*>(p.a.data),
               static_cast<const float*>(p.b.data),
               static_cast<const float*>(p.bias.data),
               static_cast<const float*>(p.norms.data),
               static_cast<float*>(p.scores.data),
               static_cast<Part*>(p.workspace.data),
               next_ticket(),
               p.pooled.shape[0],
               p.pooled.stride[0],
               p.pooled_per_list,
               static_cast<int>(plan.scores),
               static_cast<int>(ceil_div(plan.scores, cluster)),
               static_cast<int>(h),
               static_cast<int>(round_up(ceil_div(h, cluster), kChunk)),
               static_cast<int>(r),
               p.units_per_score,
               plan.tiles};
  bool all_aligned = rows_aligned(p.pooled) && rows_aligned(p.a) && rows_aligned(p.b) && h % 4 == 0 && r % 4 == 0;
  auto kernel = all_aligned ? predict_kernel<true> : predict_kernel<false>;
  size_t shared = Shared::bytes(static_cast<int>(ceil_div(r, kTileRanks)));
  allow_shared_memory(kernel, shared, "predict_mass");
  dim3 grid(static_cast<unsigned>(plan.lists * cluster), static_cast<unsigned>(plan.tiles));
  launch(kernel, {grid, kThreads, shared, stream_of(p.stream), cluster, true}, "predict_mass", args);
}

}  // namespace pnb::cuda
