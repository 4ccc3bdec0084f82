// Which rows a block of threads works on: units are blocks of rows of one sample, found on the device, heaviest first.
#pragma once

#include "cuda/kernels/attention/lists.cuh"

namespace pnb::cuda::attention {

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

// A unit by lists, as the producer, which looks everything up ahead of time, hands it to the consumers beside its rows.
struct Visit {
  int head;           // -1: there are no more
  int first, length;  // the sample's first row, and its rows
  int row;            // the unit's first row within the sample
  int count;          // blocks in its list
  int last;           // the highest of them
  bool diagonal;      // its own block is one of them: the highest of a list of keys, the lowest of a list of queries
};

// Rows of a unit by lists: one block.
constexpr int kListedRows = 128;

// Registers of a thread where two warpgroups work by lists: looking units up takes the producer more than counting them.
constexpr int kListedProducerRegisters = 56;
constexpr int kListedConsumerRegisters = 224;

// Whether lists, if there are any, are of blocks that the fast kernels take.
inline bool takes_fast_lists(const pnb_attention_blocks& b) { return !present(b.indices) || b.size == kListedRows; }

// All listed units of this block of threads, for its producer: the next one's number and count are on their way while this
// one's tiles are copied. Odd turns run backwards, as in Units.
struct ListedUnits {
  const uint32_t* blocks;  // of slots: sample and block
  Lists lists;
  int total;
  Borders borders;

  __device__ int number(int turn) const {
    int item = turn * gridDim.x + (turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
    return item < total ? lists.order[item] : -1;
  }
  __device__ int count(int number) const { return number < 0 ? 0 : lists.counts[number]; }
  __device__ const int32_t* list(int number) const { return lists.indices + static_cast<int64_t>(number) * lists.width; }

  // `diagonal` is right for lists of keys, whose highest entry is the own block or none is.
  __device__ Visit visit(int number, int count) const {
    uint32_t code = blocks[number % lists.slots];
    int sample = static_cast<int>(code >> 16), block = static_cast<int>(code & 0xffff);
    int first = borders.at[sample];
    int last = count > 0 ? list(number)[count - 1] : -1;
    return {number / lists.slots, first, borders.at[sample + 1] - first, block * kListedRows, count, last, last == block};
  }
};

// Calls each(visit, list) for every unit of this block of threads.
template <typename Each>
__device__ __forceinline__ void for_each_listed(const ListedUnits& units, Each&& each) {
  int number = units.number(0), count = units.count(number);
  for (int turn = 1; number >= 0; ++turn) {
    int next = units.number(turn);
    Visit visit = units.visit(number, count);
    int next_count = units.count(next);
    each(visit, units.list(number));
    number = next;
    count = next_count;
  }
}

// Fills the table of slots. Called by all threads, which then have to synchronise.
__device__ inline ListedUnits find_listed_units(const Borders& rows, const Lists& lists, int heads, UnitTable& table) {
  for (int i = threadIdx.x; i < lists.slots && rows.samples > 0; i += blockDim.x) {
    SlotBlock at(rows, i, kListedRows);
    table.sorted[i] = static_cast<uint32_t>(at.sample) << 16 | static_cast<uint32_t>(at.block);
  }
  return {table.sorted, lists, rows.samples > 0 ? heads * lists.slots : 0, rows};
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
