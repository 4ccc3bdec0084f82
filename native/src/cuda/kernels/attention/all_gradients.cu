#include "cuda/kernels/attention/all_gradients.h"

#include "cuda/kernels/attention/backward.h"
#include "cuda/kernels/attention/softmax.cuh"
#include "cuda/kernels/attention/tile.cuh"
#include "cuda/kernels/launch.cuh"

// As the kernel of dk and dv is built, with one product more: the gradients of the scores go through shared memory, where both
// warpgroups read them for their half of dq's dimensions, and what comes out is added to sums in device memory.
//
// A sample of a head is worked on by half as many blocks of threads as it has blocks of keys, at the same time and at the same
// speed. Each takes a heavy and a light block of keys, and in each step all of them are at different blocks of queries: first the
// heavy ones at the later half of the queries, each one further than its neighbour; then each at its own diagonal and onwards, to
// the middle; then the light ones from the end backwards to their diagonals. The sums of a block of queries are added to in the
// order of these steps; whoever comes too early waits, which hardly happens.

namespace pnb::cuda::attention {

namespace {

using namespace hopper;

constexpr int kDim = 128;
constexpr int kRows = 128;    // key rows of a unit
constexpr int kQueries = 64;  // of a tile
constexpr int kThreads = 3 * kWarpgroup, kConsumers = 2 * kWarpgroup;
constexpr int kTiles = 4;
using Key = Tile<kRows, kDim>;
using Query = Tile<kQueries, kDim>;
using Gradient = Tile<kRows, kQueries>;  // of scores: a row a key
constexpr int kSums = kQueries * kDim;   // f32 of a tile of queries

struct Shared {
  alignas(1024) char tiles[kTiles][2 * Query::kBytes];
  alignas(1024) char keys[Key::kBytes];
  alignas(1024) char values[Key::kBytes];
  alignas(1024) char gradients[Gradient::kBytes];
  Stage<kDim> stages[kConsumers / 32];
  alignas(128) RowStats stats[kTiles][kQueries];
  Barrier key_full, key_empty;
  Barrier full[kTiles], empty[kTiles];
  // Of the sums of a tile, in turn: they may be added to; they have been; that is known to whoever tells.
  Barrier open[2], added[2], taken[2];
};
static_assert(sizeof(Shared) <= 227 * 1024, "shared memory of a multiprocessor");

struct Args {
  HeadsMap q, k, v, d_o;
  CUtensorMap stats;
  Heads<__nv_bfloat16> dk, dv;
  float* sums;         // [samples * heads, tiles, kSums]
  uint32_t* counters;  // [samples * heads, tiles]: of blocks of keys whose part is in the sums
  int64_t tokens;
  Borders borders;
  int heads;
  int blocks;  // of 128 rows of a sample
  float scale;

  __device__ bool applies() const { return borders.are_all(blocks * kRows); }
};

// A block of keys, and the order of the blocks of queries that see it.
struct Unit {
  int key, blocks;

  __device__ bool heavy() const { return key < blocks / 2; }
  __device__ int count() const { return blocks - key; }
  __device__ int query(int step) const {
    int half = blocks / 2;
    if (!heavy()) return blocks - 1 - step;
    if (step >= half) return key + step - half;
    int at = key + step;
    return half + (at < half ? at : at - half);
  }
  // How many blocks of keys come before this one in the sums of a block of queries.
  __device__ int rank(int step) const {
    if (!heavy()) return key;
    int half = blocks / 2;
    return step < half ? step : step - half;
  }
};

// All of this block of threads: calls each(sample and head, unit).
template <typename Each>
__device__ __forceinline__ void for_each_unit(const Args& a, Each&& each) {
  int group = a.blocks / 2, groups = gridDim.x / group;
  int own = blockIdx.x % group, first = blockIdx.x / group;
  if (first >= groups) return;
#pragma unroll 1
  for (int item = first; item < a.borders.samples * a.heads; item += groups) {
#pragma unroll 1
    for (int i = 0; i < 2; ++i) each(item, Unit{i == 0 ? own : a.blocks - 1 - own, a.blocks});
  }
}

__device__ void produce(const Args& a, Shared& shared) {
  Ring<kTiles> ring;
  uint32_t key_parity = 1;
  for_each_unit(a, [&](int item, const Unit& unit) PNB_INLINE {
    int head = item % a.heads, first = item / a.heads * a.blocks * kRows;
    shared.key_empty.wait(key_parity);
    key_parity ^= 1;
    shared.key_full.arrive_and_expect(2 * Key::kBytes);
    Key::copy(shared.keys, a.k, shared.key_full, head, first + unit.key * kRows);
    Key::copy(shared.values, a.v, shared.key_full, head, first + unit.key * kRows);
#pragma unroll 1
    for (int i = 0; i < 2 * unit.count(); ++i) {
      int token = first + unit.query(i / 2) * kRows + i % 2 * kQueries;
      shared.empty[ring.slot].wait(ring.parity ^ 1);
      Barrier& full = shared.full[ring.slot];
      full.arrive_and_expect(2 * Query::kBytes + sizeof shared.stats[0]);
      Query::copy(shared.tiles[ring.slot], a.q, full, head, token);
      Query::copy(shared.tiles[ring.slot] + Query::kBytes, a.d_o, full, head, token);
      copy_box(shared.stats[ring.slot], a.stats, full, 0, head * static_cast<int>(a.tokens) + token);
      ring.advance();
    }
  });
}

// The i-th tile of queries that a unit comes to, counted over all samples and heads.
__device__ __forceinline__ int tile_of(const Args& a, int item, const Unit& unit, int i) {
  return item * 2 * a.blocks + 2 * unit.query(i / 2) + i % 2;
}

// By a thread: lets the sums be added to when it is this block of threads' turn.
__device__ void open_sums(const Args& a, Shared& shared) {
  Ring<2> ring;
  for_each_unit(a, [&](int item, const Unit& unit) PNB_INLINE {
#pragma unroll 1
    for (int i = 0; i < 2 * unit.count(); ++i) {
      shared.taken[ring.slot].wait(ring.parity ^ 1);
      uint32_t* counter = a.counters + tile_of(a, item, unit, i);
      uint32_t rank = unit.rank(i / 2), found;
      do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
      while (found < rank);
      shared.open[ring.slot].arrive();
      ring.advance();
    }
  });
}

// By a thread: tells the other blocks of threads what has been added.
__device__ void close_sums(const Args& a, Shared& shared) {
  Ring<2> ring;
  for_each_unit(a, [&](int item, const Unit& unit) PNB_INLINE {
#pragma unroll 1
    for (int i = 0; i < 2 * unit.count(); ++i) {
      shared.added[ring.slot].wait(ring.parity);
      shared.taken[ring.slot].arrive();
      uint32_t* counter = a.counters + tile_of(a, item, unit, i);
      asm volatile("fence.acq_rel.gpu;\nred.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
      ring.advance();
    }
  });
}

// Without kKeys dk is not asked for.
template <bool kKeys>
__device__ void consume(const Args& a, Shared& shared) {
  int thread = threadIdx.x - kWarpgroup;
  int warpgroup = uniform(thread / kWarpgroup);
  int lane = thread % 32;
  int warp_row = 64 * warpgroup + thread % kWarpgroup / 32 * 16, own_row = warp_row + lane / 4;
  float factor = a.scale * kLog2E;
  Ring<kTiles> scores_ring, ring;
  Ring<2> sums_ring;
  uint32_t key_parity = 0;
  float dk[kDim / 2], dv[kDim / 2];
  float s[kQueries / 2], dp[kQueries / 2];
  uint32_t p[kQueries / 4], ds[kQueries / 4];
  const uint32_t keys = shared_address(shared.keys), values = shared_address(shared.values);
  const uint32_t gradients = shared_address(shared.gradients);
  // Gradients of scores are free from the beginning on.
  // Named barriers 2 and 3 are for the warpgroup that writes next; 1 is for those who read what both have written.
  auto free_gradients = [&]() PNB_INLINE { asm volatile("bar.arrive %0, %1;" ::"r"(3 - warpgroup), "r"(kConsumers) : "memory"); };
  free_gradients();

  for_each_unit(a, [&](int item, const Unit& unit) PNB_INLINE {
    const int count = 2 * unit.count();
    shared.key_full.wait(key_parity);
    key_parity ^= 1;

    auto start_scores = [&]() PNB_INLINE {
      shared.full[scores_ring.slot].wait(scores_ring.parity);
      wgmma::fence(s);
      wgmma::begin();
      Query::template product_of_rows<kQueries, Key>(s, opaque(keys), 64 * warpgroup,
                                                     shared_address(shared.tiles[scores_ring.slot]));
      wgmma::commit();
      scores_ring.advance();
    };
    auto start_d_probabilities = [&]() PNB_INLINE {
      wgmma::fence(dp);
      wgmma::begin();
      Query::template product_of_rows<kQueries, Key>(dp, opaque(values), 64 * warpgroup,
                                                     shared_address(shared.tiles[ring.slot]) + Query::kBytes);
      wgmma::commit();
    };
    auto probabilities = [&](int i, int slot) PNB_INLINE {
      wgmma::fence(s);
      const RowStats* stats = shared.stats[slot] + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < kQueries / 8; ++j) {
        const float lse[2] = {stats[8 * j].lse, stats[8 * j + 1].lse};
#pragma unroll
        for (int e = 0; e < 4; ++e) s[4 * j + e] = exp2_fast(fmaf(s[4 * j + e], factor, -lse[e % 2]));
      }
      if (unit.query(i / 2) == unit.key) {
        const int lowest[2] = {own_row - i % 2 * kQueries - 2 * (lane % 4), own_row + 8 - i % 2 * kQueries - 2 * (lane % 4)};
#pragma unroll
        for (int j = 0; j < kQueries / 2; ++j) {
          if (j / 4 * 8 + j % 2 < lowest[j / 2 % 2]) s[j] = 0.0f;
        }
      }
    };

#pragma unroll
    for (int j = 0; j < kDim / 2; ++j) dk[j] = dv[j] = 0.0f;
    start_scores();
    start_d_probabilities();
    wgmma::wait<1>();
    probabilities(0, ring.slot);

    // Each product covers what is computed of the one before it: dv's the gradients of scores, dk's the sums of dq, that of the
    // next gradients of probabilities the next probabilities.
    auto step = [&](int i, bool last) PNB_INLINE {
      to_left_operand(s, p);
      wgmma::wait<0>();
      wgmma::fence(dp);
      wgmma::fence(dv);
      wgmma::begin();
      Query::add_product(dv, p, shared_address(shared.tiles[ring.slot]) + Query::kBytes);
      wgmma::commit();
      const RowStats* stats = shared.stats[ring.slot] + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < kQueries / 8; ++j) {
        const float delta[2] = {stats[8 * j].delta, stats[8 * j + 1].delta};
#pragma unroll
        for (int e = 0; e < 4; ++e) dp[4 * j + e] = s[4 * j + e] * (dp[4 * j + e] - delta[e % 2]);
      }
      to_left_operand(dp, ds);
      sync_threads(2 + warpgroup, kConsumers);  // the other warpgroup has read what was there
#pragma unroll
      for (int j = 0; j < kQueries / 16; ++j) {
        int row = warp_row + lane % 16;
        uint32_t address = gradients + row * 128 + ((2 * j + lane / 16) ^ (row % 8)) * 16;
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(ds[4 * j]),
                     "r"(ds[4 * j + 1]), "r"(ds[4 * j + 2]), "r"(ds[4 * j + 3])
                     : "memory");
      }
      fence_async_proxy();
      sync_threads(1, kConsumers);
      uint32_t left = opaque(gradients), right = opaque(keys);
      wgmma::fence(dp);
      wgmma::begin();
#pragma unroll
      for (int j = 0; j < kRows / 16; ++j) {
        wgmma::transposed_step(dp, Gradient::column_major(left, 0, j), Key::column_major(right, warpgroup, j), j > 0);
      }
      wgmma::commit();
      if constexpr (kKeys) {
        wgmma::fence(dk);
        wgmma::begin();
        Query::add_product(dk, ds, shared_address(shared.tiles[ring.slot]));
        wgmma::commit();
      }
      if constexpr (kKeys) wgmma::wait<1>();
      else wgmma::wait<0>();
      wgmma::fence(dv);
      wgmma::fence(dp);
      free_gradients();
      float* sums = a.sums + static_cast<int64_t>(tile_of(a, item, unit, i)) * kSums + thread / 32 * 1024 + lane * 4;
      bool first = unit.rank(i / 2) == 0;
      shared.open[sums_ring.slot].wait(sums_ring.parity);
      if (first) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          *reinterpret_cast<float4*>(sums + 128 * j) = float4{dp[4 * j], dp[4 * j + 1], dp[4 * j + 2], dp[4 * j + 3]};
        }
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sums + 128 * j), "f"(dp[4 * j]),
                       "f"(dp[4 * j + 1]), "f"(dp[4 * j + 2]), "f"(dp[4 * j + 3])
                       : "memory");
        }
      }
      shared.added[sums_ring.slot].arrive_together();
      sums_ring.advance();
      wgmma::wait<0>();
      wgmma::fence(dk);
      shared.empty[ring.slot].arrive_together();
      ring.advance();
      if (last) return;
      start_scores();
      start_d_probabilities();
      wgmma::wait<1>();
      probabilities(i + 1, ring.slot);
    };
    int i = 0;
#pragma unroll 1
    for (; i + 1 < count; ++i) step(i, false);
    step(i, true);

    shared.key_empty.arrive_together();
    int head = item % a.heads, token = (item / a.heads * a.blocks + unit.key) * kRows + warp_row;
    Stage<kDim>& stage = shared.stages[thread / 32];
    if constexpr (kKeys) store_rows<kDim>(stage, a.dk.row(token, head), a.dk.token_stride, dk, a.scale, a.scale, 16);
    store_rows<kDim>(stage, a.dv.row(token, head), a.dv.token_stride, dv, 1.0f, 1.0f, 16);
  });
}

template <bool kKeys>
__global__ void __launch_bounds__(kThreads, 1) all_gradients_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  if (!a.applies()) return;
  if (threadIdx.x == 0) {
    for (const HeadsMap* map : {&a.q, &a.k, &a.v, &a.d_o}) prefetch_map(map->wide);
    shared.key_full.init(1);
    shared.key_empty.init(kConsumers / 32);
    for (int i = 0; i < kTiles; ++i) {
      shared.full[i].init(1);
      shared.empty[i].init(kConsumers / 32);
    }
    for (int i = 0; i < 2; ++i) {
      shared.open[i].init(1);
      shared.added[i].init(kConsumers / 32);
      shared.taken[i].init(1);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    give_registers<24>();
    if (threadIdx.x == 0) produce(a, shared);
    else if (threadIdx.x == 32) open_sums(a, shared);
    else if (threadIdx.x == 64) close_sums(a, shared);
  } else {
    take_registers<240>();
    consume<kKeys>(a, shared);
  }
}

struct StatsArgs {
  Heads<const __nv_bfloat16> o, d_o;
  const float* lse;
  int64_t lse_stride;
  RowStats* stats;
  uint32_t* counters;
  Borders borders;
  int64_t tokens, counts;
  int heads, length;
};

// Sixteen threads a row.
__global__ void __launch_bounds__(256) stats_kernel(const StatsArgs a) {
  if (!a.borders.are_all(a.length)) return;
  int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = thread; i < a.counts; i += threads) a.counters[i] = 0;
  for (int64_t i = thread / 16; i < a.tokens * a.heads; i += threads / 16) {
    int64_t token = i / a.heads, head = i % a.heads;
    uint4 x = reinterpret_cast<const uint4*>(a.o.row(token, head))[threadIdx.x % 16];
    uint4 y = reinterpret_cast<const uint4*>(a.d_o.row(token, head))[threadIdx.x % 16];
    float sum = dot(x, y);
#pragma unroll
    for (int j = 8; j > 0; j /= 2) sum += __shfl_xor_sync(0xffffffff, sum, j);
    if (threadIdx.x % 16 == 0) a.stats[head * a.tokens + token] = {a.lse[head * a.lse_stride + token] * kLog2E, sum};
  }
}

struct SumsArgs {
  const float* sums;
  Heads<__nv_bfloat16> dq;
  Borders borders;
  int tiles, heads;  // tiles: of a sample
  float scale;
};

// A tile of queries each.
__global__ void __launch_bounds__(kConsumers) sums_kernel(const SumsArgs a) {
  __shared__ Stage<64> stages[kConsumers / 32];
  if (!a.borders.are_all(a.tiles * kQueries)) return;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int item = blockIdx.x / a.tiles, tile = blockIdx.x % a.tiles;
  const float* sums = a.sums + static_cast<int64_t>(blockIdx.x) * kSums + warp * 1024 + lane * 4;
  float d[32];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    float4 x = *reinterpret_cast<const float4*>(sums + 128 * j);
    d[4 * j] = x.x, d[4 * j + 1] = x.y, d[4 * j + 2] = x.z, d[4 * j + 3] = x.w;
  }
  int64_t token = (static_cast<int64_t>(item / a.heads) * a.tiles + tile) * kQueries + warp % 4 * 16;
  store_rows<64>(stages[warp], a.dq.row(token, item % a.heads) + 64 * (warp / 4), a.dq.token_stride, d, a.scale, a.scale, 16);
}

constexpr int64_t kShortest = 1024;
constexpr int64_t kLeastBusy = 85;  // percent: with fewer, the other kernels' two products more cost less

int64_t samples_of(const pnb_attention_backward_params& p) { return p.cu_seqlens.shape[0] - 1; }
int64_t tiles_of(const pnb_attention_backward_params& p) { return p.q.shape[0] * p.q.shape[1] / kQueries; }

}  // namespace

int all_gradients_length(const Device& device, const pnb_attention_backward_params& p) {
  int64_t length = p.max_seqlen, samples = samples_of(p), blocks = device.multiprocessors;
  if (p.q.shape[2] != kDim || present(p.blocks.indices) || length < kShortest || length % (2 * kRows) != 0 ||
      samples * length != p.q.shape[0]) {
    return 0;
  }
  // Blocks of threads work in groups, one a sample's head: those that are left over, and those of the last turn, idle.
  int64_t group = length / (2 * kRows), items = samples * p.q.shape[1];
  if (group > blocks) return 0;
  int64_t turns = (items + blocks / group - 1) / (blocks / group);
  return items * group * 100 >= turns * blocks * kLeastBusy ? static_cast<int>(length) : 0;
}

uint64_t all_gradients_workspace(const pnb_attention_backward_params& p) {
  if (p.q.shape[2] != kDim || p.q.dtype != PNB_DTYPE_BF16) return 0;
  return (p.q.shape[0] + kQueries - 1) / kQueries * p.q.shape[1] * (kSums + 1) * sizeof(float);
}

void all_gradients(const Device& device, const pnb_attention_backward_params& p) {
  static const char* op = "attention_backward";
  int64_t tokens = p.q.shape[0], heads = p.q.shape[1], tiles = tiles_of(p);
  auto* stats = static_cast<RowStats*>(p.workspace.data);
  auto* sums = reinterpret_cast<float*>(stats + tokens * heads);
  auto* counters = reinterpret_cast<uint32_t*>(sums + tiles * kSums);
  stats_kernel<<<8 * device.multiprocessors, 256, 0, stream_of(p.stream)>>>(
      {Heads<const __nv_bfloat16>(p.o), Heads<const __nv_bfloat16>(p.d_o), static_cast<const float*>(p.lse.data), p.lse.stride[0],
       stats, counters, Borders(p.cu_seqlens), tokens, tiles, static_cast<int>(heads), static_cast<int>(p.max_seqlen)});
  check_launch(op);
  Args a{make_heads_map(p.q, kQueries, op),
         make_heads_map(p.k, kRows, op),
         make_heads_map(p.v, kRows, op),
         make_heads_map(p.d_o, kQueries, op),
         make_array_map(stats, heads * tokens, kQueries, op),
         Heads<__nv_bfloat16>(p.dk),
         Heads<__nv_bfloat16>(p.dv),
         sums,
         counters,
         tokens,
         Borders(p.cu_seqlens),
         static_cast<int>(heads),
         static_cast<int>(p.max_seqlen / kRows),
         p.scale};
  auto kernel = present(p.dk) ? all_gradients_kernel<true> : all_gradients_kernel<false>;
  allow_shared_memory(kernel, sizeof(Shared), op);
  dim3 grid(static_cast<unsigned>(device.multiprocessors));
  cuda::launch(kernel, {grid, kThreads, sizeof(Shared), stream_of(p.stream), 1, false, true}, op, a);
  sums_kernel<<<static_cast<unsigned>(tiles), kConsumers, 0, stream_of(p.stream)>>>(
      {sums, Heads<__nv_bfloat16>(p.dq), Borders(p.cu_seqlens), static_cast<int>(p.max_seqlen / kQueries), static_cast<int>(heads),
       p.scale});
  check_launch(op);
}

}  // namespace pnb::cuda::attention
