// Which rows a block of threads works on: units are blocks of rows of one sample, found on the device, heaviest first.
#pragma once

#include "cuda/kernels/attention/lists.cuh"
#include "cuda/kernels/hopper.cuh"
#include "cuda/runtime/device.h"

namespace pnb::cuda::attention {

using namespace hopper;

// Units of a call at most, of all samples together; 16 KB of shared memory.
constexpr int kMaxUnits = 4096;

// Rows of a unit at least, in every kernel; they bound the number of units.
constexpr int kFewestRows = 128;

// Slots for units of so many rows: sample s's block j is number (border of s) / rows + s + j, which no other unit has.
inline int64_t unit_slots(int64_t tokens, int64_t samples, int rows) { return tokens / rows + samples; }

struct Unit {
  int sample, block;
};

// All of a call's units times its heads. Where there are many, they are taken as pairs of one head's heaviest and lightest,
// next heaviest and next lightest: pairs of a sample cost the same, so that they can be taken head by head, and the rows that
// a head's units share come from the L2 cache. Taken heaviest first over all heads, they come from memory time and again, and
// reading takes longer than the products. Few units are taken heaviest first.
struct Units {
  const uint32_t* sorted;  // units or, one after another for each sample, pairs
  int count, heads, rows;
  Borders borders;
  bool paired;

  // The next work of this block of threads; n is 0 at first. False when there is none left. Odd turns run backwards, so that
  // who got the heaviest of one turn gets the lightest of the next.
  __device__ bool turn(int& n, Unit& unit, int& head) const {
    int blocks = gridDim.x, self = blockIdx.x;
    int turn = paired ? n / 2 : n;
    int item = turn * blocks + (turn % 2 == 0 ? self : blocks - 1 - self);
    if (item >= count * heads) return false;
    uint32_t code = sorted[item / heads];
    unit = {static_cast<int>(code >> 16), static_cast<int>(code & 0xffff)};
    head = item % heads;
    if (!paired) {
      ++n;
      return true;
    }
    int last = (borders.at[unit.sample + 1] - borders.at[unit.sample] + rows - 1) / rows - 1;
    int pairs = last / 2 + 1;
    int first = item / heads - unit.block;  // of the sample's pairs
    head = (item - first * heads) / pairs;
    int pair = (item - first * heads) % pairs;
    unit.block = n % 2 == 0 ? pair : last - pair;
    n += pair == last - pair ? 2 : 1;
    return true;
  }
};

// Shared memory that the units stay in.
struct UnitTable {
  uint32_t sorted[kMaxUnits];
  int count, units;
};

// From so many units for each block of threads on, they are paired: with fewer, single ones spread better.
constexpr int kPairedFrom = 6;

// The head size from which a kernel whose units are queries may pair them. With smaller heads the L2 cache keeps up, and pairs
// lose up to 10%; units of keys gain at every size (jmh/results/h200-attention.md).
constexpr int kPairedQueriesFrom = 128;

// Finds the units of every sample and sorts them by falling cost(sample, block) >= 1, which is linear in the block. Called by
// all threads, which synchronise at its end; scratch holds 2 * slots entries.
template <int kRows, bool kMayPair, typename Cost>
__device__ Units find_units(const Borders& rows, int slots, int heads, uint32_t* scratch, UnitTable& table, Cost&& cost) {
  uint32_t* costs = scratch;
  uint32_t* codes = scratch + slots;
  for (int i = threadIdx.x; i < slots; i += blockDim.x) costs[i] = 0;
  if (threadIdx.x == 0) table.count = table.units = 0;
  __syncthreads();
  auto blocks_of = [&](int s) { return (rows.at[s + 1] - rows.at[s] + kRows - 1) / kRows; };
  for (int s = threadIdx.x; s < rows.samples; s += blockDim.x) {
    if (int blocks = blocks_of(s); blocks > 0) atomicAdd(&table.units, blocks);
  }
  __syncthreads();
  bool paired = kMayPair && table.units * heads >= kPairedFrom * static_cast<int>(gridDim.x);
  for (int s = threadIdx.x; s < rows.samples; s += blockDim.x) {
    int first = rows.at[s], blocks = blocks_of(s);
    int entries = paired ? (blocks + 1) / 2 : blocks;
    for (int j = 0; j < entries; ++j) {
      int slot = first / kRows + s + j;
      costs[slot] = paired ? cost(s, 0) + cost(s, blocks - 1) : cost(s, j);
      codes[slot] = static_cast<uint32_t>(s) << 16 | j;
    }
    if (entries > 0) atomicAdd(&table.count, entries);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < slots; i += blockDim.x) {
    uint32_t own = costs[i];
    if (own == 0) continue;
    int rank = 0;
#pragma unroll 8
    for (int j = 0; j < slots; ++j) rank += costs[j] > own || (costs[j] == own && j < i);
    table.sorted[rank] = codes[i];
  }
  __syncthreads();
  return {table.sorted, table.count, heads, kRows, rows, paired};
}

// Rows of a unit by lists: one block.
constexpr int kListedRows = 128;

// Registers of a thread where two warpgroups work by lists: looking units up takes the producer more than counting them.
constexpr int kListedProducerRegisters = 56;
constexpr int kListedConsumerRegisters = 224;

// A unit by lists: a block of rows of one head, and what there is to know of its list. 16 bytes.
struct alignas(16) Visit {
  int first, length;      // the sample's first row, and its rows
  uint32_t place, blocks;

  Visit() = default;
  // `own` of the list's entries is the unit's own block, if it is in the list at all.
  __device__ Visit(int first, int length, int head, int block, int count, int last, int own)
      : first(first),
        length(length),
        place(static_cast<uint32_t>(head) << 16 | static_cast<uint32_t>(block)),
        blocks(static_cast<uint32_t>(count) << 16 | static_cast<uint32_t>(last) << 1 | (own == block ? 1 : 0)) {}

  __device__ int head() const { return static_cast<int>(place >> 16); }
  __device__ int row() const { return static_cast<int>(place & 0xffff) * kListedRows; }  // the unit's first within the sample
  __device__ int count() const { return static_cast<int>(blocks >> 16); }
  __device__ int last() const { return static_cast<int>(blocks >> 1 & 0x7fff); }  // the highest entry
  // The own block is one of the list: the highest of a list of keys, the lowest of a list of queries.
  __device__ bool diagonal() const { return (blocks & 1) != 0; }
};

// All listed units of this block of threads, in shared memory. Looked up once, by all threads at the same time: one after
// another, the three loads that a unit's list is found by take longer than its products.
struct VisitTable {
  Visit at[kMaxVisits + 1];  // one more may be read ahead
  int number[kMaxVisits];    // head * slots + slot
  int count;
};

// Finds the numbers of this block of threads' units and counts them. Without shares they are taken in turns, of which odd ones
// run backwards, as in Units.
__device__ inline void find_numbers(const int32_t* order, int total, int* numbers, int& count) {
  int blocks = gridDim.x, self = blockIdx.x;
  auto entry = [&](int i) { return i < total ? order[i] : -1; };
  auto turn = [&](int n) { return entry(n * blocks + (n % 2 == 0 ? self : blocks - 1 - self)); };
  // Asked for at once: which of them matter is known when they are there.
  int32_t own = entry(self), next = entry(self + 1), first = turn(threadIdx.x);
  if (own >= kSharedEntry) {
    // Shares that selection made never hold more than there is room for.
    int begin = begin_of_entry(own), end = min(self + 1 < blocks ? begin_of_entry(next) : total, begin + kMaxVisits);
    for (int i = begin + threadIdx.x; i < end && order[i] >= 0; i += blockDim.x) {
      numbers[i - begin] = number_of_entry(order[i]);
      atomicAdd(&count, 1);
    }
    return;
  }
  for (int i = threadIdx.x; i < kMaxVisits && first >= 0; i += blockDim.x, first = turn(i)) {
    numbers[i] = first;
    atomicAdd(&count, 1);
  }
}

// Brings lists into the L2 cache, each block of threads a part, while it is found out which of them are whose.
__device__ inline void prefetch_lists(const Lists& lists, int total) {
  constexpr int kLine = 128;
  auto prefetch = [](const int32_t* from, int64_t count, int64_t line) {
    const char* at = reinterpret_cast<const char*>(from) + line * kLine;
    if (line * kLine < count * static_cast<int64_t>(sizeof *from)) asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
  };
  int64_t line = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  prefetch(lists.counts, total, line);
  prefetch(lists.indices, static_cast<int64_t>(total) * lists.width, line);
}

// Called by all threads, which synchronise at its end; scratch holds kMaxVisits numbers. A block of threads works its units off
// head by head, so that all of the grid is near the same head at any time and finds its rows in the L2 cache. kKeys: the lists
// are of keys; the others, which come after them in the backward pass, begin with the last head, whose rows the L2 cache still
// holds.
template <bool kKeys>
__device__ void find_visits(const Borders& rows, const Lists& lists, int heads, int* scratch, VisitTable& table) {
  int total = rows.samples > 0 ? heads * lists.slots : 0;
  if (threadIdx.x == 0) table.count = 0;
  // The kernel that works on keys finds its units while the one before it ends, and has no registers for this.
  if constexpr (kKeys) prefetch_lists(lists, total);
  __syncthreads();
  find_numbers(lists.order, total, scratch, table.count);
  __syncthreads();
  for (int i = threadIdx.x; i < table.count; i += blockDim.x) {
    int number = scratch[i];
    int count = lists.counts[number];
    const int32_t* list = lists.indices + static_cast<int64_t>(number) * lists.width;
    SlotBlock at(rows, number % lists.slots, kListedRows);
    int first = rows.at[at.sample], length = rows.at[at.sample + 1] - first;
    int last = count > 0 ? list[count - 1] : 0;
    int own = count == 0 ? -1 : kKeys ? last : list[0];
    int rank = 0;
    for (int j = 0; j < table.count; ++j) rank += kKeys ? scratch[j] < number : scratch[j] > number;
    table.at[rank] = Visit(first, length, number / lists.slots, at.block, count, last, own);
    table.number[rank] = number;
  }
  __syncthreads();
}

// For the producer's warp: calls each(visit, entry) for every unit that has a list; entry(i) is what its list says i-th, of keys
// from the end on. A list is on its way while the one before is used.
template <bool kKeys, typename Each>
__device__ __forceinline__ void for_each_visit(const Lists& lists, const VisitTable& table, Each&& each) {
  int lane = threadIdx.x % 32;
  auto load = [&](int u, int from) PNB_INLINE {
    if (u >= table.count) return 0;
    int count = table.at[u].count(), i = from + lane;
    if (i >= count) return 0;
    return lists.indices[static_cast<int64_t>(table.number[u]) * lists.width + (kKeys ? count - 1 - i : i)];
  };
  int next = load(0, 0);
  for (int u = 0; u < table.count; ++u) {
    int entries = next;
    next = load(u + 1, 0);
    Visit visit = table.at[u];
    if (visit.count() == 0) continue;
    each(visit, [&](int i) PNB_INLINE {
      if (i % 32 == 0 && i > 0) entries = load(u, i);
      return __shfl_sync(0xffffffff, entries, i % 32);
    });
  }
}

// Whether lists, if there are any, are such that the fast kernels take them.
inline bool takes_fast_lists(const Device& device, const pnb_attention_blocks& b) {
  if (!present(b.indices)) return true;
  int64_t room = static_cast<int64_t>(kMaxVisits) * device.multiprocessors;  // each has a block of threads
  return b.size == kListedRows && b.indices.shape[0] * b.indices.shape[1] <= room &&
         b.indices.shape[0] <= INT16_MAX && b.indices.shape[2] <= INT16_MAX;
}

// The key blocks that a unit's query rows attend to, nearest first: those that these rows do not see, those that need a mask,
// those seen whole. This is all that a kernel's loop asks of its mask.
struct CausalKeyBlocks {
  int count;    // of the unit
  int skipped;  // the first so many are not seen by the rows in question
  int masked;   // the first so many are not seen whole

  __device__ int at(int i) const { return count - 1 - i; }
};

// The same of a list, from its end on. Only blocks that need a mask have a place; where the others are matters to nobody.
struct ListedKeyBlocks {
  int count, skipped, masked;
  int own;  // the tile that is the first where there is a masked one

  __device__ int at(int i) const { return i < masked ? own - i : 0; }
};

// The query blocks that see a unit's keys, nearest first.
struct CausalQueryBlocks {
  int first, count;
  int skipped;  // the first so many see none of the keys in question
  int masked;   // the first so many do not see all of them

  __device__ int at(int i) const { return first + i; }
};

// The same of a list. Only tiles that need a mask, for their keys or for the sample's end, have a place.
struct ListedQueryBlocks {
  int first, count, skipped, masked;
  int last;       // the tile that the list's highest block begins with
  int last_from;  // its number

  __device__ int at(int i) const { return i >= last_from ? last + i - last_from : i < masked ? first + i : 0; }
};

// A row of a head becomes zero; by four threads, of which this is `part`.
template <int kDim>
__device__ __forceinline__ void zero_quad_row(__nv_bfloat16* row, int part) {
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) reinterpret_cast<uint4*>(row)[4 * i + part] = uint4{0, 0, 0, 0};
  if (kDim % 32 != 0 && part < kDim % 32 / 8) reinterpret_cast<uint4*>(row)[kDim / 32 * 4 + part] = uint4{0, 0, 0, 0};
}

// Rows past the last sample, written zero by all of the grid's threads; `thread` of `threads` within the block.
template <int kDim, typename T>
__device__ void zero_rows_of_no_sample(const Heads<T>& t, const Borders& rows, int64_t tokens, int heads, int thread,
                                       int threads) {
  constexpr int kChunks = kDim * sizeof(T) / 16;
  int64_t from = rows.at[rows.samples];
  int64_t chunks = (tokens - from) * heads * kChunks;
  int64_t step = static_cast<int64_t>(gridDim.x) * threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + thread; i < chunks; i += step) {
    int64_t row = i / kChunks;
    reinterpret_cast<uint4*>(t.row(from + row / heads, row % heads))[i % kChunks] = uint4{0, 0, 0, 0};
  }
}

}  // namespace pnb::cuda::attention
