#include <algorithm>

#include "cuda/kernels/attention/attention.h"
#include "cuda/kernels/attention/lists.cuh"
#include "cuda/kernels/attention/softmax.cuh"
#include "cuda/kernels/attention/tile.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"

// Two kernels. The first makes z = pooled a^T + bias: a cluster takes 128 pooled rows and 128 of a's, its blocks share out the
// columns. The second gives each block of queries a warp, which has the scores of four pooled rows at a time in shared memory;
// it begins while the first one runs, and finds its sample. Every sum has a fixed order.

namespace pnb::cuda {

namespace attention {

namespace {

namespace cg = cooperative_groups;

constexpr int kTile = 128;    // pooled rows, and rows of a, of a cluster
constexpr int kColumns = 64;  // of a step
constexpr int kPanel = 32;    // columns of pooled rows that lie together
constexpr int kTileSlots = 4;
constexpr int kTileThreads = 2 * kWarpgroup;
constexpr int kSumPitch = kTile + 4;  // rows next to each other lie in different banks

struct Low {
  CUtensorMap a, pooled;
  const float* bias;
  float* z;  // [2 heads, rows, r]
  int rows, outputs, hidden, steps;  // steps: of a block
  int r;
};

struct LowSlot {
  char a[kTile * kColumns * 2];
  char pooled[kColumns / kPanel][kTile * kPanel * 4];
};

struct LowShared {
  union {
    alignas(1024) LowSlot slots[kTileSlots];
    float sums[kTile * kSumPitch];  // once all has been read
  };
  Barrier full[kTileSlots];
};

// This thread's part of 64 rows and 64 columns as the left operand, in two parts that add up to the values: a pooled value is the
// sum of two of bf16, to 2^-17 of it.
struct Pooled {
  uint32_t high[16], low[16];

  // Four of a step of 16 columns: two rows' pairs, and those of 8 columns further.
  __device__ __forceinline__ Pooled(const LowSlot& slot, int row, int lane) {
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      int own = row + 8 * (k % 2), column = 16 * (k / 4) + 8 * (k / 2 % 2) + 2 * (lane % 4), chunk = column % kPanel / 4;
      const char* at = slot.pooled[column / kPanel] + own * 128 + (chunk ^ own % 8) * 16 + column % 4 * 4;
      float2 x = *reinterpret_cast<const float2*>(at);
      high[k] = pack_bf16(x.x, x.y);
      float2 rounded = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(high[k]));
      low[k] = pack_bf16(x.x - rounded.x, x.y - rounded.y);
    }
  }
};

__global__ void __launch_bounds__(kTileThreads, 1) low_rank_kernel(const __grid_constant__ Low p) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<LowShared*>(memory);
  using A = Tile<kTile, kColumns>;
  if (threadIdx.x == 0) {
    prefetch_map(p.a);
    prefetch_map(p.pooled);
    for (Barrier& full : shared.full) full.init(1);
    fence_barrier_init();
  }
  __syncthreads();
  after_previous();
  let_next_begin();
  int first_row = static_cast<int>(blockIdx.y) * kTile, first_output = static_cast<int>(blockIdx.z) * kTile;
  int first_step = static_cast<int>(blockIdx.x) * p.steps;
  int steps = max(0, min(p.steps, (p.hidden + kColumns - 1) / kColumns - first_step));
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
  int thread = threadIdx.x % kWarpgroup, lane = thread % 32;
  int own_row = uniform(threadIdx.x / kWarpgroup) * 64 + thread / 32 * 16 + lane / 4;
  float sums[kTile / 2];
#pragma unroll
  for (float& sum : sums) sum = 0.0f;
  for (int i = 0; i < steps; ++i) {
    const LowSlot& slot = shared.slots[i % kTileSlots];
    shared.full[i % kTileSlots].wait(i / kTileSlots % 2);
    Pooled x(slot, own_row, lane);
    uint32_t a = shared_address(slot.a);
    wgmma::fence(sums);
    wgmma::begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      wgmma::step<kTile, wgmma::Major::K>(sums, x.high + 4 * k, A::row_major(a, 0, k), true);
      wgmma::step<kTile, wgmma::Major::K>(sums, x.low + 4 * k, A::row_major(a, 0, k), true);
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
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* to = shared.sums + (own_row + 8 * i) * kSumPitch + 8 * j + 2 * (lane % 4);
      *reinterpret_cast<float2*>(to) = float2{sums[4 * j + 2 * i], sums[4 * j + 2 * i + 1]};
    }
  }
  cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  int blocks = static_cast<int>(cluster.num_blocks());
  int share = kTile / blocks;  // rows
  int from = static_cast<int>(cluster.block_rank()) * share;
#pragma unroll 2
  for (int i = threadIdx.x; i < share * kTile / 4; i += kTileThreads) {
    int row = from + i / (kTile / 4), column = i % (kTile / 4) * 4;
    int output = first_output + column;
    if (first_row + row >= p.rows || output >= p.outputs) continue;
    float4 sum = *reinterpret_cast<const float4*>(p.bias + output);
    float4 found[kMaxCluster];
#pragma unroll
    for (int other = 0; other < kMaxCluster; ++other) {
      found[other] = {};
      if (other < blocks) {
        found[other] = *reinterpret_cast<const float4*>(cluster.map_shared_rank(shared.sums + row * kSumPitch + column, other));
      }
    }
#pragma unroll
    for (int other = 0; other < kMaxCluster; ++other) {
      sum.x += found[other].x;
      sum.y += found[other].y;
      sum.z += found[other].z;
      sum.w += found[other].w;
    }
    float* to = p.z + (static_cast<int64_t>(output / p.r) * p.rows + first_row + row) * p.r + output % p.r;
    *reinterpret_cast<float4*>(to) = sum;
  }
  cluster.sync();  // before a block ends, the others have read
}

// The same for any alignment; a warp makes one number.
struct PlainLow {
  const float* pooled;
  int64_t pooled_stride;
  const __nv_bfloat16* a;
  const float* bias;
  float* z;
  int rows, outputs, hidden, r;
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
  if (threadIdx.x % kWarp == 0) p.z[(output / p.r * p.rows + row) * p.r + output % p.r] = sum + p.bias[output];
}

constexpr int kMostRanks = 64;
constexpr int kQueryRows = 4;  // pooled rows whose scores a warp has at a time
constexpr int kMostWarps = 8;

struct Scores {
  const float* z;
  const float* distance;  // [heads, width]
  Borders borders;
  float* mass;
  int rows, heads, r, slots, width;
  int size_log, pool_log;  // blocks and pools have a power of two of rows
  int places;              // for pooled rows of a sample
};

__global__ void __launch_bounds__(kMostWarps* kWarp) scores_kernel(Scores p) {
  extern __shared__ __align__(16) float4 score_memory[];
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  float4* scores = score_memory + warp * p.places;
  int head = blockIdx.y, slot = static_cast<int>(blockIdx.x * blockDim.x / kWarp) + warp;
  let_next_begin();
  float* mass = p.mass + (static_cast<int64_t>(head) * p.slots + slot) * p.width;
  // Pooled rows whose middles lie before a row of the batch.
  auto before = [&](int row) { return (row + (1 << p.pool_log) - 1 - (1 << p.pool_log >> 1)) >> p.pool_log; };
  // The last sample that begins at this slot or before.
  int sample = -1;
  for (int i = 0; i < p.borders.samples; i += kWarp) {
    bool begins = i + lane < p.borders.samples && (p.borders.at[i + lane] >> p.size_log) + i + lane <= slot;
    sample += __popc(__ballot_sync(~0u, begins));
  }
  int first = 0, length = 0, block = 0;
  if (sample >= 0) {
    first = p.borders.at[sample];
    length = p.borders.at[sample + 1] - first;
    block = slot - (first >> p.size_log) - sample;
  }
  auto start_of = [&](int j) { return before(first + min(j << p.size_log, length)); };  // of block j
  after_previous();  // which wrote z; the kernels before that one had ended when it let this one begin
  if (slot >= p.slots) return;
  int base = before(first);
  int from = start_of(block), to = start_of(block + 1);
  bool empty = block << p.size_log >= length;
  if (from == to) from = max(base, from - 1);
  if (empty || from == to) {
    for (int j = lane; j < p.width; j += kWarp) mass[j] = 0.0f;
    return;
  }
  auto block_of = [&](int g) { return ((g << p.pool_log) + (1 << p.pool_log >> 1) - first) >> p.size_log; };
  const float* zq = p.z + static_cast<int64_t>(head) * p.rows * p.r;
  const float* zk = p.z + (static_cast<int64_t>(p.heads) + head) * p.rows * p.r;
  const float* distance = p.distance + static_cast<int64_t>(head) * p.width;
  for (int chunk = from; chunk < to; chunk += kQueryRows) {
    int end = min(chunk + kQueryRows, to);
    float highest[kQueryRows];
    const float* query[kQueryRows];
    int own_block[kQueryRows];
#pragma unroll
    for (int q = 0; q < kQueryRows; ++q) {
      int row = min(chunk + q, end - 1);
      highest[q] = -INFINITY;
      query[q] = zq + static_cast<int64_t>(row) * p.r;
      own_block[q] = block_of(row);
    }
    for (int g = base + lane; g < end; g += kWarp) {
      const float* key = zk + static_cast<int64_t>(g) * p.r;
      int key_block = block_of(g);
      float e[kQueryRows];
#pragma unroll
      for (int q = 0; q < kQueryRows; ++q) e[q] = distance[max(0, own_block[q] - key_block)];
#pragma unroll 4
      for (int i = 0; i < p.r; i += 4) {
        float4 k = *reinterpret_cast<const float4*>(key + i);
#pragma unroll
        for (int q = 0; q < kQueryRows; ++q) {
          float4 x = *reinterpret_cast<const float4*>(query[q] + i);
          e[q] += x.x * k.x + x.y * k.y + x.z * k.z + x.w * k.w;
        }
      }
#pragma unroll
      for (int q = 0; q < kQueryRows; ++q) {
        if (chunk + q >= end || g > chunk + q) e[q] = -INFINITY;
        highest[q] = fmaxf(highest[q], e[q]);
      }
      scores[g - base] = float4{e[0], e[1], e[2], e[3]};
    }
    float inverse[kQueryRows] = {};
#pragma unroll
    for (int q = 0; q < kQueryRows; ++q) {
      highest[q] = warp_combine(highest[q], [](float x, float y) { return fmaxf(x, y); });
      if (highest[q] == -INFINITY) highest[q] = 0.0f;
    }
    for (int g = base + lane; g < end; g += kWarp) {
      float4 e = scores[g - base];
      float w[kQueryRows] = {e.x, e.y, e.z, e.w};
#pragma unroll
      for (int q = 0; q < kQueryRows; ++q) {
        w[q] = exp2_fast((w[q] - highest[q]) * kLog2E);
        inverse[q] += w[q];
      }
      scores[g - base] = float4{w[0], w[1], w[2], w[3]};
    }
#pragma unroll
    for (int q = 0; q < kQueryRows; ++q) {
      float sum = warp_combine(inverse[q], [](float x, float y) { return x + y; });
      inverse[q] = chunk + q < end ? static_cast<float>(1 << p.pool_log) / sum : 0.0f;
    }
    for (int g = base + lane; g < end; g += kWarp) {
      float4 w = scores[g - base];
      scores[g - base].x = w.x * inverse[0] + w.y * inverse[1] + w.z * inverse[2] + w.w * inverse[3];
    }
    __syncwarp();
    for (int j = lane; j < p.width; j += kWarp) {
      float sum = 0.0f;
      if (j <= block) {
        int last = min(end, start_of(j + 1));
        for (int g = start_of(j); g < last; ++g) sum += scores[g - base].x;
      }
      mass[j] = chunk == from ? sum : mass[j] + sum;
    }
    __syncwarp();  // before the next chunk's scores
  }
}

int log_of(int power_of_two) {
  int log = 0;
  while (power_of_two >> log > 1) ++log;
  return log;
}

}  // namespace

}  // namespace attention

uint64_t predict_attention_workspace(const pnb_predict_attention_params& p) {
  return static_cast<uint64_t>(p.pooled.shape[0]) * p.a.shape[0] * p.a.shape[1] * p.a.shape[2] * sizeof(float);
}

void predict_attention(const Device& device, const pnb_predict_attention_params& p) {
  using namespace attention;
  static const char* op = "predict_attention";
  if (element_count(p.mass) == 0) return;
  cudaStream_t stream = stream_of(p.stream);
  int rows = static_cast<int>(p.pooled.shape[0]), hidden = static_cast<int>(p.pooled.shape[1]);
  int heads = static_cast<int>(p.a.shape[1]), r = static_cast<int>(p.a.shape[2]);
  int outputs = 2 * heads * r;
  auto* z = static_cast<float*>(p.workspace.data);
  if (r > kMostRanks || r % 8 != 0) {
    fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected ranks in eights up to %d, found %d", op, kMostRanks, r);
  }

  int64_t pitch = p.pooled.stride[0];
  bool fast = hidden % 8 == 0 && aligned(p.a.data) && aligned(p.bias.data) && rows_aligned(p.pooled);
  if (fast && rows > 0) {
    int64_t steps = ceil_div(hidden, kColumns), row_tiles = ceil_div(rows, kTile), output_tiles = ceil_div(outputs, kTile);
    int cluster = cluster_for(row_tiles * output_tiles,
                              std::min<int64_t>(device.multiprocessors, row_tiles * output_tiles * steps));
    Low low{make_matrix_map(p.a.data, outputs, hidden, kTile, op),
            make_float_map(p.pooled.data, rows, hidden, std::max<int64_t>(pitch, hidden), kTile, op),
            static_cast<const float*>(p.bias.data),
            z,
            rows,
            outputs,
            hidden,
            static_cast<int>(ceil_div(steps, cluster)),
            r};
    allow_shared_memory(low_rank_kernel, sizeof(LowShared), op);
    dim3 grid(static_cast<unsigned>(cluster), static_cast<unsigned>(row_tiles), static_cast<unsigned>(output_tiles));
    launch(low_rank_kernel, {grid, kTileThreads, sizeof(LowShared), stream, cluster, true}, op, low);
  } else if (rows > 0) {
    PlainLow low{static_cast<const float*>(p.pooled.data), pitch,  static_cast<const __nv_bfloat16*>(p.a.data),
                 static_cast<const float*>(p.bias.data),   z,      rows,
                 outputs,                                  hidden, r};
    auto blocks = static_cast<unsigned>(ceil_div(static_cast<int64_t>(rows) * outputs, kMostWarps));
    plain_low_rank_kernel<<<blocks, kMostWarps * kWarp, 0, stream>>>(low);
    check_launch(op);
  }

  Scores scores{z,
                static_cast<const float*>(p.distance.data),
                Borders(p.cu_seqlens),
                static_cast<float*>(p.mass.data),
                rows,
                heads,
                r,
                static_cast<int>(p.mass.shape[1]),
                static_cast<int>(p.mass.shape[2]),
                log_of(p.size),
                log_of(p.pool_rows),
                static_cast<int>(ceil_div(std::min(p.max_seqlen, p.tokens), p.pool_rows) + 1)};
  constexpr size_t kMostBytes = 200 * 1024;
  size_t bytes = scores.places * sizeof(float4);
  if (bytes > kMostBytes) {
    fail(PNB_ERROR_UNSUPPORTED, "%s: expected at most %d pooled rows of a sample, found a max_seqlen of %lld by pool_rows %d", op,
         static_cast<int>(kMostBytes / sizeof(float4)), static_cast<long long>(p.max_seqlen), p.pool_rows);
  }
  int warps = kMostWarps;
  while (warps * bytes > kMostBytes) warps /= 2;
  allow_shared_memory(scores_kernel, kMostBytes, op);
  dim3 grid(static_cast<unsigned>(ceil_div(scores.slots, warps)), static_cast<unsigned>(heads));
  launch(scores_kernel, {grid, warps * kWarp, warps * bytes, stream, 1, rows > 0}, op, scores);
}

}  // namespace pnb::cuda
