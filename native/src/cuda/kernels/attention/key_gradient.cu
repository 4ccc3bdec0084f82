#include <type_traits>

#include "cuda/kernels/attention/all_gradients.h"
#include "cuda/kernels/attention/backward.h"
#include "cuda/kernels/attention/schedule.cuh"
#include "cuda/kernels/attention/softmax.cuh"
#include "cuda/kernels/attention/tile.cuh"
#include "cuda/kernels/launch.cuh"

// Each warpgroup owns 64 key rows and goes through the query rows that see them. Scores are computed transposed, so that
// probabilities and their gradients come out of one product as the next one's left operand and never leave the registers. Units
// by lists are short: there the last products of a unit are put off until the next one's keys are there, whose first scores are
// queued behind them. The kernel begins on each multiprocessor when the one for dq has ended there, and waits for the last one
// before it reads the statistics.

namespace pnb::cuda::attention {

namespace {

constexpr int kWarpgroups = 2;
constexpr int kRows = 64 * kWarpgroups;  // key rows of a unit
static_assert(kRows == kListedRows, "a unit is a block of a list");
constexpr int kThreads = kWarpgroup * (kWarpgroups + 1);
constexpr int kConsumers = kWarpgroup * kWarpgroups;
constexpr int kQueries = 64;  // of a tile

// Two gradients of 64 rows fill half the registers or more. Head size 64 leaves room for k and v themselves beside them.
template <int kDim>
constexpr bool kKeysInRegisters = kDim == 64;
// Keys that stay in shared memory are still in use when the next unit's arrive; at head size 128 more queries in flight are
// worth more than that.
template <int kDim>
constexpr int kKeySlots = kDim == 80 ? 2 : 1;
template <int kDim>
constexpr int kSlots = kDim == 64 ? 5 : 4;
// Units by lists are too short to wait for keys and values at each one's beginning. Where there is no room for the next unit's
// beside this one's and its queries, they share a pool.
template <int kDim, bool kListed>
constexpr bool kPooled = kListed && kDim == 128;

// Who has which chunk of a pool. A unit's keys and its values hold one each to its end, and tiles of queries take the others in
// turn; the next unit's keys and values come next in turn, while this one's last tiles are in use. The warp that fills chunks and
// those that read them go through the same steps, and so agree.
struct Chunks {
  static constexpr int kNumber = 6;
  uint32_t queue = 0x543210;  // four bits each, the next one lowest
  uint32_t phases = 0;        // a bit each: the parity of its barriers' phase
  int keys = 0, values = 0;

  // A unit begins.
  __device__ void begin() {
    keys = pop();
    values = pop();
  }
  // The chunk of the unit's next tile. It is queued again at once: whoever gets it next waits until it is free. With the last tile
  // the unit's keys and values are queued, too.
  __device__ int tile(bool last) {
    int chunk = pop();
    if (last) {
      push(keys, kNumber - 3);
      push(values, kNumber - 2);
    }
    push(chunk, last ? kNumber - 1 : kNumber - 3);
    return chunk;
  }
  __device__ uint32_t parity(int chunk) const { return phases >> chunk & 1; }
  __device__ void advance(int chunk) { phases ^= 1u << chunk; }

 private:
  __device__ int pop() {
    int chunk = static_cast<int>(queue & 15);
    queue >>= 4;
    return chunk;
  }
  __device__ void push(int chunk, int behind) { queue |= static_cast<uint32_t>(chunk) << 4 * behind; }
};

template <int kDim, bool kListed>
struct Shared {
  static constexpr bool kPooled = attention::kPooled<kDim, kListed>;
  static constexpr int kKeys = kKeySlots<kDim>;
  static constexpr int kTiles = kPooled ? Chunks::kNumber : kSlots<kDim>;
  using Key = Tile<kRows, kDim>;
  using Query = Tile<kQueries, kDim>;

  // Queries and, behind them, d_o; a pool's chunk may also be keys or values.
  alignas(1024) char tiles[kTiles][2 * Query::kBytes];
  alignas(kPooled ? 16 : 1024) char keys[kKeys][kPooled ? 16 : Key::kBytes];
  alignas(kPooled ? 16 : 1024) char values[kKeys][kPooled ? 16 : Key::kBytes];
  static_assert(Key::kBytes == 2 * Query::kBytes, "a chunk of a pool");
  Stage<kDim> stages[kConsumers / 32];
  alignas(128) RowStats stats[kTiles][kQueries];
  std::conditional_t<kListed, VisitTable, UnitTable> units;
  Barrier key_full[kKeys], key_empty[kKeys];
  Barrier full[kTiles], empty[kTiles];
};

struct Args {
  HeadsMap q, k, v, d_o;
  CUtensorMap stats;
  Heads<__nv_bfloat16> dk, dv;
  Borders borders;
  Lists lists;
  int64_t tokens;
  int heads, slots;
  float scale;
  int handled;  // all_gradients() does the work where every sample has so many rows
};

struct Place {
  int first, length;  // the sample's first row, and its rows
  int row;            // the unit's first row within the sample

  __device__ Place(const Args& a, const Unit& unit)
      : first(a.borders.at[unit.sample]), length(a.borders.at[unit.sample + 1] - first), row(unit.block * kRows) {}
  __device__ explicit Place(const Visit& visit) : first(visit.first), length(visit.length), row(visit.row()) {}

  __device__ int query_blocks() const { return (length + kQueries - 1) / kQueries - row / kQueries; }

  // For the 64 keys from r on.
  __device__ CausalQueryBlocks blocks(int r) const {
    int count = query_blocks();
    int skipped = r < length ? (r - row) / kQueries : count;
    return {row / kQueries, count, skipped, skipped + 1};
  }

  // A list's block is two tiles, but for the sample's last one, which may be one.
  __device__ static int tiles(const Visit& visit) {
    return 2 * visit.count() - (visit.last() * kRows + kQueries >= visit.length ? 1 : 0);
  }
  __device__ ListedQueryBlocks blocks(int r, const Visit& visit) const {
    int count = tiles(visit), upper = (r - row) / kQueries;
    int skipped = r >= length ? count : visit.diagonal() ? upper : 0;
    return {row / kQueries, count, skipped, visit.diagonal() ? upper + 1 : 0, visit.last() * 2, 2 * visit.count() - 2};
  }
};

template <typename S>
__device__ void copy_tile(const Args& a, S& shared, int slot, int head, int token) {
  Barrier& full = shared.full[slot];
  full.arrive_and_expect(2 * S::Query::kBytes + sizeof shared.stats[0]);
  S::Query::copy(shared.tiles[slot], a.q, full, head, token);
  S::Query::copy(shared.tiles[slot] + S::Query::kBytes, a.d_o, full, head, token);
  after_previous();
  copy_box(shared.stats[slot], a.stats, full, 0, head * static_cast<int>(a.tokens) + token);
}

// `copies`: whether this thread is the one that does.
template <typename S>
__device__ void copy_tile(const Args& a, S& shared, Ring<S::kTiles>& ring, int head, int token, bool copies = true) {
  shared.empty[ring.slot].wait(ring.parity ^ 1);
  if (copies) copy_tile(a, shared, ring.slot, head, token);
  ring.advance();
}

template <typename S>
__device__ void copy_keys(const Args& a, S& shared, int slot, int head, int token) {
  shared.key_full[slot].arrive_and_expect(2 * S::Key::kBytes);
  S::Key::copy(shared.keys[slot], a.k, shared.key_full[slot], head, token);
  S::Key::copy(shared.values[slot], a.v, shared.key_full[slot], head, token);
}

template <typename S>
__device__ void produce(const Args& a, S& shared, const Units& units) {
  Ring<S::kKeys> key;
  Ring<S::kTiles> ring;
  Unit unit;
  int head;
  for (int n = 0; units.turn(n, unit, head);) {
    Place place(a, unit);
    CausalQueryBlocks blocks = place.blocks(place.row);
    shared.key_empty[key.slot].wait(key.parity ^ 1);
    copy_keys(a, shared, key.slot, head, place.first + place.row);
    key.advance();
    for (int i = 0; i < blocks.count; ++i) copy_tile(a, shared, ring, head, place.first + blocks.at(i) * kQueries);
  }
}

// By a warp.
template <typename S>
__device__ void produce_listed(const Args& a, S& shared) {
  Ring<S::kKeys> key;
  Ring<S::kTiles> ring;
  bool copies = threadIdx.x == 0;
  for_each_visit<false>(a.lists, shared.units, [&](const Visit& visit, auto entry) PNB_INLINE {
    shared.key_empty[key.slot].wait(key.parity ^ 1);
    if (copies) copy_keys(a, shared, key.slot, visit.head(), visit.first + visit.row());
    key.advance();
    int tiles = Place::tiles(visit);
    for (int i = 0; i < tiles; i += 2) {
      int token = visit.first + entry(i / 2) * kRows;
      copy_tile(a, shared, ring, visit.head(), token, copies);
      if (i + 1 < tiles) copy_tile(a, shared, ring, visit.head(), token + kQueries, copies);
    }
  });
}

// By a warp, into a pool.
template <typename S>
__device__ void produce_pooled(const Args& a, S& shared) {
  Chunks chunks;
  bool copies = threadIdx.x == 0;
  auto wait_empty = [&](int chunk) PNB_INLINE {
    shared.empty[chunk].wait(chunks.parity(chunk) ^ 1);
    chunks.advance(chunk);
  };
  for_each_visit<false>(a.lists, shared.units, [&](const Visit& visit, auto entry) PNB_INLINE {
    chunks.begin();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int chunk = i == 0 ? chunks.keys : chunks.values;
      wait_empty(chunk);
      if (copies) {
        shared.full[chunk].arrive_and_expect(S::Key::kBytes);
        S::Key::copy(shared.tiles[chunk], i == 0 ? a.k : a.v, shared.full[chunk], visit.head(), visit.first + visit.row());
      }
    }
    int tiles = Place::tiles(visit);
    for (int i = 0; i < tiles; ++i) {
      int token = visit.first + entry(i / 2) * kRows + i % 2 * kQueries;
      int chunk = chunks.tile(i + 1 == tiles);
      wait_empty(chunk);
      if (copies) copy_tile(a, shared, chunk, visit.head(), token);
    }
  });
}

// `units` is for the turns of Units. Without kKeys dk is not asked for, and what only it needs is not computed.
template <int kDim, bool kListed, bool kKeys>
__device__ void consume(const Args& a, Shared<kDim, kListed>& shared, const Units& units) {
  using S = Shared<kDim, kListed>;
  int thread = threadIdx.x - kWarpgroup;
  int warpgroup = uniform(thread / kWarpgroup);
  int lane = thread % 32;
  int warp_row = 64 * warpgroup + thread % kWarpgroup / 32 * 16, own_row = warp_row + lane / 4;
  float factor = a.scale * kLog2E;
  Ring<S::kKeys> key;
  Ring<S::kTiles> scores_ring, ring;
  // Of a pool; the chunk of the tile whose scores came last, and of the one whose products come next.
  Chunks chunks;
  int scores_chunk = 0, chunk = 0;
  // Descriptors of k and v differ from step to step in constants only: with them in shared memory nothing is kept here.
  uint32_t k[kKeysInRegisters<kDim> ? kDim / 4 : 1], v[kKeysInRegisters<kDim> ? kDim / 4 : 1];
  float dk[kDim / 2], dv[kDim / 2];
  float s[kQueries / 2], dp[kQueries / 2];
  uint32_t p[kQueries / 4] = {}, ds[kQueries / 4] = {};
  // By lists: whether the last unit's last products are still to be begun, and whose they are.
  bool pending = false;
  int last_head = 0, last_token = 0, last_left = 0;

  auto wait_chunk = [&](int c) PNB_INLINE {
    shared.full[c].wait(chunks.parity(c));
    chunks.advance(c);
  };
  // The tile whose scores come next is there from wait_tile() on; `last`: of the unit.
  auto wait_tile = [&](bool last) PNB_INLINE {
    if constexpr (S::kPooled) {
      // Of a chunk that only might differ from lane to lane each address would be moved to uniform registers.
      scores_chunk = uniform(chunks.tile(last));
      wait_chunk(scores_chunk);
    } else {
      shared.full[scores_ring.slot].wait(scores_ring.parity);
    }
  };
  auto scores_tile = [&]() PNB_INLINE { return S::kPooled ? scores_chunk : scores_ring.slot; };
  auto scored = [&]() PNB_INLINE {
    if constexpr (!S::kPooled) scores_ring.advance();
  };
  auto tile = [&]() PNB_INLINE { return S::kPooled ? chunk : ring.slot; };
  // The tile has been read, and the one whose scores came last is next.
  auto release = [&]() PNB_INLINE {
    shared.empty[tile()].arrive_together();
    if constexpr (S::kPooled) chunk = scores_chunk;
    else ring.advance();
  };
  // A tile that is not read is still waited for: its slot counts one release of each warp a turn. A ring's are released in turn.
  auto pass_tile = [&](bool last) PNB_INLINE {
    wait_tile(last);
    scored();
    if constexpr (S::kPooled) shared.empty[scores_chunk].arrive_together();
  };
  auto release_passed = [&]() PNB_INLINE {
    if constexpr (!S::kPooled) release();
  };
  auto release_keys = [&]() PNB_INLINE {
    // The copy engine writes there next: reads of this thread that are under way come first.
    fence_async_proxy();
    if constexpr (S::kPooled) {
      shared.empty[chunks.keys].arrive_together();
      shared.empty[chunks.values].arrive_together();
    } else {
      shared.key_empty[key.slot].arrive_together();
      key.advance();
    }
  };
  auto clear = [&]() PNB_INLINE {
#pragma unroll
    for (int j = 0; j < kDim / 2; ++j) dk[j] = dv[j] = 0.0f;
  };
  // left: rows of the sample from this warp's first on, which is the token.
  auto store = [&](int head, int token, int left) PNB_INLINE {
    Stage<kDim>& stage = shared.stages[thread / 32];
    if (a.dk.present()) store_rows<kDim>(stage, a.dk.row(token, head), a.dk.token_stride, dk, a.scale, a.scale, left);
    store_rows<kDim>(stage, a.dv.row(token, head), a.dv.token_stride, dv, 1.0f, 1.0f, left);
  };
  auto start_products = [&]() PNB_INLINE {
    wgmma::fence(dv);
    wgmma::fence(dk);
    wgmma::begin();
    S::Query::add_product(dv, p, shared_address(shared.tiles[tile()]) + S::Query::kBytes);
    S::Query::add_product(dk, ds, shared_address(shared.tiles[tile()]));
    wgmma::commit();
  };
  auto finish_products = [&]() PNB_INLINE {
    wgmma::fence(dv);
    wgmma::fence(dk);
  };
  auto drain = [&]() PNB_INLINE {
    start_products();
    wgmma::wait<0>();
    finish_products();
    release();
    store(last_head, last_token, last_left);
    pending = false;
  };

  auto visit = [&](int head, const Place& place, const auto& blocks) PNB_INLINE {
    const int rows[2] = {place.row + own_row, place.row + own_row + 8};
    uint32_t keys, values;
    if constexpr (S::kPooled) {
      chunks.begin();
      chunks.keys = uniform(chunks.keys), chunks.values = uniform(chunks.values);
      wait_chunk(chunks.keys);
      wait_chunk(chunks.values);
      keys = shared_address(shared.tiles[chunks.keys]), values = shared_address(shared.tiles[chunks.values]);
    } else {
      shared.key_full[key.slot].wait(key.parity);
      keys = shared_address(shared.keys[key.slot]), values = shared_address(shared.values[key.slot]);
    }

    // Where keys and values change places, the compiler would keep the descriptors of all steps, for which there are no registers.
    auto again = [&](uint32_t address) PNB_INLINE { return S::kPooled ? opaque(address) : address; };
    auto start_scores = [&](int i) PNB_INLINE {
      wait_tile(i + 1 == blocks.count);
      char* queries = shared.tiles[scores_tile()];
      char* d_o = queries + S::Query::kBytes;
      // Zero probabilities do not hide the NaN of a row behind the sample.
      if (int left = place.length - blocks.at(i) * kQueries; left < kQueries) {
        S::Query::zero_rows(queries, left, thread % kWarpgroup);
        S::Query::zero_rows(d_o, left, thread % kWarpgroup);
        fence_async_proxy();
        sync_threads(1 + warpgroup, kWarpgroup);
      }
      wgmma::fence(s);
      wgmma::begin();
      if constexpr (kKeysInRegisters<kDim>) S::Query::template product_of_rows<kQueries>(s, k, shared_address(queries));
      else S::Query::template product_of_rows<kQueries, typename S::Key>(s, again(keys), 64 * warpgroup, shared_address(queries));
      wgmma::commit();
    };
    auto start_gradients = [&]() PNB_INLINE {
      uint32_t d_o = shared_address(shared.tiles[scores_tile()]) + S::Query::kBytes;
      wgmma::fence(dp);
      wgmma::begin();
      if constexpr (kKeysInRegisters<kDim>) S::Query::template product_of_rows<kQueries>(dp, v, d_o);
      else S::Query::template product_of_rows<kQueries, typename S::Key>(dp, again(values), 64 * warpgroup, d_o);
      wgmma::commit();
      scored();
    };
    // Zeros for queries, counted from `query`, that do not see the key or are not of the sample.
    auto mask = [&](float (&x)[kQueries / 2], int query) PNB_INLINE {
#pragma unroll
      for (int j = 0; j < kQueries / 2; ++j) {
        int row = query + 2 * (lane % 4) + j / 4 * 8 + j % 2;
        if (row < rows[j / 2 % 2] || row >= place.length) x[j] = 0.0f;
      }
    };
    auto whole = [&](int i) PNB_INLINE { return i >= blocks.masked && (blocks.at(i) + 1) * kQueries <= place.length; };
    auto probabilities = [&](int i, int slot) PNB_INLINE {
      const RowStats* stats = shared.stats[slot] + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < kQueries / 8; ++j) {
        const float lse[2] = {stats[8 * j].lse, stats[8 * j + 1].lse};
#pragma unroll
        for (int e = 0; e < 4; ++e) s[4 * j + e] = exp2_fast(fmaf(s[4 * j + e], factor, -lse[e % 2]));
      }
      if (!whole(i)) mask(s, blocks.at(i) * kQueries);
    };
    auto gradients = [&](int i, int slot) PNB_INLINE {
      const RowStats* stats = shared.stats[slot] + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < kQueries / 8; ++j) {
        const float delta[2] = {stats[8 * j].delta, stats[8 * j + 1].delta};
#pragma unroll
        for (int e = 0; e < 4; ++e) dp[4 * j + e] = s[4 * j + e] * (dp[4 * j + e] - delta[e % 2]);
      }
      if (!whole(i)) mask(dp, blocks.at(i) * kQueries);
      to_left_operand(dp, ds);
    };
    // dk's product and the next scores are queued behind dv's, and the next gradients of probabilities run while the next
    // probabilities are computed. Every wait but that at the loop's beginning is for products of the same turn: the compiler
    // orders all products one by one where it cannot count those in flight.
    auto step = [&](int i, bool last) PNB_INLINE {
      wgmma::wait<0>();
      if constexpr (kKeys) wgmma::fence(dp);
      to_left_operand(s, p);
      wgmma::fence(dv);
      wgmma::begin();
      S::Query::add_product(dv, p, shared_address(shared.tiles[tile()]) + S::Query::kBytes);
      wgmma::commit();

      if constexpr (kKeys) {
        gradients(i, tile());
        wgmma::fence(dk);
        wgmma::begin();
        S::Query::add_product(dk, ds, shared_address(shared.tiles[tile()]));
        wgmma::commit();
      }
      if (last) {
        wgmma::wait<0>();
        finish_products();
        release();
        return;
      }
      start_scores(i + 1);
      wgmma::wait<1>();
      finish_products();
      release();
      if constexpr (kKeys) {
        start_gradients();
        wgmma::wait<1>();
      } else {
        scored();
        wgmma::wait<0>();
      }
      wgmma::fence(s);
      probabilities(i + 1, tile());
    };

    int i = blocks.skipped;
    if constexpr (kListed) {
      if (blocks.skipped == blocks.count) {  // past the sample's end
        if (pending) drain();
        for (int j = 0; j < blocks.count; ++j) {
          pass_tile(j + 1 == blocks.count);
          release_passed();
        }
        return release_keys();
      }
      if constexpr (kKeysInRegisters<kDim>) {
        S::Key::load_fragments(k, keys, 64 * warpgroup);
        S::Key::load_fragments(v, values, 64 * warpgroup);
        release_keys();
      }
      for (int j = 0; j < blocks.skipped; ++j) pass_tile(false);
      // Products behind a condition would make the compiler wait for each of them. Without pending ones, what comes out of
      // whatever is there is thrown away.
      start_products();
      start_scores(i);
      wgmma::wait<1>();
      finish_products();
      start_gradients();
      if (pending) {
        release();
        store(last_head, last_token, last_left);
      }
      for (int j = 0; j < blocks.skipped; ++j) release_passed();
      chunk = scores_chunk;
      clear();
      wgmma::wait<1>();
      wgmma::fence(s);
      probabilities(i, tile());
#pragma unroll 1
      for (; i + 1 < blocks.count; ++i) step(i, false);
      wgmma::wait<0>();
      wgmma::fence(dp);
      to_left_operand(s, p);
      gradients(i, tile());
      if (!kKeysInRegisters<kDim>) release_keys();
      pending = true;
      last_head = head;
      last_token = place.first + place.row + warp_row;
      last_left = place.length - place.row - warp_row;
    } else {
      if constexpr (kKeysInRegisters<kDim>) {
        S::Key::load_fragments(k, keys, 64 * warpgroup);
        if constexpr (kKeys) S::Key::load_fragments(v, values, 64 * warpgroup);
        release_keys();
      }
      clear();
      for (int j = 0; j < blocks.skipped; ++j) {
        pass_tile(false);
        release_passed();
      }
      if (i < blocks.count) {
        start_scores(i);
        if constexpr (kKeys) {
          start_gradients();
          wgmma::wait<1>();
        } else {
          scored();
          wgmma::wait<0>();
        }
        wgmma::fence(s);
        probabilities(i, tile());
#pragma unroll 1
        for (; i + 1 < blocks.count; ++i) step(i, false);
        step(i, true);
      }
      if (!kKeysInRegisters<kDim>) release_keys();
      store(head, place.first + place.row + warp_row, place.length - place.row - warp_row);
    }
  };

  if constexpr (kListed) {
    for (int u = 0; u < shared.units.count; ++u) {
      Visit next = shared.units.at[u];
      Place place(next);
      if (next.count() == 0) {
        for (int row = place.row + own_row, h = 0; h < 2 && row + 8 * h < place.length; ++h) {
          if (a.dk.present()) zero_quad_row<kDim>(a.dk.row(place.first + row + 8 * h, next.head()), lane % 4);
          zero_quad_row<kDim>(a.dv.row(place.first + row + 8 * h, next.head()), lane % 4);
        }
        continue;
      }
      visit(next.head(), place, place.blocks(place.row + 64 * warpgroup, next));
    }
    if (pending) drain();
  } else {
    Unit unit;
    int head;
    for (int n = 0; units.turn(n, unit, head);) {
      Place place(a, unit);
      visit(head, place, place.blocks(place.row + 64 * warpgroup));
    }
  }
  if (a.dk.present()) zero_rows_of_no_sample<kDim>(a.dk, a.borders, a.tokens, a.heads, thread, kConsumers);
  zero_rows_of_no_sample<kDim>(a.dv, a.borders, a.tokens, a.heads, thread, kConsumers);
}

template <int kDim, bool kListed, bool kKeys>
__global__ void __launch_bounds__(kThreads, 1) key_gradient_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<kDim, kListed>*>(memory);
  if (!kListed && kDim == 128 && a.handled > 0 && a.borders.are_all(a.handled)) {
    after_previous();  // even with nothing to do, this kernel ends behind that one
    return;
  }
  if (threadIdx.x == 0) {
    for (const HeadsMap* map : {&a.q, &a.k, &a.v, &a.d_o}) prefetch_map(map->wide);
    for (int i = 0; i < kKeySlots<kDim>; ++i) {
      shared.key_full[i].init(1);
      shared.key_empty[i].init(kConsumers / 32);
    }
    for (int i = 0; i < Shared<kDim, kListed>::kTiles; ++i) {
      shared.full[i].init(1);
      shared.empty[i].init(kConsumers / 32);
    }
    fence_barrier_init();
  }
  Units units{};
  if constexpr (kListed) {
    find_visits<false>(a.borders, a.lists, a.heads, reinterpret_cast<int*>(shared.tiles), shared.units);
    fence_async_proxy();
  } else {
    static_assert(sizeof shared.tiles >= 2 * kMaxUnits * sizeof(uint32_t), "find_units' scratch");
    units = find_units<kRows, true>(a.borders, a.slots, a.heads, reinterpret_cast<uint32_t*>(shared.tiles), shared.units,
                                    [&](int sample, int block) { return Place(a, {sample, block}).query_blocks(); });
    fence_async_proxy();
  }
  __syncthreads();
  constexpr bool kFewRegisters = kListed && kDim < 128;
  if (threadIdx.x < kWarpgroup) {
    give_registers<kFewRegisters ? kListedProducerRegisters : 24>();
    if constexpr (kListed) {
      if (threadIdx.x < 32) {
        if constexpr (kPooled<kDim, kListed>) produce_pooled(a, shared);
        else produce_listed(a, shared);
      }
    } else {
      if (threadIdx.x == 0) produce(a, shared, units);
    }
  } else {
    take_registers<kFewRegisters ? kListedConsumerRegisters : 240>();
    consume<kDim, kListed, kKeys>(a, shared, units);
    after_previous();  // even with nothing to do, this kernel ends behind that one
  }
}

template <int kDim, bool kListed, bool kKeys = true>
void launch(const Device& device, const pnb_attention_backward_params& p) {
  static_assert(sizeof(Shared<kDim, kListed>) <= 227 * 1024, "shared memory of a multiprocessor");
  static const char* op = "attention_backward";
  int64_t tokens = p.q.shape[0], heads = p.q.shape[1];
  int slots = static_cast<int>(unit_slots(tokens, p.cu_seqlens.shape[0] - 1, kRows));
  Args a{make_heads_map(p.q, kQueries, op),
         make_heads_map(p.k, kRows, op),
         make_heads_map(p.v, kRows, op),
         make_heads_map(p.d_o, kQueries, op),
         make_array_map(p.workspace.data, heads * tokens, kQueries, op),
         Heads<__nv_bfloat16>(p.dk),
         Heads<__nv_bfloat16>(p.dv),
         Borders(p.cu_seqlens),
         Lists::of_keys(p.blocks),
         tokens,
         static_cast<int>(heads),
         slots,
         p.scale,
         all_gradients_length(device, p)};
  auto kernel = key_gradient_kernel<kDim, kListed, kKeys>;
  allow_shared_memory(kernel, sizeof(Shared<kDim, kListed>), op);
  dim3 grid(static_cast<unsigned>(device.multiprocessors));
  pnb::cuda::launch(kernel, {grid, kThreads, sizeof(Shared<kDim, kListed>), stream_of(p.stream), 1, true}, op, a);
}

// By lists dk is computed even where it is not asked for: units are short there, and much of their time is not products.
template <int kDim>
void launch(const Device& device, const pnb_attention_backward_params& p) {
  if (present(p.blocks.indices)) launch<kDim, true>(device, p);
  else if (present(p.dk)) launch<kDim, false>(device, p);
  else launch<kDim, false, false>(device, p);
}

}  // namespace

void key_gradient(const Device& device, const pnb_attention_backward_params& p) {
  switch (p.q.shape[2]) {
    case 64: return launch<64>(device, p);
    case 80: return launch<80>(device, p);
    default: return launch<128>(device, p);
  }
}

}  // namespace pnb::cuda::attention
