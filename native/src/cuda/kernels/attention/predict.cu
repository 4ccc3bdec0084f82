#include <algorithm>
#include <type_traits>

#include "cuda/kernels/attention/attention.h"
#include "cuda/kernels/attention/lists.cuh"
#include "cuda/kernels/attention/softmax.cuh"
#include "cuda/kernels/attention/tile.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"

// Two kernels. The first makes z = pooled a^T + bias: a block takes 64 pooled rows, 128 of a's and a part of the columns, and
// the parts stay apart, so that no block waits for others. The second gives each block of queries a warp, and eight of them keys
// in shared memory, which are z's parts added up; it begins while the first one runs, and finds its sample. Every sum has a
// fixed order.

namespace pnb::cuda {

namespace attention {

namespace {

constexpr int kTileRows = 64;      // pooled rows of a block
constexpr int kTileOutputs = 128;  // rows of a
constexpr int kColumns = 64;       // of a step
constexpr int kPanel = 32;         // of them, those of a warpgroup
constexpr int kTileSlots = 4;      // 128 KB
constexpr int kTileThreads = 2 * kWarpgroup;
constexpr int kMostParts = 8;      // of the columns

struct Low {
  CUtensorMap a, pooled;
  const float* bias;
  float* z;                          // [parts, outputs / 8, rows, 8]
  int rows, outputs, hidden, steps;  // steps: of a part
};

struct LowSlot {
  char a[kTileOutputs * kColumns * 2];
  char pooled[kColumns / kPanel][kTileRows * kPanel * 4];
};

struct LowShared {
  alignas(1024) LowSlot slots[kTileSlots];
  Barrier full[kTileSlots];
};

// This thread's part of 64 rows and a warpgroup's columns of a step as the left operand, in two parts that add up to the
// values: a pooled value is the sum of two of bf16, to 2^-17 of it.
struct Pooled {
  uint32_t high[8], low[8];

  // Four of a step of 16 columns: two rows' pairs, and those of 8 columns further.
  __device__ __forceinline__ Pooled(const char* panel, int row, int lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      int own = row + 8 * (k % 2), column = 16 * (k / 4) + 8 * (k / 2 % 2) + 2 * (lane % 4), chunk = column / 4;
      float2 x = *reinterpret_cast<const float2*>(panel + own * 128 + (chunk ^ own % 8) * 16 + column % 4 * 4);
      high[k] = pack_bf16(x.x, x.y);
      float2 rounded = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(high[k]));
      low[k] = pack_bf16(x.x - rounded.x, x.y - rounded.y);
    }
  }
};

__global__ void __launch_bounds__(kTileThreads, 1) low_rank_kernel(const __grid_constant__ Low p) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<LowShared*>(memory);
  using A = Tile<kTileOutputs, kColumns>;
  int first_row = static_cast<int>(blockIdx.y) * kTileRows, first_output = static_cast<int>(blockIdx.x) * kTileOutputs;
  int part = static_cast<int>(blockIdx.z), first_step = part * p.steps;
  int steps = min(p.steps, (p.hidden + kColumns - 1) / kColumns - first_step);
  if (threadIdx.x == 0) {
    prefetch_map(p.a);
    prefetch_map(p.pooled);
    for (Barrier& full : shared.full) full.init(1);
    fence_barrier_init();
  }
  __syncthreads();
  after_previous();
  let_next_begin();
  auto copy = [&](int i) {
    LowSlot& slot = shared.slots[i % kTileSlots];
    Barrier& full = shared.full[i % kTileSlots];
    full.arrive_and_expect(sizeof slot);
    int column = (first_step + i) * kColumns;
    for (int panel = 0; panel < kColumns / kPanel; ++panel) {
      copy_box(slot.pooled[panel], p.pooled, full, column + panel * kPanel, first_row);
    }
    copy_box(slot.a, p.a, full, column, first_output);
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < min(steps, kTileSlots); ++i) copy(i);
  }
  int warpgroup = uniform(threadIdx.x / kWarpgroup), thread = threadIdx.x % kWarpgroup, lane = thread % 32;
  // Four rows that a half of a warp reads together lie two apart: their swizzled chunks then are in different banks.
  int own_row = thread / 32 * 16 + lane / 4 % 4 * 2 + lane / 16;
  // The first part's first columns begin with the bias.
  float sums[kTileOutputs / 2];
#pragma unroll
  for (int i = 0; i < kTileOutputs / 2; ++i) {
    int output = first_output + i / 4 * 8 + 2 * (lane % 4) + i % 2;
    sums[i] = part == 0 && warpgroup == 0 && output < p.outputs ? p.bias[output] : 0.0f;
  }
  for (int i = 0; i < steps; ++i) {
    const LowSlot& slot = shared.slots[i % kTileSlots];
    shared.full[i % kTileSlots].wait(i / kTileSlots % 2);
    // Not while products run: neither the compiler nor the hardware keeps the registers that they read from being written.
    Pooled x(slot.pooled[warpgroup], own_row, lane);
    uint32_t a = shared_address(slot.a);
    wgmma::fence(sums);
    wgmma::begin();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      uint64_t columns = A::row_major(a, 0, k) + kPanel * 2 / 16 * warpgroup;  // addresses count 16 bytes
      wgmma::step<kTileOutputs, wgmma::Major::K>(sums, x.high + 4 * k, columns, true);
      wgmma::step<kTileOutputs, wgmma::Major::K>(sums, x.low + 4 * k, columns, true);
    }
    wgmma::commit();
    wgmma::wait<0>();
    wgmma::fence(sums);
    // The warpgroups go on by themselves where nothing else is to come.
    if (i + kTileSlots >= steps) continue;
    __syncthreads();
    if (threadIdx.x == 0) {
      fence_async_proxy();
      copy(i + kTileSlots);
    }
  }
  // Each warpgroup gets the other's sums of half of the outputs.
  constexpr int kHalf = kTileOutputs / 4;
  static_assert(kHalf * kTileThreads * sizeof(float) <= sizeof shared.slots, "there is room for them");
  __syncthreads();
  auto* exchanged = reinterpret_cast<float4*>(shared.slots);
#pragma unroll
  for (int i = 0; i < kHalf; i += 4) {
    float4 lower{sums[i], sums[i + 1], sums[i + 2], sums[i + 3]};
    float4 upper{sums[kHalf + i], sums[kHalf + i + 1], sums[kHalf + i + 2], sums[kHalf + i + 3]};
    exchanged[i / 4 * kTileThreads + threadIdx.x] = warpgroup == 0 ? upper : lower;
  }
  __syncthreads();
  int output = first_output + kTileOutputs / 2 * warpgroup + 2 * (lane % 4);
  int64_t group = static_cast<int64_t>(part) * (p.outputs / 8) + output / 8;
  float* to = p.z + (group * p.rows + first_row + own_row) * 8 + output % 8;
  bool upper_row = first_row + own_row < p.rows, lower_row = first_row + own_row + 8 < p.rows;
#pragma unroll
  for (int j = 0; j < kTileOutputs / 16; ++j) {
    float4 other = exchanged[j * kTileThreads + (threadIdx.x ^ kWarpgroup)];
    auto own = [&](int i) PNB_INLINE { return warpgroup == 0 ? sums[4 * j + i] : sums[kHalf + 4 * j + i]; };
    bool inside = output + 8 * j < p.outputs;
    if (inside && upper_row) *reinterpret_cast<float2*>(to) = float2{own(0) + other.x, own(1) + other.y};
    if (inside && lower_row) *reinterpret_cast<float2*>(to + 8 * 8) = float2{own(2) + other.z, own(3) + other.w};
    to += 8 * p.rows;
  }
}

// The same for any alignment; a warp makes one number.
struct PlainLow {
  const float* pooled;
  int64_t pooled_stride;
  const __nv_bfloat16* a;
  const float* bias;
  float* z;
  int rows, outputs, hidden;
};

__global__ void plain_low_rank_kernel(PlainLow p) {
  int64_t number = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (number >= static_cast<int64_t>(p.rows) * p.outputs) return;
  int64_t row = number / p.outputs, output = number % p.outputs;
  float sum = 0.0f;
  for (int i = threadIdx.x % kWarp; i < p.hidden; i += kWarp) {
    sum = fmaf(p.pooled[row * p.pooled_stride + i], to_float(p.a[output * p.hidden + i]), sum);
  }
  sum = warp_combine(sum, [](float x, float y) { return x + y; });
  if (threadIdx.x % kWarp == 0) p.z[(output / 8 * p.rows + row) * 8 + output % 8] = sum + p.bias[output];
}

constexpr int kMostRanks = 64;
constexpr int kQueryRows = 4;  // pooled rows whose scores a warp has at a time
constexpr int kWarps = 8;
constexpr int kScoreThreads = kWarps * kWarp;

struct Scores {
  const float* z;         // [parts, 2 heads r / 8, rows, 8]
  const float* distance;  // [heads, width]
  Borders borders;
  float* mass;
  int parts, rows, heads, r, slots, width;
  int size_log, pool_log;  // blocks and pools have a power of two of rows
};

// Adds up z's parts for two vectors, whose loads are under way together.
__device__ __forceinline__ void sum_parts(const Scores& p, const float* const (&at)[2], float4 (&sums)[2]) {
  constexpr int kTogether = 4;
  int64_t stride = 2ll * p.heads * p.r * p.rows;
#pragma unroll
  for (float4& sum : sums) sum = float4{};
#pragma unroll 1
  for (int first = 0; first < p.parts; first += kTogether) {
    float4 found[2][kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        found[n][i] = first + i < p.parts ? *reinterpret_cast<const float4*>(at[n] + (first + i) * stride) : float4{};
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (float4 one : found[n]) {
        sums[n].x += one.x;
        sums[n].y += one.y;
        sums[n].z += one.z;
        sums[n].w += one.w;
      }
    }
  }
}

// kLaneKeys: of a tile of keys, those of a lane, whose scores are in its registers. Where one tile is not enough, all are gone
// through twice: for the scores' maxima and the exponentials' sums, then for the masses.
template <int kLaneKeys>
__global__ void __launch_bounds__(kScoreThreads) scores_kernel(Scores p) {
  constexpr int kTileKeys = kLaneKeys * kWarp;
  extern __shared__ __align__(16) float score_memory[];
  int warp = uniform(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x) % kWarp;
  int pitch = p.r + 4;  // eight keys' vectors lie in different banks
  float* keys = score_memory;                 // [kTileKeys, pitch]
  float* queries = keys + kTileKeys * pitch;  // [kWarps, kQueryRows, r]
  float* own_queries = queries + warp * kQueryRows * p.r;
  float* weights = queries + kWarps * kQueryRows * p.r + warp * kTileKeys;  // of this warp
  float* distance = queries + kWarps * (kQueryRows * p.r + kTileKeys);
  // Long lists of keys come first.
  int head = blockIdx.x, sample = blockIdx.y, first_block = static_cast<int>(gridDim.z - 1 - blockIdx.z) * kWarps;
  int first = 0, length = 0, slot = 0, end_slot = p.slots;
  if (p.borders.samples > 0) {
    first = p.borders.at[sample];
    int next = p.borders.at[sample + 1];
    length = next - first;
    slot = (first >> p.size_log) + sample;
    if (sample + 1 < p.borders.samples) end_slot = (next >> p.size_log) + sample + 1;
  }
  int blocks = (length + (1 << p.size_log) - 1) >> p.size_log, end_block = min(blocks, first_block + kWarps);
  // Pooled rows whose middles lie before a row of the batch.
  auto before = [&](int row) { return (row + (1 << p.pool_log) - 1 - (1 << p.pool_log >> 1)) >> p.pool_log; };
  auto start_of = [&](int j) { return before(first + min(j << p.size_log, length)); };  // of block j
  auto block_of = [&](int g) { return ((g << p.pool_log) + (1 << p.pool_log >> 1) - first) >> p.size_log; };
  int base = before(first), keys_end = start_of(end_block), block = first_block + warp;
  // A block's own pooled rows ask, or the nearest before it.
  auto asks_from = [&](int j) { return start_of(j) < start_of(j + 1) ? start_of(j) : max(base, start_of(j) - 1); };
  int from = asks_from(block), to = start_of(block + 1);
  bool asks = block < blocks && from < to;
  int rounds = ((1 << (p.size_log - p.pool_log)) + kQueryRows - 1) / kQueryRows;
  bool single = keys_end - base <= kTileKeys;
  after_previous();  // which wrote z; the kernels before that one had ended when it let this one begin
  float* sample_mass = p.mass + (static_cast<int64_t>(head) * p.slots + slot) * p.width;
  if (first_block == 0) {
    for (int i = blocks * p.width + threadIdx.x; i < (end_slot - slot) * p.width; i += kScoreThreads) sample_mass[i] = 0.0f;
  }
  if (first_block >= blocks) return;
  float* mass = sample_mass + block * p.width;
  if (block < blocks && !asks) {
    for (int j = lane; j < p.width; j += kWarp) mass[j] = 0.0f;
  }
  const float* far = p.distance + static_cast<int64_t>(head) * p.width;
  float own_far = static_cast<int>(threadIdx.x) < end_block ? far[threadIdx.x] : 0.0f;
  int64_t groups_of_head = p.r / 8, query_group = head * groups_of_head, key_group = (p.heads + head) * groups_of_head;

#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    int chunk = from + round * kQueryRows, end = min(chunk + kQueryRows, to);
    bool some = asks && chunk < end;
    float highest[kQueryRows], sums[kQueryRows];
#pragma unroll
    for (int q = 0; q < kQueryRows; ++q) highest[q] = -INFINITY, sums[q] = 0.0f;
#pragma unroll 1
    for (int pass = single ? 1 : 0; pass < 2; ++pass) {
#pragma unroll 1
      for (int tile = base; tile < keys_end; tile += kTileKeys) {
        int tile_rows = min(kTileKeys, keys_end - tile);
        bool with_keys = !single || round == 0, with_queries = pass == (single ? 1 : 0) && tile == base;
        __syncthreads();
        // Vectors of this round's queries, kQueryRows r / 4 of each warp, then of the tile's keys.
        int queries_end = kWarps * p.r, all = with_keys ? queries_end + tile_rows * p.r / 4 : queries_end;
        auto locate = [&](int i, const float*& source, float*& to) {
          bool of_query = i < queries_end;
          int k = i - queries_end, warp_of = i / p.r, group, row, from_row;
          if (of_query) {
            k = i - warp_of * p.r;
            group = k / (2 * kQueryRows), row = k / 2 % kQueryRows;
            int other = first_block + warp_of;
            from_row = max(0, min(asks_from(other) + round * kQueryRows + row, start_of(other + 1) - 1));
          } else {
            group = k / 2 / tile_rows, row = k / 2 - group * tile_rows;
            from_row = tile + row;
          }
          int part = 8 * group + 4 * (k % 2);
          source = p.z + (((of_query ? query_group : key_group) + group) * p.rows + from_row) * 8 + 4 * (k % 2);
          to = (of_query ? queries + (warp_of * kQueryRows + row) * p.r : keys + row * pitch) + part;
        };
        for (int i = static_cast<int>(threadIdx.x) + (with_queries ? 0 : queries_end); i < all; i += 2 * kScoreThreads) {
          bool two = i + kScoreThreads < all;
          const float* source[2];
          float* to[2];
          float4 found[2];
          locate(i, source[0], to[0]);
          locate(two ? i + kScoreThreads : i, source[1], to[1]);
          sum_parts(p, source, found);
          *reinterpret_cast<float4*>(to[0]) = found[0];
          if (two) *reinterpret_cast<float4*>(to[1]) = found[1];
        }
        if (round == 0) {
          if (static_cast<int>(threadIdx.x) < end_block) distance[threadIdx.x] = own_far;
          for (int i = threadIdx.x + kScoreThreads; i < end_block; i += kScoreThreads) distance[i] = far[i];
        }
        __syncthreads();
        int tile_end = min(end, tile + tile_rows);
        if (!some || tile >= tile_end) continue;
        float e[kLaneKeys][kQueryRows] = {};
#pragma unroll 2
        for (int i = 0; i < p.r; i += 4) {
          float4 x[kQueryRows];
#pragma unroll
          for (int q = 0; q < kQueryRows; ++q) x[q] = *reinterpret_cast<const float4*>(own_queries + q * p.r + i);
#pragma unroll
          for (int n = 0; n < kLaneKeys; ++n) {
            if (tile + n * kWarp >= tile_end) break;
            float4 k = *reinterpret_cast<const float4*>(keys + (n * kWarp + lane) * pitch + i);
#pragma unroll
            for (int q = 0; q < kQueryRows; ++q) e[n][q] += x[q].x * k.x + x[q].y * k.y + x[q].z * k.z + x[q].w * k.w;
          }
        }
        int own_block = block_of(chunk);  // that of all these queries
        float top[kQueryRows];
#pragma unroll
        for (int q = 0; q < kQueryRows; ++q) top[q] = -INFINITY;
#pragma unroll
        for (int n = 0; n < kLaneKeys; ++n) {
          int g = tile + n * kWarp + lane;
          float near = distance[max(0, own_block - block_of(g))];
#pragma unroll
          for (int q = 0; q < kQueryRows; ++q) {
            e[n][q] = g <= chunk + q && chunk + q < end ? (e[n][q] + near) * kLog2E : -INFINITY;
            top[q] = fmaxf(top[q], e[n][q]);
          }
        }
        if (pass == 0 || single) {
#pragma unroll
          for (int q = 0; q < kQueryRows; ++q) {
            top[q] = fmaxf(highest[q], warp_combine(top[q], [](float x, float y) { return fmaxf(x, y); }));
            float zero = top[q] == -INFINITY ? 0.0f : top[q], sum = 0.0f;
#pragma unroll
            for (int n = 0; n < kLaneKeys; ++n) sum += exp2_fast(e[n][q] - zero);
            sum = warp_combine(sum, [](float x, float y) { return x + y; });
            sums[q] = sums[q] * exp2_fast(highest[q] - zero) + sum;
            highest[q] = top[q];
          }
        }
        if (pass == 0) continue;
        float offset[kQueryRows];  // of a mass's logarithm
#pragma unroll
        for (int q = 0; q < kQueryRows; ++q) {
          offset[q] = chunk + q < end ? highest[q] + __log2f(sums[q]) - static_cast<float>(p.pool_log) : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < kLaneKeys; ++n) {
          float weight = 0.0f;
#pragma unroll
          for (int q = 0; q < kQueryRows; ++q) weight += exp2_fast(e[n][q] - offset[q]);
          weights[n * kWarp + lane] = weight;
        }
        __syncwarp();
        // Not earlier: blocks of what follows would crowd together where the first of these end.
        let_next_begin();
        for (int j = lane; j < p.width; j += kWarp) {
          float sum = 0.0f;
          if (j <= block) {
            int last = min(tile_end, start_of(j + 1));
            for (int g = max(tile, start_of(j)); g < last; ++g) sum += weights[g - tile];
          }
          mass[j] = round == 0 && tile == base ? sum : mass[j] + sum;
        }
      }
    }
  }
}

int log_of(int power_of_two) {
  int log = 0;
  while (power_of_two >> log > 1) ++log;
  return log;
}

// How the first kernel shares out its work: one block of threads a multiprocessor, where that many parts do it.
struct Plan {
  int rows, hidden, outputs;
  int64_t row_tiles, output_tiles;
  int steps, parts;  // steps: of a part

  Plan(const Device& device, const pnb_predict_attention_params& p, int64_t pooled_rows)
      : rows(static_cast<int>(pooled_rows)),
        hidden(static_cast<int>(p.pooled.shape[1])),
        outputs(static_cast<int>(p.a.shape[0] * p.a.shape[1] * p.a.shape[2])),
        row_tiles(ceil_div(rows, kTileRows)),
        output_tiles(ceil_div(outputs, kTileOutputs)) {
    int64_t all = std::max<int64_t>(1, ceil_div(hidden, kColumns));
    int64_t wanted = device.multiprocessors / std::max<int64_t>(1, row_tiles * output_tiles);
    steps = static_cast<int>(ceil_div(all, std::clamp<int64_t>(wanted, 1, std::min<int64_t>(kMostParts, all))));
    parts = static_cast<int>(ceil_div(all, steps));
  }
  uint64_t bytes() const { return static_cast<uint64_t>(parts) * rows * outputs * sizeof(float); }
};

}  // namespace

}  // namespace attention

// Enough for every smaller batch, too: who asks for the largest one's has that. Fewer tiles of rows may be in more parts.
uint64_t predict_attention_workspace(const Device& device, const pnb_predict_attention_params& p) {
  using namespace attention;
  Plan plan(device, p, p.pooled.shape[0]);
  uint64_t bytes = plan.bytes();
  int64_t several_parts = device.multiprocessors / (2 * std::max<int64_t>(1, plan.output_tiles));
  for (int64_t tiles = std::min(plan.row_tiles - 1, several_parts); tiles > 0; --tiles) {
    bytes = std::max(bytes, Plan(device, p, tiles * kTileRows).bytes());
  }
  return bytes;
}

void predict_attention(const Device& device, const pnb_predict_attention_params& p) {
  using namespace attention;
  static const char* op = "predict_attention";
  if (element_count(p.mass) == 0) return;
  cudaStream_t stream = stream_of(p.stream);
  Plan plan(device, p, p.pooled.shape[0]);
  int rows = plan.rows, hidden = plan.hidden, heads = static_cast<int>(p.a.shape[1]), r = static_cast<int>(p.a.shape[2]);
  auto* z = static_cast<float*>(p.workspace.data);
  if (r > kMostRanks || r % 8 != 0) {
    fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected ranks in eights up to %d, found %d", op, kMostRanks, r);
  }

  int64_t pitch = p.pooled.stride[0];
  int parts = 1;
  bool lines = rows == 1 || pitch >= hidden;  // that the copy engine takes
  if (rows > 0 && hidden > 0 && hidden % 8 == 0 && aligned(p.a.data) && rows_aligned(p.pooled) && lines) {
    parts = plan.parts;
    Low low{make_matrix_map(p.a.data, plan.outputs, hidden, kTileOutputs, op),
            make_float_map(p.pooled.data, rows, hidden, rows == 1 ? hidden : pitch, kTileRows, op),
            static_cast<const float*>(p.bias.data),
            z,
            rows,
            plan.outputs,
            hidden,
            plan.steps};
    allow_shared_memory(low_rank_kernel, sizeof(LowShared), op);
    dim3 grid(static_cast<unsigned>(plan.output_tiles), static_cast<unsigned>(plan.row_tiles), static_cast<unsigned>(parts));
    launch(low_rank_kernel, {grid, kTileThreads, sizeof(LowShared), stream, 1, true}, op, low);
  } else if (rows > 0) {
    PlainLow low{static_cast<const float*>(p.pooled.data), pitch, static_cast<const __nv_bfloat16*>(p.a.data),
                 static_cast<const float*>(p.bias.data),   z,     rows,
                 plan.outputs,                             hidden};
    auto blocks = static_cast<unsigned>(ceil_div(static_cast<int64_t>(rows) * plan.outputs, kWarps));
    plain_low_rank_kernel<<<blocks, kScoreThreads, 0, stream>>>(low);
    check_launch(op);
  }

  Scores scores{z,
                static_cast<const float*>(p.distance.data),
                Borders(p.cu_seqlens),
                static_cast<float*>(p.mass.data),
                parts,
                rows,
                heads,
                r,
                static_cast<int>(p.mass.shape[1]),
                static_cast<int>(p.mass.shape[2]),
                log_of(p.size),
                log_of(p.pool_rows)};
  int64_t longest = std::min(p.max_seqlen, p.tokens), blocks = ceil_div(longest, p.size);
  dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(std::max(1, scores.borders.samples)),
            static_cast<unsigned>(std::max<int64_t>(1, ceil_div(blocks, kWarps))));
  auto find = [&](auto lane_keys) {
    constexpr int kLaneKeys = decltype(lane_keys)::value, kTileKeys = kLaneKeys * kWarp;
    size_t bytes = (kTileKeys * (r + 4) + kWarps * (kQueryRows * r + kTileKeys) + blocks) * sizeof(float);
    allow_shared_memory(scores_kernel<kLaneKeys>, bytes, op);
    launch(scores_kernel<kLaneKeys>, {grid, kScoreThreads, bytes, stream, 1, rows > 0}, op, scores);
  };
  int64_t most = ceil_div(longest, p.pool_rows);  // pooled rows of a sample
  if (most <= 64) find(std::integral_constant<int, 2>());
  else if (most <= 128) find(std::integral_constant<int, 4>());
  else find(std::integral_constant<int, 8>());
}

}  // namespace pnb::cuda
