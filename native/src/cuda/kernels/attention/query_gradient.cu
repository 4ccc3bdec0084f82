#include <type_traits>

#include "cuda/kernels/attention/all_gradients.h"
#include "cuda/kernels/attention/backward.h"
#include "cuda/kernels/attention/schedule.cuh"
#include "cuda/kernels/attention/softmax.cuh"
#include "cuda/kernels/attention/tile.cuh"
#include "cuda/kernels/launch.cuh"

// Built as the forward pass is: one warp fills a ring of key and value tiles, and each warpgroup owns 64 query
// rows. The products for the next tile's scores are queued before those for dq have ended, and its probabilities are computed
// while their gradients' product runs. Units by lists are short: there the last product of a unit is put off until the next
// one's queries are there, whose first scores are queued behind it, and the copy engine brings o too.

namespace pnb::cuda::attention {

namespace {

constexpr int kKeys = 64;  // of a tile: scores, their gradients, dq and, at times, q and d_o share the registers

// Three warpgroups have 160 registers a thread: enough at head size 64, with q and d_o left in shared memory. A list's block is
// for two.
template <int kDim, bool kListed>
constexpr int kWarpgroups = kDim == 64 && !kListed ? 3 : 2;
template <int kDim, bool kListed>
constexpr bool kQueriesInRegisters = kListed || kDim != 64;
// Queries that stay in shared memory are still in use when the next unit's arrive.
template <int kDim, bool kListed>
constexpr int kQuerySlots = kQueriesInRegisters<kDim, kListed> && !(kListed && kDim == 64) ? 1 : 2;
template <int kDim>
constexpr int kSlots = kDim == 128 ? 3 : 5;

template <int kDim, bool kListed>
struct Shared {
  static constexpr int kWarpgroups = attention::kWarpgroups<kDim, kListed>;
  static constexpr bool kInRegisters = kQueriesInRegisters<kDim, kListed>;
  static constexpr int kQueries = kQuerySlots<kDim, kListed>;
  static constexpr int kTiles = kSlots<kDim>;
  static constexpr int kRows = 64 * kWarpgroups;
  static constexpr int kConsumers = kWarpgroup * kWarpgroups;
  using Query = Tile<kRows, kDim>;
  using Key = Tile<kKeys, kDim>;

  alignas(1024) char queries[kQueries][Query::kBytes];
  alignas(1024) char d_o[kQueries][Query::kBytes];
  alignas(1024) char o[kListed ? kQueries : 1][kListed ? Query::kBytes : 1024];
  alignas(1024) char keys[kSlots<kDim>][Key::kBytes];
  alignas(1024) char values[kSlots<kDim>][Key::kBytes];
  Stage<kDim> stages[kConsumers / 32];
  std::conditional_t<kListed, VisitTable, UnitTable> units;
  Barrier query_full[kQueries], query_empty[kQueries];
  Barrier full[kSlots<kDim>], empty[kSlots<kDim>];
};

struct Args {
  HeadsMap q, k, v, d_o, o_map;
  Heads<const __nv_bfloat16> o;
  Heads<__nv_bfloat16> dq;
  const float* lse;
  int64_t lse_stride;
  RowStats* stats;
  Borders borders;
  Lists lists;
  int64_t tokens;
  int heads, slots;
  float scale;
  int handled;  // all_gradients() does the work where every sample has so many rows
};

struct Place {
  int first, length;  // the sample's first row, and its rows
  int row, rows;      // the unit's first row within the sample, and its rows

  __device__ Place(const Args& a, const Unit& unit, int unit_rows)
      : first(a.borders.at[unit.sample]),
        length(a.borders.at[unit.sample + 1] - first),
        row(unit.block * unit_rows),
        rows(unit_rows) {}
  __device__ explicit Place(const Visit& visit) : first(visit.first), length(visit.length), row(visit.row()), rows(kListedRows) {}

  __device__ int key_blocks() const { return (min(row + rows, length) + kKeys - 1) / kKeys; }

  // For the 64 rows from r on. A list's block is two tiles, of which the upper one comes first.
  __device__ ListedKeyBlocks blocks(int r, const Visit& visit) const {
    int count = 2 * visit.count(), upper = (r - row) / kKeys;
    int skipped = r >= length ? count : visit.diagonal() ? 1 - upper : 0;
    return {count, skipped, visit.diagonal() ? 2 - upper : 0, row / kKeys + 1};
  }
  __device__ CausalKeyBlocks blocks(int r) const {
    int count = key_blocks();
    int needed = r < length ? (min(r + 64, length) + kKeys - 1) / kKeys : 0;
    return {count, count - needed, count - min(r + 1, length) / kKeys};
  }
};

// `copies`: whether this thread is the one that does.
template <typename S>
__device__ void copy_tile(const Args& a, S& shared, Ring<S::kTiles>& ring, int head, int token, bool copies = true) {
  shared.empty[ring.slot].wait(ring.parity ^ 1);
  if (copies) {
    shared.full[ring.slot].arrive_and_expect(2 * S::Key::kBytes);
    S::Key::copy(shared.keys[ring.slot], a.k, shared.full[ring.slot], head, token);
    S::Key::copy(shared.values[ring.slot], a.v, shared.full[ring.slot], head, token);
  }
  ring.advance();
}

template <typename S>
__device__ void produce(const Args& a, S& shared, const Units& units) {
  Ring<S::kQueries> query;
  Ring<S::kTiles> ring;
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
    for (int i = 0; i < blocks.count; ++i) copy_tile(a, shared, ring, head, place.first + blocks.at(i) * kKeys);
  }
}

// By a warp.
template <typename S>
__device__ void produce_listed(const Args& a, S& shared) {
  Ring<S::kQueries> query;
  Ring<S::kTiles> ring;
  bool copies = threadIdx.x == 0;
  for_each_visit<true>(a.lists, shared.units, [&](const Visit& visit, auto entry) PNB_INLINE {
    shared.query_empty[query.slot].wait(query.parity ^ 1);
    if (copies) {
      Barrier& full = shared.query_full[query.slot];
      full.arrive_and_expect(3 * S::Query::kBytes);
      S::Query::copy(shared.queries[query.slot], a.q, full, visit.head(), visit.first + visit.row());
      S::Query::copy(shared.d_o[query.slot], a.d_o, full, visit.head(), visit.first + visit.row());
      S::Query::copy(shared.o[query.slot], a.o_map, full, visit.head(), visit.first + visit.row());
    }
    query.advance();
    for (int i = 0; i < visit.count(); ++i) {
      int token = visit.first + entry(i) * kListedRows;
      copy_tile(a, shared, ring, visit.head(), token + kKeys, copies);
      copy_tile(a, shared, ring, visit.head(), token, copies);
    }
  });
}

// This thread's share of two rows of o * d_o, both as load_fragments() gives them.
template <int kDim>
__device__ __forceinline__ void row_deltas(float (&delta)[2], uint32_t o_tile, int row, const uint32_t (&d_o)[kDim / 4]) {
  uint32_t o[kDim / 4];
  Tile<kListedRows, kDim>::load_fragments(o, o_tile, row);
  delta[0] = delta[1] = 0.0f;
#pragma unroll
  for (int j = 0; j < kDim / 4; ++j) {
    float2 x = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(d_o[j]));
    float2 y = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(o[j]));
    delta[j % 2] = fmaf(x.x, y.x, fmaf(x.y, y.y, delta[j % 2]));
  }
}

// This thread's share of a row of o * d_o.
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

// `units` is for the turns of Units.
template <int kDim, bool kListed>
__device__ void consume(const Args& a, Shared<kDim, kListed>& shared, const Units& units) {
  using S = Shared<kDim, kListed>;
  int thread = threadIdx.x - kWarpgroup;
  int warpgroup = uniform(thread / kWarpgroup);
  int lane = thread % 32;
  int warp_row = 64 * warpgroup + thread % kWarpgroup / 32 * 16, own_row = warp_row + lane / 4;
  float factor = a.scale * kLog2E;
  Ring<S::kQueries> query;
  Ring<kSlots<kDim>> scores_ring, ring;
  uint32_t q[kDim / 4], d_o[kDim / 4];
  float dq[kDim / 2];
  float lse[2], delta[2];
  float s[kKeys / 2], dp[kKeys / 2];
  uint32_t ds[kKeys / 4] = {};
  // By lists: whether the last unit's last product is still to be begun, and whose it is.
  bool pending = false;
  int last_head = 0, last_token = 0, last_left = 0;

  // What a unit's place decides is handed over by the lambdas' arguments: they outlive it.
  auto wait_tile = [&]() PNB_INLINE {
    // A tile that is not read is still waited for: its slot counts one release of each warp a turn.
    shared.full[scores_ring.slot].wait(scores_ring.parity);
    scores_ring.advance();
  };
  auto release = [&]() PNB_INLINE {
    shared.empty[ring.slot].arrive_together();
    ring.advance();
  };
  auto release_queries = [&]() PNB_INLINE {
    // The copy engine writes there next: reads of this thread that are under way come first.
    fence_async_proxy();
    shared.query_empty[query.slot].arrive_together();
    query.advance();
  };
  auto clear = [&]() PNB_INLINE {
#pragma unroll
    for (int j = 0; j < kDim / 2; ++j) dq[j] = 0.0f;
  };
  // left: rows of the sample from this warp's first on, which is the token.
  auto store = [&](int head, int token, int left) PNB_INLINE {
    store_rows<kDim>(shared.stages[thread / 32], a.dq.row(token, head), a.dq.token_stride, dq, a.scale, a.scale, left);
  };
  auto start_product = [&]() PNB_INLINE {
    wgmma::fence(dq);
    wgmma::begin();
    S::Key::add_product(dq, ds, shared_address(shared.keys[ring.slot]));
    wgmma::commit();
  };
  auto probabilities = [&]() PNB_INLINE {
#pragma unroll
    for (int j = 0; j < kKeys / 2; ++j) s[j] = exp2_fast(fmaf(s[j], factor, -lse[j / 2 % 2]));
  };
  auto drain = [&]() PNB_INLINE {
    start_product();
    wgmma::wait<0>();
    wgmma::fence(dq);
    release();
    store(last_head, last_token, last_left);
    pending = false;
  };

  auto visit = [&](int head, const Place& place, const auto& blocks) PNB_INLINE {
    const int rows[2] = {place.row + own_row, place.row + own_row + 8};
    uint32_t q_tile = shared_address(shared.queries[query.slot]), d_o_tile = shared_address(shared.d_o[query.slot]);

    auto read_statistics = [&]() PNB_INLINE {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        bool inside = rows[i] < place.length;
        int token = place.first + rows[i];
        // Whole quads leave the branch together.
        if constexpr (!kListed) delta[i] = inside ? row_delta<kDim>(a.o.row(token, head), d_o, i) : 0.0f;
        delta[i] += __shfl_xor_sync(0xffffffff, delta[i], 1);
        delta[i] += __shfl_xor_sync(0xffffffff, delta[i], 2);
        if constexpr (!kListed) lse[i] = inside ? a.lse[head * a.lse_stride + token] * kLog2E : 0.0f;
        if (inside && lane % 4 == 0) a.stats[head * a.tokens + token] = {lse[i], delta[i]};
      }
    };
    // settle() comes between the two products' starts.
    auto start_scores_around = [&](int i, auto settle) PNB_INLINE {
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
      if constexpr (S::kInRegisters) {
        S::Key::template product_of_rows<kKeys>(s, q, shared_address(keys));
        wgmma::commit();
        settle();
        S::Key::template product_of_rows<kKeys>(dp, d_o, values);
      } else {
        S::Key::template product_of_rows<kKeys, typename S::Query>(s, q_tile, 64 * warpgroup, shared_address(keys));
        wgmma::commit();
        S::Key::template product_of_rows<kKeys, typename S::Query>(dp, d_o_tile, 64 * warpgroup, values);
      }
      wgmma::commit();
      scores_ring.advance();
    };
    auto start_scores = [&](int i) PNB_INLINE { start_scores_around(i, [] {}); };
    auto gradients = [&](int i) PNB_INLINE {
      // At a loop's beginning, because the compiler moves a wait: were it behind the probabilities, it might come before them.
      wgmma::wait<0>();
      wgmma::fence(dp);
#pragma unroll
      for (int j = 0; j < kKeys / 2; ++j) s[j] *= dp[j] - delta[j / 2 % 2];
      if (i < blocks.masked) {
        // Keys behind the sample's end are behind every row that is stored, too. Columns are constants: what differs from thread
        // to thread is taken from the other side once.
        int column = blocks.at(i) * kKeys + 2 * (lane % 4);
        const int highest[2] = {rows[0] - column, rows[1] - column};
#pragma unroll
        for (int j = 0; j < kKeys / 2; ++j) {
          if (j / 4 * 8 + j % 2 > highest[j / 2 % 2]) s[j] = 0.0f;
        }
      }
      to_left_operand(s, ds);
    };
    auto step = [&](int i, bool last) PNB_INLINE {
      gradients(i);
      start_product();
      if (!last) start_scores(i + 1);
      if (last) wgmma::wait<0>();
      else wgmma::wait<1>();
      wgmma::fence(dq);
      release();
      if (last) return;
      wgmma::fence(s);
      probabilities();
    };

    if constexpr (kListed) {
      if (blocks.skipped == blocks.count) {  // past the sample's end
        if (pending) drain();
        for (int i = 0; i < blocks.count; ++i) {
          wait_tile();
          release();
        }
        return release_queries();
      }
      S::Query::load_fragments(q, q_tile, 64 * warpgroup);
      S::Query::load_fragments(d_o, d_o_tile, 64 * warpgroup);
      row_deltas<kDim>(delta, shared_address(shared.o[query.slot]), 64 * warpgroup, d_o);
      release_queries();
      for (int i = 0; i < blocks.skipped; ++i) wait_tile();
      // A product behind a condition would make the compiler wait for each of them. Without a pending one, what comes out of
      // whatever is there is thrown away.
      start_product();
      auto settle = [&]() PNB_INLINE {
        wgmma::fence(dq);
        if (pending) {
          release();
          store(last_head, last_token, last_left);
        }
        for (int i = 0; i < blocks.skipped; ++i) release();
        clear();
      };
      if constexpr (kDim == 128) {
        // There are no registers for three products at a time.
        start_scores_around(blocks.skipped, [&]() PNB_INLINE {
          wgmma::wait<1>();
          settle();
          wgmma::fence(dp);
          wgmma::begin();
        });
        read_statistics();
      } else {
        start_scores(blocks.skipped);
        read_statistics();
        wgmma::wait<2>();
        settle();
      }
      wgmma::wait<1>();
      wgmma::fence(s);
      probabilities();
      int i = blocks.skipped;
#pragma unroll 1
      for (; i + 1 < blocks.count; ++i) step(i, false);
      gradients(i);
      pending = true;
      last_head = head;
      last_token = place.first + place.row + warp_row;
      last_left = place.length - place.row - warp_row;
    } else {
      S::Query::load_fragments(d_o, d_o_tile, 64 * warpgroup);
      if constexpr (S::kInRegisters) {
        S::Query::load_fragments(q, q_tile, 64 * warpgroup);
        release_queries();
      }
      clear();
      int i = 0;
      for (; i < blocks.skipped; ++i) {
        wait_tile();
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
      if (!S::kInRegisters) release_queries();
      store(head, place.first + place.row + warp_row, place.length - place.row - warp_row);
    }
  };

  if constexpr (kListed) {
    // A unit's log-sum-exps are on their way while the one before it is worked on.
    float next_lse[2] = {};
    auto fetch_lse = [&](int u) PNB_INLINE {
      if (u >= shared.units.count) return;
      Visit next = shared.units.at[u];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int row = next.row() + own_row + 8 * i;
        next_lse[i] = row < next.length ? a.lse[next.head() * a.lse_stride + next.first + row] : 0.0f;
      }
    };
    fetch_lse(0);
    for (int u = 0; u < shared.units.count; ++u) {
      Visit next = shared.units.at[u];
      Place place(next);
      lse[0] = next_lse[0] * kLog2E, lse[1] = next_lse[1] * kLog2E;
      fetch_lse(u + 1);
      if (next.count() == 0) {
        for (int row = place.row + own_row, h = 0; h < 2 && row + 8 * h < place.length; ++h) {
          zero_quad_row<kDim>(a.dq.row(place.first + row + 8 * h, next.head()), lane % 4);
        }
        continue;
      }
      shared.query_full[query.slot].wait(query.parity);
      visit(next.head(), place, place.blocks(place.row + 64 * warpgroup, next));
    }
    if (pending) drain();
  } else {
    Unit unit;
    int head;
    for (int n = 0; units.turn(n, unit, head);) {
      Place place(a, unit, S::kRows);
      shared.query_full[query.slot].wait(query.parity);
      visit(head, place, place.blocks(place.row + 64 * warpgroup));
    }
  }
  zero_rows_of_no_sample<kDim>(a.dq, a.borders, a.tokens, a.heads, thread, S::kConsumers);
}

template <int kDim, bool kListed>
__global__ void __launch_bounds__(kWarpgroup*(kWarpgroups<kDim, kListed> + 1), 1)
    query_gradient_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(1024) char memory[];
  using S = Shared<kDim, kListed>;
  auto& shared = *reinterpret_cast<S*>(memory);
  if (!kListed && kDim == 128 && a.handled > 0 && a.borders.are_all(a.handled)) {
    after_previous();  // even with nothing to do, this kernel ends behind that one
    return;
  }
  if (threadIdx.x == 0) {
    for (const HeadsMap* map : {&a.q, &a.k, &a.v, &a.d_o}) prefetch_map(map->wide);
    for (int i = 0; i < S::kQueries; ++i) {
      shared.query_full[i].init(1);
      shared.query_empty[i].init(S::kConsumers / 32);
    }
    for (int i = 0; i < kSlots<kDim>; ++i) {
      shared.full[i].init(1);
      shared.empty[i].init(S::kConsumers / 32);
    }
    fence_barrier_init();
  }
  after_previous();
  let_next_begin();  // it may read what the kernels before this one wrote
  Units units{};
  if constexpr (kListed) {
    find_visits<true>(a.borders, a.lists, a.heads, reinterpret_cast<int*>(shared.keys), shared.units);
    fence_async_proxy();
  } else {
    static_assert(sizeof shared.keys >= 2 * kMaxUnits * sizeof(uint32_t), "find_units' scratch");
    units = find_units<S::kRows, kDim >= kPairedQueriesFrom>(
        a.borders, a.slots, a.heads, reinterpret_cast<uint32_t*>(shared.keys), shared.units,
        [&](int sample, int block) { return Place(a, {sample, block}, S::kRows).key_blocks(); });
    fence_async_proxy();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    give_registers<kListed && kDim < 128 ? kListedProducerRegisters : S::kWarpgroups == 2 ? 24 : 32>();
    if constexpr (kListed) {
      if (threadIdx.x < 32) produce_listed(a, shared);
    } else {
      if (threadIdx.x == 0) produce(a, shared, units);
    }
  } else {
    take_registers<kListed && kDim < 128 ? kListedConsumerRegisters : S::kWarpgroups == 2 ? 240 : 160>();
    consume(a, shared, units);
  }
}

template <int kDim, bool kListed>
void launch(const Device& device, const pnb_attention_backward_params& p) {
  using S = Shared<kDim, kListed>;
  static_assert(sizeof(S) <= 227 * 1024, "shared memory of a multiprocessor");
  static const char* op = "attention_backward";
  constexpr int kRows = S::kRows;
  int slots = static_cast<int>(unit_slots(p.q.shape[0], p.cu_seqlens.shape[0] - 1, kRows));
  Args a{make_heads_map(p.q, kRows, op),
         make_heads_map(p.k, kKeys, op),
         make_heads_map(p.v, kKeys, op),
         make_heads_map(p.d_o, kRows, op),
         make_heads_map(p.o, kRows, op),
         Heads<const __nv_bfloat16>(p.o),
         Heads<__nv_bfloat16>(p.dq),
         static_cast<const float*>(p.lse.data),
         p.lse.stride[0],
         static_cast<RowStats*>(p.workspace.data),
         Borders(p.cu_seqlens),
         Lists::of_queries(p.blocks),
         p.q.shape[0],
         static_cast<int>(p.q.shape[1]),
         slots,
         p.scale,
         all_gradients_length(device, p)};
  allow_shared_memory(query_gradient_kernel<kDim, kListed>, sizeof(S), op);
  constexpr int kThreads = kWarpgroup * (S::kWarpgroups + 1);
  dim3 grid(static_cast<unsigned>(device.multiprocessors));
  pnb::cuda::launch(query_gradient_kernel<kDim, kListed>, {grid, kThreads, sizeof(S), stream_of(p.stream), 1, true}, op, a);
}

}  // namespace

void query_gradient(const Device& device, const pnb_attention_backward_params& p) {
  bool listed = present(p.blocks.indices);
  switch (p.q.shape[2]) {
    case 64: return listed ? launch<64, true>(device, p) : launch<64, false>(device, p);
    case 80: return listed ? launch<80, true>(device, p) : launch<80, false>(device, p);
    default: return listed ? launch<128, true>(device, p) : launch<128, false>(device, p);
  }
}

}  // namespace pnb::cuda::attention
