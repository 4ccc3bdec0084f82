#include "cuda/kernels/attention/backward.h"
#include "cuda/kernels/attention/schedule.cuh"
#include "cuda/kernels/attention/tile.cuh"

// Built as the forward pass is: one warp fills a ring of key and value tiles, and each warpgroup owns 64 query
// rows. The products for the next tile's scores are queued before those for dq have ended, and its probabilities are computed
// while their gradients' product runs.

namespace pnb::cuda::attention {

namespace {

constexpr int kKeys = 64;  // of a tile: scores, their gradients, dq and, at times, q and d_o share the registers

// Three warpgroups have 160 registers a thread: enough at head size 64, with q and d_o left in shared memory.
template <int kDim>
constexpr int kWarpgroups = kDim == 64 ? 3 : 2;
template <int kDim>
constexpr bool kQueriesInRegisters = kDim != 64;
// Queries that stay in shared memory are still in use when the next unit's arrive.
template <int kDim>
constexpr int kQuerySlots = kQueriesInRegisters<kDim> ? 1 : 2;
template <int kDim>
constexpr int kSlots = kDim == 128 ? 3 : 5;

template <int kDim>
struct Shared {
  static constexpr int kRows = 64 * kWarpgroups<kDim>;
  static constexpr int kConsumers = kWarpgroup * kWarpgroups<kDim>;
  using Query = Tile<kRows, kDim>;
  using Key = Tile<kKeys, kDim>;

  alignas(1024) char queries[kQuerySlots<kDim>][Query::kBytes];
  alignas(1024) char d_o[kQuerySlots<kDim>][Query::kBytes];
  alignas(1024) char keys[kSlots<kDim>][Key::kBytes];
  alignas(1024) char values[kSlots<kDim>][Key::kBytes];
  UnitTable units;
  Barrier query_full[kQuerySlots<kDim>], query_empty[kQuerySlots<kDim>];
  Barrier full[kSlots<kDim>], empty[kSlots<kDim>];
};

struct Args {
  HeadsMap q, k, v, d_o;
  Heads<const __nv_bfloat16> o;
  Heads<__nv_bfloat16> dq;
  const float* lse;
  int64_t lse_stride;
  RowStats* stats;
  Borders borders;
  int64_t tokens;
  int heads, slots;
  float scale;
};

struct Place {
  int first, length;  // the sample's first row, and its rows
  int row, rows;      // the unit's first row within the sample, and its rows

  __device__ Place(const Args& a, const Unit& unit, int unit_rows)
      : first(a.borders.at[unit.sample]),
        length(a.borders.at[unit.sample + 1] - first),
        row(unit.block * unit_rows),
        rows(unit_rows) {}

  __device__ int key_blocks() const { return (min(row + rows, length) + kKeys - 1) / kKeys; }

  // For the 64 rows from r on.
  __device__ CausalKeyBlocks blocks(int r) const {
    int count = key_blocks();
    int needed = r < length ? (min(r + 64, length) + kKeys - 1) / kKeys : 0;
    return {count, count - needed, count - min(r + 1, length) / kKeys};
  }
};

template <int kDim>
__device__ void produce(const Args& a, Shared<kDim>& shared, const Units& units) {
  using S = Shared<kDim>;
  Ring<kQuerySlots<kDim>> query;
  Ring<kSlots<kDim>> ring;
  Unit unit;
  int head;
  for (int n = 0; units.turn(n, unit, head);) {
    Place place(a, unit, S::kRows);
    CausalKeyBlocks blocks = place.blocks(place.row);
    Barrier& query_full = shared.query_full[query.slot];
    shared.query_empty[query.slot].wait(query.parity ^ 1);
    query_full.arrive_and_expect(2 * S::Query::kBytes);
    S::Query::copy(shared.queries[query.slot], a.q, query_full, head, place.first + place.row);
    S::Query::copy(shared.d_o[query.slot], a.d_o, query_full, head, place.first + place.row);
    query.advance();
    for (int i = 0; i < blocks.count; ++i) {
      int token = place.first + blocks.at(i) * kKeys;
      shared.empty[ring.slot].wait(ring.parity ^ 1);
      shared.full[ring.slot].arrive_and_expect(2 * S::Key::kBytes);
      S::Key::copy(shared.keys[ring.slot], a.k, shared.full[ring.slot], head, token);
      S::Key::copy(shared.values[ring.slot], a.v, shared.full[ring.slot], head, token);
      ring.advance();
    }
  }
}

// This thread's share of a row of o * d_o, summed over the row's four threads.
template <int kDim>
__device__ __forceinline__ float row_delta(const __nv_bfloat16* o, const uint32_t (&d_o)[kDim / 4], int half) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
    // Columns 8 j + 2 (lane % 4) and the next: registers 0 and 2 of a step of 16 are the upper row's, 1 and 3 the lower's.
    uint32_t mine = d_o[4 * (j / 2) + 2 * (j % 2) + half];
    uint32_t other = *reinterpret_cast<const uint32_t*>(o + 8 * j + 2 * (threadIdx.x % 4));
    float2 x = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(mine));
    float2 y = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(other));
    sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
  }
  return sum;
}

template <int kDim>
__device__ void consume(const Args& a, Shared<kDim>& shared, const Units& units) {
  using S = Shared<kDim>;
  int thread = threadIdx.x - kWarpgroup;
  int warpgroup = uniform(thread / kWarpgroup);
  int lane = thread % 32;
  int own_row = 64 * warpgroup + thread % kWarpgroup / 32 * 16 + lane / 4;
  float factor = a.scale * kLog2E;
  Ring<kQuerySlots<kDim>> query;
  Ring<kSlots<kDim>> scores_ring, ring;
  Unit unit;
  int head;
  for (int n = 0; units.turn(n, unit, head);) {
    Place place(a, unit, S::kRows);
    CausalKeyBlocks blocks = place.blocks(place.row + 64 * warpgroup);
    const int rows[2] = {place.row + own_row, place.row + own_row + 8};

    uint32_t q[kDim / 4], d_o[kDim / 4];
    shared.query_full[query.slot].wait(query.parity);
    uint32_t q_tile = shared_address(shared.queries[query.slot]), d_o_tile = shared_address(shared.d_o[query.slot]);
    auto release_queries = [&]() PNB_INLINE {
      __syncwarp();
      if (lane == 0) shared.query_empty[query.slot].arrive();
      query.advance();
    };
    S::Query::load_fragments(d_o, d_o_tile, 64 * warpgroup);
    if constexpr (kQueriesInRegisters<kDim>) {
      S::Query::load_fragments(q, q_tile, 64 * warpgroup);
      release_queries();
    }

    float dq[kDim / 2] = {};
    float lse[2], delta[2];
    float s[kKeys / 2], dp[kKeys / 2];
    uint32_t ds[kKeys / 4];

    auto read_statistics = [&]() PNB_INLINE {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        bool inside = rows[i] < place.length;
        int token = place.first + rows[i];
        // Whole quads leave the branch together.
        delta[i] = inside ? row_delta<kDim>(a.o.row(token, head), d_o, i) : 0.0f;
        delta[i] += __shfl_xor_sync(0xffffffff, delta[i], 1);
        delta[i] += __shfl_xor_sync(0xffffffff, delta[i], 2);
        lse[i] = inside ? a.lse[head * a.lse_stride + token] * kLog2E : 0.0f;
        if (inside && lane % 4 == 0) a.stats[head * a.tokens + token] = {lse[i], delta[i]};
      }
    };
    auto release = [&]() PNB_INLINE {
      if (lane == 0) shared.empty[ring.slot].arrive();
      ring.advance();
    };
    auto start_scores = [&](int i) PNB_INLINE {
      shared.full[scores_ring.slot].wait(scores_ring.parity);
      char* keys = shared.keys[scores_ring.slot];
      // Zero gradients do not hide the NaN of a row behind the sample.
      if (int left = place.length - blocks.at(i) * kKeys; left < kKeys) {
        S::Key::zero_rows(keys, left, thread % kWarpgroup);
        fence_async_proxy();
        sync_threads(1 + warpgroup, kWarpgroup);
      }
      wgmma::fence(s);
      wgmma::fence(dp);
      wgmma::begin();
      uint32_t values = shared_address(shared.values[scores_ring.slot]);
      if constexpr (kQueriesInRegisters<kDim>) {
        S::Key::template product_of_rows<kKeys>(s, q, shared_address(keys));
        wgmma::commit();
        S::Key::template product_of_rows<kKeys>(dp, d_o, values);
      } else {
        S::Key::template product_of_rows<kKeys, typename S::Query>(s, q_tile, 64 * warpgroup, shared_address(keys));
        wgmma::commit();
        S::Key::template product_of_rows<kKeys, typename S::Query>(dp, d_o_tile, 64 * warpgroup, values);
      }
      wgmma::commit();
      scores_ring.advance();
    };
    auto probabilities = [&]() PNB_INLINE {
#pragma unroll
      for (int j = 0; j < kKeys / 2; ++j) s[j] = exp2_fast(fmaf(s[j], factor, -lse[j / 2 % 2]));
    };
    auto step = [&](int i, bool last) PNB_INLINE {
      // At a loop's beginning, because the compiler moves a wait: were it behind the probabilities, it might come before them.
      wgmma::wait<0>();
      wgmma::fence(dp);
#pragma unroll
      for (int j = 0; j < kKeys / 2; ++j) s[j] *= dp[j] - delta[j / 2 % 2];
      if (i < blocks.masked) {
        int column = blocks.at(i) * kKeys + 2 * (lane % 4);
#pragma unroll
        for (int j = 0; j < kKeys / 2; ++j) {
          int key = column + j / 4 * 8 + j % 2;
          if (key > rows[j / 2 % 2] || key >= place.length) s[j] = 0.0f;
        }
      }
      to_left_operand(s, ds);
      wgmma::fence(dq);
      wgmma::begin();
      S::Key::add_product(dq, ds, shared_address(shared.keys[ring.slot]));
      wgmma::commit();
      if (!last) start_scores(i + 1);
      if (last) wgmma::wait<0>();
      else wgmma::wait<1>();
      wgmma::fence(dq);
      release();
      if (last) return;
      wgmma::fence(s);
      probabilities();
    };

    int i = 0;
    for (; i < blocks.skipped; ++i) {
      // A tile that is not read is still waited for: its slot counts one release of each warp a turn.
      shared.full[scores_ring.slot].wait(scores_ring.parity);
      scores_ring.advance();
      release();
    }
    if (i < blocks.count) {
      start_scores(i);
      read_statistics();
      wgmma::wait<1>();
      wgmma::fence(s);
      probabilities();
#pragma unroll 1
      for (; i + 1 < blocks.count; ++i) step(i, false);
      step(i, true);
    }
    if (!kQueriesInRegisters<kDim>) release_queries();

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (rows[h] >= place.length) continue;
      __nv_bfloat16* row = a.dq.row(place.first + rows[h], head) + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        *reinterpret_cast<uint32_t*>(row + 8 * j) = pack_bf16(dq[4 * j + 2 * h] * a.scale, dq[4 * j + 2 * h + 1] * a.scale);
      }
    }
  }
  zero_rows_of_no_sample<kDim>(a.dq, a.borders, a.tokens, a.heads, thread, S::kConsumers);
}

template <int kDim>
__global__ void __launch_bounds__(kWarpgroup*(kWarpgroups<kDim> + 1), 1) query_gradient_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(1024) char memory[];
  using S = Shared<kDim>;
  auto& shared = *reinterpret_cast<S*>(memory);
  if (threadIdx.x == 0) {
    for (const HeadsMap* map : {&a.q, &a.k, &a.v, &a.d_o}) prefetch_map(map->wide);
    for (int i = 0; i < kQuerySlots<kDim>; ++i) {
      shared.query_full[i].init(1);
      shared.query_empty[i].init(S::kConsumers / 32);
    }
    for (int i = 0; i < kSlots<kDim>; ++i) {
      shared.full[i].init(1);
      shared.empty[i].init(S::kConsumers / 32);
    }
    fence_barrier_init();
  }
  static_assert(sizeof shared.keys >= 2 * kMaxUnits * sizeof(uint32_t), "find_units' scratch");
  Units units = find_units<S::kRows, kDim >= kPairedQueriesFrom>(a.borders, a.slots, a.heads, reinterpret_cast<uint32_t*>(shared.keys), shared.units,
                                  [&](int sample, int block) { return Place(a, {sample, block}, S::kRows).key_blocks(); });
  fence_async_proxy();
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    give_registers<kWarpgroups<kDim> == 2 ? 24 : 32>();
    if (threadIdx.x == 0) produce(a, shared, units);
  } else {
    take_registers<kWarpgroups<kDim> == 2 ? 240 : 160>();
    consume(a, shared, units);
  }
}

template <int kDim>
void launch(const Device& device, const pnb_attention_backward_params& p) {
  static_assert(sizeof(Shared<kDim>) <= 227 * 1024, "shared memory of a multiprocessor");
  static const char* op = "attention_backward";
  constexpr int kRows = Shared<kDim>::kRows;
  int slots = static_cast<int>(unit_slots(p.q.shape[0], p.cu_seqlens.shape[0] - 1, kRows));
  Args a{make_heads_map(p.q, kRows, op),
         make_heads_map(p.k, kKeys, op),
         make_heads_map(p.v, kKeys, op),
         make_heads_map(p.d_o, kRows, op),
         Heads<const __nv_bfloat16>(p.o),
         Heads<__nv_bfloat16>(p.dq),
         static_cast<const float*>(p.lse.data),
         p.lse.stride[0],
         static_cast<RowStats*>(p.workspace.data),
         Borders(p.cu_seqlens),
         p.q.shape[0],
         static_cast<int>(p.q.shape[1]),
         slots,
         p.scale};
  allow_shared_memory(query_gradient_kernel<kDim>, sizeof(Shared<kDim>), op);
  constexpr int kThreads = kWarpgroup * (kWarpgroups<kDim> + 1);
  query_gradient_kernel<kDim><<<device.multiprocessors, kThreads, sizeof(Shared<kDim>), stream_of(p.stream)>>>(a);
  check_launch(op);
}

}  // namespace

void query_gradient(const Device& device, const pnb_attention_backward_params& p) {
  switch (p.q.shape[2]) {
    case 64: return launch<64>(device, p);
    case 80: return launch<80>(device, p);
    default: return launch<128>(device, p);
  }
}

}  // namespace pnb::cuda::attention
