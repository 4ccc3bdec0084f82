#include "cuda/kernels/attention/forward.h"

#include <type_traits>

#include "cuda/kernels/attention/schedule.cuh"
#include "cuda/kernels/attention/short_samples.h"
#include "cuda/kernels/attention/softmax.cuh"
#include "cuda/kernels/attention/tile.cuh"
#include "cuda/kernels/launch.cuh"

// A block of threads stays on its multiprocessor and takes units in turn. One warp fills rings of tiles through the copy
// engine; each warpgroup keeps scores, probabilities and outputs of 64 query rows in registers. A warpgroup's product
// with the values runs while it computes the softmax of the next scores, and so do the other's scores: it begins them when
// this one's are there.

namespace pnb::cuda::attention {

namespace {

constexpr int kKeys = 128;  // of a tile: the widest whose scores leave room for the rest in registers

// The next unit's queries arrive while this one's are in use; of units by lists, which may be a tile long, the one's after it
// too, where they fit.
template <int kDim, bool kListed>
constexpr int kQuerySlots = kListed && kDim < 128 ? 3 : 2;

// As many tiles of keys and of values as fit beside the rest in 227 KB.
template <int kDim>
constexpr int kSlots = kDim == 64 ? 4 : kDim == 80 ? 3 : 2;

// Scores of the next unit are queued ahead of a unit's last product: worth its registers from head size 80 on, and where units
// are short.
template <int kDim, bool kListed>
constexpr bool kSpansUnits = kListed || kDim > 64;
// Outputs are scaled only where they must be: asking costs more than it saves where they are few.
template <int kDim, int kWarpgroups>
constexpr bool kScalesRarely = kDim > 64 || kWarpgroups > 2;

template <int kDim, int kWarpgroups, bool kListed>
struct Shared {
  static constexpr int kRows = 64 * kWarpgroups;  // query rows of a unit
  static constexpr int kTiles = kSlots<kDim>;
  using Query = Tile<kRows, kDim>;
  using Key = Tile<kKeys, kDim>;

  static constexpr int kQueries = kQuerySlots<kDim, kListed>;

  alignas(1024) char queries[kQueries][Query::kBytes];
  alignas(1024) char keys[kSlots<kDim>][Key::kBytes];
  alignas(1024) char values[kSlots<kDim>][Key::kBytes];
  Stage<kDim> stages[4 * kWarpgroups];
  std::conditional_t<kListed, VisitTable, UnitTable> units;
  Barrier query_full[kQueries], query_empty[kQueries];
  Barrier key_full[kSlots<kDim>], key_empty[kSlots<kDim>];
  Barrier value_full[kSlots<kDim>], value_empty[kSlots<kDim>];
};

// Warpgroups that queue their products in turn: while one computes with what came out of its products, the tensor cores
// work on the next one's. Every warpgroup takes part in every turn; barriers from kFirst on are theirs.
template <int kWarpgroups, int kFirst>
struct Turns {
  int self;

  // The first turn is warpgroup 0's.
  __device__ explicit Turns(int warpgroup) : self(warpgroup) {
    if (self == kWarpgroups - 1) pass();
  }
  __device__ void wait() const { sync_threads(kFirst + self, 2 * kWarpgroup); }
  __device__ void pass() const {
    int next = self + 1 == kWarpgroups ? 0 : self + 1;
    asm volatile("bar.arrive %0, %1;" ::"r"(kFirst + next), "r"(2 * kWarpgroup) : "memory");
  }
};

struct Args {
  HeadsMap q, k, v;
  Heads<__nv_bfloat16> o;
  float* lse;  // may be null
  int64_t lse_stride;
  Borders queries, keys;
  Lists lists;
  int64_t tokens;
  int heads, slots;
  float scale;
};

// One unit's place in the packed rows.
struct Place {
  int query, queries;  // the sample's first query row, and their number
  int key, keys;
  int row, rows;  // the unit's first row within the sample, and its rows

  __device__ Place(const Args& a, const Unit& unit, int unit_rows)
      : query(a.queries.at[unit.sample]),
        queries(a.queries.at[unit.sample + 1] - query),
        key(a.keys.at[unit.sample]),
        keys(a.keys.at[unit.sample + 1] - key),
        row(unit.block * unit_rows),
        rows(unit_rows) {}
  __device__ explicit Place(const Visit& visit)
      : query(visit.first), queries(visit.length), key(visit.first), keys(visit.length), row(visit.row()), rows(kListedRows) {}

  // How many keys a row sees: the sample's last query sees them all.
  __device__ int seen(int r) const { return max(0, min(r + 1 + keys - queries, keys)); }

  __device__ int key_blocks() const { return (seen(min(row + rows, queries) - 1) + kKeys - 1) / kKeys; }

  // For the 64 rows from `first` on.
  __device__ CausalKeyBlocks blocks(int first) const {
    int count = key_blocks();
    return {count, first < queries ? 0 : count, count - seen(first) / kKeys};
  }
  __device__ ListedKeyBlocks blocks(int first, const Visit& visit) const {
    return {visit.count(), first < queries ? 0 : visit.count(), visit.diagonal() ? 1 : 0, row / kKeys};
  }
};
static_assert(kKeys == kListedRows, "a tile of keys is a block of a list");

// `copies`: whether this thread is the one that does.
template <typename S>
__device__ void copy_tile(const Args& a, S& shared, Ring<S::kTiles>& ring, int head, int token, bool copies = true) {
  shared.key_empty[ring.slot].wait(ring.parity ^ 1);
  if (copies) {
    shared.key_full[ring.slot].arrive_and_expect(S::Key::kBytes);
    S::Key::copy(shared.keys[ring.slot], a.k, shared.key_full[ring.slot], head, token);
  }
  shared.value_empty[ring.slot].wait(ring.parity ^ 1);
  if (copies) {
    shared.value_full[ring.slot].arrive_and_expect(S::Key::kBytes);
    S::Key::copy(shared.values[ring.slot], a.v, shared.value_full[ring.slot], head, token);
  }
  ring.advance();
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
      shared.query_full[query.slot].arrive_and_expect(S::Query::kBytes);
      S::Query::copy(shared.queries[query.slot], a.q, shared.query_full[query.slot], visit.head(), visit.first + visit.row());
    }
    query.advance();
    for (int i = 0; i < visit.count(); ++i) copy_tile(a, shared, ring, visit.head(), visit.first + entry(i) * kKeys, copies);
  });
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
    shared.query_empty[query.slot].wait(query.parity ^ 1);
    shared.query_full[query.slot].arrive_and_expect(S::Query::kBytes);
    S::Query::copy(shared.queries[query.slot], a.q, shared.query_full[query.slot], head, place.query + place.row);
    query.advance();
    for (int i = 0; i < blocks.count; ++i) copy_tile(a, shared, ring, head, place.key + blocks.at(i) * kKeys);
  }
}

// The two rows of scores that a thread holds a part of.
struct Softmax {
  float factor;  // of scores, to base 2
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};  // this thread's columns only, until finish()

  // The first kColumns scores become probabilities relative to the highest score so far; correction[i] is what older outputs
  // shrink by. With kRarely they may also be relative to one up to 8 binary orders lower, so that most corrections are 1; what
  // they are relative to cancels out in the end. False: all of the warp's corrections are 1.
  template <bool kRarely, int kColumns>
  __device__ __forceinline__ bool update(float (&s)[kKeys / 2], float (&correction)[2]) {
    float highest[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      highest[i] = maximum[i];
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) highest[i] = fmaxf(highest[i], fmaxf(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]));
      highest[i] = fmaxf(highest[i], __shfl_xor_sync(0xffffffff, highest[i], 1));
      highest[i] = fmaxf(highest[i], __shfl_xor_sync(0xffffffff, highest[i], 2));
      correction[i] = 1.0f;
    }
    bool grows = true;
    if constexpr (kRarely) {
      grows = __any_sync(0xffffffff, fmaxf(highest[0] - maximum[0], highest[1] - maximum[1]) * factor > 8.0f);
    }
    if (grows) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // A row that has seen no key yet has no highest score to subtract.
        correction[i] = highest[i] == -INFINITY ? 1.0f : exp2_fast((maximum[i] - highest[i]) * factor);
        maximum[i] = highest[i];
        sum[i] *= correction[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float base = maximum[i] == -INFINITY ? 0.0f : maximum[i] * factor;
      float total[2] = {sum[i], 0.0f};
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[4 * j + 2 * i + e];
          x = exp2_fast(fmaf(x, factor, -base));
          total[e] += x;
        }
      }
      sum[i] = total[0] + total[1];
    }
    return grows;
  }

  // The rows' sums over all their columns.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 1);
      sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 2);
    }
  }
};

// Of the columns [kFirst, kFirst + kColumns), those from seen[i] on become minus infinity.
template <int kFirst, int kColumns>
__device__ __forceinline__ void mask(float (&s)[kKeys / 2], const int (&seen)[2]) {
  int column = 2 * static_cast<int>(threadIdx.x % 4);
  // The columns are constants: what differs from thread to thread is taken from the other side once.
  const int end[2] = {seen[0] - column, seen[1] - column};
#pragma unroll
  for (int j = kFirst / 8; j < (kFirst + kColumns) / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (8 * j + e % 2 >= end[e / 2]) s[4 * j + e] = -INFINITY;
    }
  }
}

// `units` is for the turns of Units.
template <int kDim, int kWarpgroups, bool kListed>
__device__ void consume(const Args& a, Shared<kDim, kWarpgroups, kListed>& shared, const Units& units) {
  using S = Shared<kDim, kWarpgroups, kListed>;
  constexpr bool kSpans = kSpansUnits<kDim, kListed>;
  int thread = threadIdx.x - kWarpgroup;  // the producer's warpgroup is the first
  int warpgroup = uniform(thread / kWarpgroup);
  int lane = thread % 32;
  // Which 64 of a unit's rows are this warpgroup's. By lists both take the upper ones in turn, which see less.
  int part = warpgroup;
  const int part_row = thread % kWarpgroup / 32 * 16 + lane / 4;  // of the part's rows; and the one 8 further
  Ring<S::kQueries> query;
  Ring<kSlots<kDim>> key_ring, value_ring;
  Turns<kWarpgroups, 1 + kWarpgroups> turns(warpgroup);

  float o[kDim / 2];
  float s[kKeys / 2];
  uint32_t p[kKeys / 4];
  float correction[2];
  bool grows = false;
  const Softmax fresh{a.scale * kLog2E};
  Softmax softmax = fresh;
  // A unit's last product is put off until the next one's first scores are queued before it; meanwhile:
  bool pending = false;
  int last_head = 0, last_query = 0, last_queries = 0, last_row = 0;  // as in Place; this thread's row
  int last_left = 0;                                                 // as start_output() takes it

  auto start_scores = [&](uint32_t q) PNB_INLINE {
    shared.key_full[key_ring.slot].wait(key_ring.parity);
    wgmma::fence(s);
    wgmma::begin();
    uint32_t keys = shared_address(shared.keys[key_ring.slot]);
    S::Key::template product_of_rows<kKeys, typename S::Query>(s, q, 64 * part, keys);
    wgmma::commit();
  };
  auto release_keys = [&]() PNB_INLINE {
    shared.key_empty[key_ring.slot].arrive_together();
    key_ring.advance();
  };
  // left: the sample's keys from the tile's first on.
  auto start_output = [&](int left) PNB_INLINE {
    shared.value_full[value_ring.slot].wait(value_ring.parity);
    char* values = shared.values[value_ring.slot];
    // Zero probabilities do not hide the NaN of a row behind the sample.
    if (left < kKeys) {
      S::Key::zero_rows(values, left, thread % kWarpgroup);
      fence_async_proxy();
      sync_threads(1 + warpgroup, kWarpgroup);
    }
    wgmma::fence(o);
    wgmma::begin();
    S::Key::add_product(o, p, shared_address(values));
    wgmma::commit();
  };
  auto release_values = [&]() PNB_INLINE {
    shared.value_empty[value_ring.slot].arrive_together();
    value_ring.advance();
  };
  // `product`: whether one has been started.
  auto settle_output = [&](bool product) PNB_INLINE {
    wgmma::wait<0>();
    wgmma::fence(o);
    if (product) release_values();
  };
  auto rescale = [&]() PNB_INLINE {
    if (!kScalesRarely<kDim, kWarpgroups> || grows) {
#pragma unroll
      for (int j = 0; j < kDim / 2; ++j) o[j] *= correction[j / 2 % 2];
    }
  };
  auto clear = [&]() PNB_INLINE {
#pragma unroll
    for (int j = 0; j < kDim / 2; ++j) o[j] = 0.0f;
  };
  auto store = [&](Softmax rows) PNB_INLINE {
    rows.finish();
    float inverse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bool empty = rows.sum[i] == 0.0f;
      inverse[i] = empty ? 0.0f : __fdividef(1.0f, rows.sum[i]);
      int row = last_row + 8 * i;
      if (a.lse != nullptr && lane % 4 == 0 && row < last_queries) {
        a.lse[last_head * a.lse_stride + last_query + row] = empty ? 0.0f : rows.maximum[i] * a.scale + __logf(rows.sum[i]);
      }
    }
    int row = last_row - lane / 4;  // the warp's first
    store_rows<kDim>(shared.stages[thread / 32], a.o.row(last_query + row, last_head), a.o.token_stride, o, inverse[0], inverse[1],
                     last_queries - row);
  };
  auto store_zeros = [&](int head, const Place& place) PNB_INLINE {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int row = place.row + 64 * part + part_row + 8 * i;
      if (row >= place.queries) continue;
      zero_quad_row<kDim>(a.o.row(place.query + row, head), lane % 4);
      if (a.lse != nullptr && lane % 4 == 0) a.lse[head * a.lse_stride + place.query + row] = 0.0f;
    }
  };
  // Ends a unit that no other one's scores are queued behind.
  auto drain = [&]() PNB_INLINE {
    to_left_operand(s, p);
    start_output(last_left);
    settle_output(true);
    store(softmax);
    pending = false;
  };

  auto visit = [&](int head, const Place& place, const auto& blocks) PNB_INLINE {
    const int row = place.row + 64 * part + part_row;
    uint32_t q = shared_address(shared.queries[query.slot]);

    // Keys behind the first kColumns have none, and those before kFirst need no mask.
    auto probabilities_of = [&](int i, auto first_masked, auto columns) PNB_INLINE {
      constexpr int kFirst = decltype(first_masked)::value, kColumns = decltype(columns)::value;
      if (i < blocks.masked) {
        int first = blocks.at(i) * kKeys;
        const int seen[2] = {place.seen(row) - first, place.seen(row + 8) - first};
        mask<kFirst, kColumns - kFirst>(s, seen);
      }
      grows = softmax.template update<kScalesRarely<kDim, kWarpgroups>, kColumns>(s, correction);
#pragma unroll
      for (int j = kColumns / 2; j < kKeys / 2; ++j) s[j] = 0.0f;
    };
    using Half = std::integral_constant<int, kKeys / 2>;
    using All = std::integral_constant<int, kKeys>;
    using None = std::integral_constant<int, 0>;
    using One = std::integral_constant<int, 1>;
    auto probabilities = [&](int i) PNB_INLINE { probabilities_of(i, None(), All()); };
    auto first_probabilities = [&]() PNB_INLINE {
      // The upper rows of a block see none of its keys' second half, and the lower ones all of the first.
      if constexpr (kListed) {
        if (part == 0 && blocks.masked > 0) probabilities_of(0, None(), Half());
        else probabilities_of(0, Half(), All());
      } else {
        probabilities(0);
      }
    };
    auto left = [&](int i) PNB_INLINE { return place.keys - blocks.at(i) * kKeys; };
    auto becomes_last = [&]() PNB_INLINE {
      last_head = head;
      last_query = place.query, last_queries = place.queries;
      last_row = row;
    };
    // Until at most `behind` younger groups of products are unfinished.
    auto wait_scores = [&](auto behind) PNB_INLINE {
      wgmma::wait<decltype(behind)::value>();
      wgmma::fence(s);
      turns.pass();
      release_keys();
    };

    if (blocks.skipped == blocks.count) {
      if (pending) drain();
      for (int i = 0; i < blocks.count; ++i) {
        shared.key_full[key_ring.slot].wait(key_ring.parity);
        release_keys();
        shared.value_full[value_ring.slot].wait(value_ring.parity);
        release_values();
        turns.wait();
        turns.pass();
      }
      becomes_last();
      clear();
      store(fresh);
    } else {
      if (kSpans && pending) {
        to_left_operand(s, p);
        turns.wait();
        start_scores(q);
        start_output(last_left);
        wait_scores(One());
        Softmax ended = softmax;
        softmax = fresh;
        first_probabilities();
        settle_output(true);
        store(ended);
      } else {
        turns.wait();
        start_scores(q);
        wait_scores(None());
        softmax = fresh;
        first_probabilities();
      }
      becomes_last();
      clear();
#pragma unroll 1
      for (int i = 1; i < blocks.count; ++i) {
        // Waited for here, behind the loop's edge: the compiler moves a wait ahead of the probabilities where it can.
        settle_output(i > 1);
        rescale();
        to_left_operand(s, p);
        turns.wait();
        start_scores(q);
        start_output(left(i - 1));
        wait_scores(One());
        probabilities(i);
      }
      settle_output(blocks.count > 1);
      rescale();
      last_left = left(blocks.count - 1);
      if (kSpans) pending = true;
      else drain();
    }
    shared.query_empty[query.slot].arrive_together();
    query.advance();
  };

  if constexpr (kListed) {
    Visit ahead = shared.units.at[0];
    for (int u = 0; u < shared.units.count; ++u) {
      Visit next = ahead;
      ahead = shared.units.at[u + 1];
      Place place(next);
      part = warpgroup ^ (u & 1);
      if (next.count() == 0) {
        store_zeros(next.head(), place);
        continue;
      }
      shared.query_full[query.slot].wait(query.parity);
      visit(next.head(), place, place.blocks(place.row + 64 * part, next));
    }
  } else {
    Unit unit;
    int head;
    for (int n = 0; units.turn(n, unit, head);) {
      Place place(a, unit, S::kRows);
      shared.query_full[query.slot].wait(query.parity);
      visit(head, place, place.blocks(place.row + 64 * part));
    }
  }
  if (pending) drain();
  zero_rows_of_no_sample<kDim>(a.o, a.queries, a.tokens, a.heads, thread, kWarpgroups * kWarpgroup);
}

template <int kDim, int kWarpgroups, bool kListed>
__global__ void __launch_bounds__(kWarpgroup*(kWarpgroups + 1), 1) forward_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(1024) char memory[];
  using S = Shared<kDim, kWarpgroups, kListed>;
  auto& shared = *reinterpret_cast<S*>(memory);
  constexpr int kReleases = 4 * kWarpgroups;  // one a warp
  if (threadIdx.x == 0) {
    for (const HeadsMap* map : {&a.q, &a.k, &a.v}) prefetch_map(map->wide);
    for (int i = 0; i < S::kQueries; ++i) {
      shared.query_full[i].init(1);
      shared.query_empty[i].init(kReleases);
    }
    for (int i = 0; i < kSlots<kDim>; ++i) {
      shared.key_full[i].init(1);
      shared.key_empty[i].init(kReleases);
      shared.value_full[i].init(1);
      shared.value_empty[i].init(kReleases);
    }
    fence_barrier_init();
  }
  after_previous();
  Units units{};
  if constexpr (kListed) {
    find_visits<true>(a.queries, a.lists, a.heads, reinterpret_cast<int*>(shared.keys), shared.units);
    fence_async_proxy();
  } else {
    static_assert(sizeof shared.keys >= 2 * kMaxUnits * sizeof(uint32_t), "find_units' scratch");
    units = find_units<S::kRows, kDim >= kPairedQueriesFrom>(
        a.queries, a.slots, a.heads, reinterpret_cast<uint32_t*>(shared.keys), shared.units,
        [&](int sample, int block) { return 1 + Place(a, {sample, block}, S::kRows).key_blocks(); });
    fence_async_proxy();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    give_registers<kListed && kDim == 64 ? kListedProducerRegisters : kWarpgroups == 2 ? 24 : 32>();
    if constexpr (kListed) {
      if (threadIdx.x < 32) produce_listed(a, shared);
    } else {
      if (threadIdx.x == 0) produce(a, shared, units);
    }
  } else {
    take_registers<kListed && kDim == 64 ? kListedConsumerRegisters : kWarpgroups == 2 ? 240 : 160>();
    consume<kDim, kWarpgroups, kListed>(a, shared, units);
  }
}

template <int kDim, int kWarpgroups, bool kListed>
void launch(const Device& device, const pnb_attention_forward_params& p) {
  using S = Shared<kDim, kWarpgroups, kListed>;
  static_assert(sizeof(S) <= 227 * 1024, "shared memory of a multiprocessor");
  static const char* op = "attention_forward";
  int slots = static_cast<int>(unit_slots(p.q.shape[0], p.cu_seqlens_q.shape[0] - 1, S::kRows));
  Args a{make_heads_map(p.q, S::kRows, op),
         make_heads_map(p.k, kKeys, op),
         make_heads_map(p.v, kKeys, op),
         Heads<__nv_bfloat16>(p.o),
         static_cast<float*>(p.lse.data),
         p.lse.stride[0],
         Borders(p.cu_seqlens_q),
         Borders(p.cu_seqlens_k),
         Lists::of_queries(p.blocks),
         p.q.shape[0],
         static_cast<int>(p.q.shape[1]),
         slots,
         p.scale};
  auto kernel = forward_kernel<kDim, kWarpgroups, kListed>;
  allow_shared_memory(kernel, sizeof(S), op);
  dim3 grid(static_cast<unsigned>(device.multiprocessors));
  pnb::cuda::launch(kernel, {grid, kWarpgroup * (kWarpgroups + 1), sizeof(S), stream_of(p.stream), 1, true}, op, a);
}

// Three warpgroups hide a softmax behind two others' products; two leave less of a tile unused at a sample's end.
constexpr int64_t kLongSample = 2048;

}  // namespace

bool takes_fast_forward(const Device& device, const pnb_attention_forward_params& p) {
  int64_t dim = p.q.shape[2], samples = p.cu_seqlens_q.shape[0] - 1;
  return p.q.dtype == PNB_DTYPE_BF16 && (dim == 64 || dim == 80 || dim == 128) && p.scale > 0.0f && p.k.shape[0] > 0 &&
         is_mappable(p.q) && is_mappable(p.k) && is_mappable(p.v) && is_mappable(p.o) && takes_fast_lists(device, p.blocks) &&
         unit_slots(p.q.shape[0], samples, kFewestRows) <= kMaxUnits;
}

void fast_forward(const Device& device, const pnb_attention_forward_params& p) {
  if (has_short_samples(p)) return short_forward(p);
  bool listed = present(p.blocks.indices);
  switch (p.q.shape[2]) {
    case 64:
      if (listed) return launch<64, 2, true>(device, p);
      return p.max_seqlen < kLongSample ? launch<64, 2, false>(device, p) : launch<64, 3, false>(device, p);
    case 80: return listed ? launch<80, 2, true>(device, p) : launch<80, 2, false>(device, p);
    default: return listed ? launch<128, 2, true>(device, p) : launch<128, 2, false>(device, p);
  }
}

}  // namespace pnb::cuda::attention
