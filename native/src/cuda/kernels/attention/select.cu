#include <algorithm>
#include <type_traits>

#include "cuda/kernels/attention/attention.h"
#include "cuda/kernels/attention/lists.cuh"
#include "cuda/kernels/attention/order.h"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"

// A block of threads chooses for one head of one sample. Up to 128 blocks that may be chosen are compared with each other: each
// finds how many come before it, and the sum of their masses. Of more, the range of masses that the lowest one kept lies in is
// narrowed first, by asking for what lies above three values at a time; samples of few blocks have a kernel without that. Sums
// are of doubles in a fixed order. What the lists came to makes their orders and the summary (order.h).

namespace pnb::cuda {

namespace attention {

namespace {

constexpr int kMostBlocks = 128;  // of a sample
constexpr int kWords = kMostBlocks / 32;
constexpr int kPivots = 3;
constexpr int kMostThreads = 1024;
constexpr int kFew = 128;       // what is compared with each other
constexpr int kFewBlocks = 17;  // of a sample, of which not more than that may be chosen

struct Select {
  const float* mass;     // [heads, slots, width], or
  const float* table;    // [heads, width, width]
  const float* budgets;  // or NULL
  Borders borders;
  int32_t *indices, *counts, *t_indices, *t_counts;
  Outcome* outcomes;  // [heads, samples]
  int slots, width, size_log;
  float coverage;
};

// What a block of threads chooses from.
struct Own {
  int head, sample, blocks, slot, end_slot;
  int possible, always;  // blocks of the triangle, and what is kept of them anyway

  // Borders may be read before the kernels launched earlier have ended: none of this library's writes them.
  __device__ explicit Own(const Select& p) : head(blockIdx.x), sample(blockIdx.y), blocks(0), slot(0), end_slot(p.slots) {
    if (p.borders.samples > 0) {
      int first = p.borders.at[sample], next = p.borders.at[sample + 1];
      blocks = (next - first + (1 << p.size_log) - 1) >> p.size_log;
      slot = (first >> p.size_log) + sample;
      if (sample + 1 < p.borders.samples) end_slot = (next >> p.size_log) + sample + 1;
    }
    possible = blocks * (blocks + 1) / 2;
    always = 2 * blocks - 1;
  }

  __device__ int64_t list(const Select& p) const { return static_cast<int64_t>(head) * p.slots + slot; }
  __device__ Outcome& outcome(const Select& p) const {
    return p.outcomes[static_cast<int64_t>(head) * max(p.borders.samples, 1) + sample];
  }
  __device__ const float* masses(const Select& p) const {
    return p.table != nullptr ? p.table + static_cast<int64_t>(head) * p.width * p.width : p.mass + list(p) * p.width;
  }
  // How many may be chosen.
  __device__ int room(const Select& p) const {
    float budget = p.budgets == nullptr ? 1.0f : p.budgets[head];
    return max(static_cast<int>(__fmul_rn(budget, static_cast<float>(possible))), always) - always;
  }
  // Slots of no block, and the outcome of a sample without any.
  __device__ void clear_rest(const Select& p) const {
    int32_t* counts = p.counts + static_cast<int64_t>(head) * p.slots;
    int32_t* t_counts = p.t_counts + static_cast<int64_t>(head) * p.slots;
    for (int i = slot + blocks + static_cast<int>(threadIdx.x); i < end_slot; i += static_cast<int>(blockDim.x)) {
      counts[i] = t_counts[i] = 0;
    }
    if (blocks == 0 && threadIdx.x == 0) outcome(p) = {};
  }
};

// What may be chosen. Of two the greater key comes first: the mass's bits, which are ordered as masses are, then the place,
// complemented.
struct alignas(16) Candidate {
  uint64_t key;
  double mass;

  __device__ static Candidate of(uint32_t bits, int row, int column) {
    uint32_t place = row * kMostBlocks + column;
    return {static_cast<uint64_t>(bits) << 32 | ~place, __uint_as_float(bits)};
  }
  __device__ int row() const { return static_cast<int>(~static_cast<uint32_t>(key) / kMostBlocks); }
  __device__ int column() const { return static_cast<int>(~static_cast<uint32_t>(key) % kMostBlocks); }
};

// How far it goes: blocks are chosen in their order while fewer are than `room`, and their masses' sum is below `target`.
struct Limits {
  double target, whole;
  int room, wanted;  // wanted: have a mass
  int possible, always;

  __device__ bool open(double sum, int count) const { return count < room && sum < target; }
  __device__ Outcome outcome(double sum, int count) const {
    return {sum, whole, always + count, possible, count < wanted && sum < target, 1};
  }
};

// Chooses among candidates, before which so many with such a sum come; `last` of all have a mass, with those before. By
// the block's first 2 kFew threads, two a candidate. There is one that is kept.
template <typename Keep>
__device__ __forceinline__ void choose_few(const Candidate* all, int few, double sum, int before, int last,
                                           const Limits& limits, Outcome& outcome, Keep&& keep) {
  int place = static_cast<int>(threadIdx.x) / 2, half = static_cast<int>(threadIdx.x) % 2;
  Candidate own = place < few ? all[place] : Candidate{};
  int count = 0;
  double more = 0.0, other_more = 0.0;
#pragma unroll 2
  for (int i = half; i < few; i += 4) {
    Candidate one = all[i], other = i + 2 < few ? all[i + 2] : Candidate{};
    if (one.key > own.key) more += one.mass, ++count;
    if (other.key > own.key) other_more += other.mass, ++count;
  }
  more += other_more;
  count += __shfl_xor_sync(~0u, count, 1);
  more += __shfl_xor_sync(~0u, more, 1);
  sum += more;
  before += count;
  if (half > 0 || place >= few || !(own.mass > 0) || !limits.open(sum, before)) return;
  keep(own.row(), own.column());
  sum += own.mass;
  ++before;
  if (before == last || !limits.open(sum, before)) outcome = limits.outcome(sum, before);
}

// By a warp a row, of so many.
template <int kWide, int kPitch>
__device__ __forceinline__ void write_lists(const uint32_t (*bits)[kPitch], int n, int32_t* indices, int32_t* counts, int width,
                                            int warp, int warps) {
  int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 1
  for (int row = warp; row < n; row += warps) {
    int32_t* list = indices + row * width;
    int count = 0;
#pragma unroll
    for (int w = 0; w < kWide; ++w) {
      uint32_t word = bits[row][w];
      if ((word >> lane & 1u) != 0) list[count + __popc(word & ((1u << lane) - 1))] = 32 * w + lane;
      count += __popc(word);
    }
    if (lane == 0) counts[row] = count;
  }
}

// Half of the warps write what was chosen, the others the same transposed.
template <int kWide, int kPitch>
__device__ __forceinline__ void write_both(const Select& p, const Own& own, const uint32_t (*kept)[kPitch],
                                           const uint32_t (*t_kept)[kPitch]) {
  int warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  bool transposed = warp % 2 == 1;
  int64_t list = own.list(p);
  write_lists<kWide>(transposed ? t_kept : kept, own.blocks, (transposed ? p.t_indices : p.indices) + list * p.width,
                     (transposed ? p.t_counts : p.counts) + list, p.width, warp / 2, warps / 2);
}

constexpr int kFewThreads = 2 * kFew;

// Of samples of at most kFewBlocks: a thread has a block of the triangle.
__global__ void __launch_bounds__(kFewThreads) select_few_kernel(Select p) {
  __shared__ Candidate few[kFew];
  __shared__ uint32_t kept[kFewBlocks][1], t_kept[kFewBlocks][1];
  __shared__ double sums[2][kFewThreads / kWarp];
  __shared__ int counts[kFewThreads / kWarp];
  let_next_begin();
  Own own(p);
  int n = own.blocks, thread = threadIdx.x;
  int i = static_cast<int>((sqrtf(static_cast<float>(8 * thread + 1)) - 1.0f) * 0.5f), j = thread - i * (i + 1) / 2;
  bool inside = i < n, always_kept = j == 0 || j == i;
  if (thread < n) {
    kept[thread][0] = 1u | 1u << thread;
    t_kept[thread][0] = thread == 0 ? (1u << n) - 1 : 1u << thread;
  }
  after_previous();
  own.clear_rest(p);
  if (n == 0) return;
  float mass = inside ? own.masses(p)[i * p.width + j] : 0.0f;
  int room = own.room(p);
  mass = mass > 0.0f ? mass : 0.0f;
  if (inside && !always_kept) few[(i - 1) * (i - 2) / 2 + j - 1] = Candidate::of(__float_as_uint(mass), i, j);
  auto add = [](double x, double y) { return x + y; };
  double whole = warp_combine<double>(mass, add), base = warp_combine<double>(always_kept ? mass : 0.0f, add);
  int wanted = __popc(__ballot_sync(~0u, !always_kept && mass > 0.0f));
  if (thread % kWarp == 0) sums[0][thread / kWarp] = whole, sums[1][thread / kWarp] = base, counts[thread / kWarp] = wanted;
  __syncthreads();
  whole = base = 0.0;
  wanted = 0;
#pragma unroll
  for (int w = 0; w < kFewThreads / kWarp; ++w) whole += sums[0][w], base += sums[1][w], wanted += counts[w];
  Limits limits{p.coverage == 1.0f ? INFINITY : static_cast<double>(p.coverage) * whole, whole, room, wanted, own.possible,
                own.always};
  if (wanted > 0 && limits.open(base, 0)) {
    choose_few(few, own.possible - own.always, base, 0, wanted, limits, own.outcome(p), [&](int row, int column) {
      atomicOr(kept[row], 1u << column);
      atomicOr(t_kept[column], 1u << row);
    });
  } else if (thread == 0) {
    own.outcome(p) = limits.outcome(base, 0);
  }
  __syncthreads();
  write_both<1>(p, own, kept, t_kept);
}

// Sums and numbers of the masses above some values.
struct Above {
  double sum[kPivots];
  int count[kPivots];
};

struct Shared {
  uint32_t kept[kMostBlocks][kWords], t_kept[kMostBlocks][kWords];  // bits
  Candidate few[kFew];
  Above parts[2][kMostThreads / kWarp];
  int in_range[kMostBlocks];  // of a row
  uint32_t most, least;
};

// Every thread gets the same sums. Two calls in a row use different parts: one barrier a call is enough.
__device__ Above block_above(Above own, Shared& shared, int& turn) {
  int warp = threadIdx.x / kWarp;
#pragma unroll
  for (int k = 0; k < kPivots; ++k) {
    own.sum[k] = warp_combine(own.sum[k], [](double x, double y) { return x + y; });
    own.count[k] = __reduce_add_sync(~0u, own.count[k]);
  }
  Above* parts = shared.parts[turn];
  turn ^= 1;
  if (threadIdx.x % kWarp == 0) parts[warp] = own;
  __syncthreads();
  Above all = parts[0];
  for (int i = 1; i < static_cast<int>(blockDim.x) / kWarp; ++i) {
#pragma unroll
    for (int k = 0; k < kPivots; ++k) {
      all.sum[k] += parts[i].sum[k];
      all.count[k] += parts[i].count[k];
    }
  }
  return all;
}

constexpr int kRows = 4;  // of a warp

// A warp has every so-manieth row; its lanes have the columns of each of kWide words. There are 8 kWide warps.
template <int kWide>
__global__ void __launch_bounds__(8 * kWide * kWarp) select_kernel(Select p) {
  __shared__ Shared shared;
  let_next_begin();
  constexpr int kEach = kRows * kWide;
  Own own(p);
  int n = own.blocks, threads = blockDim.x, thread = threadIdx.x;
  int lane = thread % kWarp, warp = thread / kWarp, warps = threads / kWarp;
  if (thread == 0) shared.most = 0, shared.least = ~0u;
  __syncthreads();
  after_previous();
  own.clear_rest(p);
  if (n == 0) return;

  const float* masses = own.masses(p);
  int room = own.room(p);
  uint32_t keys[kEach];  // of what may be chosen; floats of one sign are ordered as their bits are
  Above above{};
  int turn = 0;
  uint32_t most = 0, least = ~0u;
  float values[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    int i = e / kWide * warps + warp, j = e % kWide * kWarp + lane;
    values[e] = i < n && j <= i ? masses[i * p.width + j] : 0.0f;
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    int i = e / kWide * warps + warp, j = e % kWide * kWarp + lane;
    float mass = values[e] > 0.0f ? values[e] : 0.0f;
    bool always_kept = j == 0 || j == i;
    keys[e] = always_kept ? 0 : __float_as_uint(mass);
    above.sum[0] += mass;
    above.sum[1] += always_kept ? mass : 0.0f;
    above.sum[2] += always_kept ? 0.0f : mass;
    above.count[0] += keys[e] != 0;
    most = max(most, keys[e]);
    least = min(least, keys[e] == 0 ? ~0u : keys[e]);
  }
  most = __reduce_max_sync(~0u, most);
  least = __reduce_min_sync(~0u, least);
  if (lane == 0) atomicMax(&shared.most, most), atomicMin(&shared.least, least);
  Above all = block_above(above, shared, turn);
  double whole = all.sum[0], base = all.sum[1];
  int wanted = all.count[0];
  Limits limits{p.coverage == 1.0f ? INFINITY : static_cast<double>(p.coverage) * whole, whole, room, wanted, own.possible,
                own.always};

  // Kept are those above `high`, and the first ones of the `few` in (low, high].
  uint32_t low = 0, high = 0x7fffffff;
  double high_sum = base;
  int high_count = 0, few = 0;
  if (wanted > 0 && limits.open(base, 0)) {
    if (limits.open(base + all.sum[2], wanted)) {
      high = 0, high_sum = base + all.sum[2], high_count = wanted;
    } else {
      // What is above `high` leaves it open; what is above `low` does not.
      low = shared.least - 1, high = shared.most;
      int low_count = wanted;
      while (high - low > 1 && low_count - high_count > kFew) {
        uint32_t pivots[kPivots];
        above = {};
#pragma unroll
        for (int k = 0; k < kPivots; ++k) {
          pivots[k] = low + static_cast<uint32_t>(static_cast<uint64_t>(high - low) * (k + 1) / (kPivots + 1));
        }
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          double mass = __uint_as_float(keys[e]);
#pragma unroll
          for (int k = 0; k < kPivots; ++k) {
            if (keys[e] > pivots[k]) {
              above.sum[k] += mass;
              ++above.count[k];
            }
          }
        }
        above = block_above(above, shared, turn);
#pragma unroll
        for (int k = kPivots - 1; k >= 0; --k) {
          if (limits.open(base + above.sum[k], above.count[k])) {
            high = pivots[k];
            high_sum = base + above.sum[k];
            high_count = above.count[k];
          } else {
            low = pivots[k];
            low_count = above.count[k];
            break;
          }
        }
      }
      few = low_count - high_count;
    }
  }

  // Places of those in range, row by row, and what is above it, as bits.
  auto in_range = [&](uint32_t key) { return few > 0 && key > low && key <= high; };
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    int number = 0;
#pragma unroll
    for (int w = 0; w < kWide; ++w) number += __popc(__ballot_sync(~0u, in_range(keys[r * kWide + w])));
    if (lane == 0) shared.in_range[r * warps + warp] = number;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    int i = r * warps + warp, rank = 0;
    for (int row = lane; row < i; row += kWarp) rank += shared.in_range[row];
    rank = __reduce_add_sync(~0u, rank);
#pragma unroll
    for (int w = 0; w < kWide; ++w) {
      int j = w * kWarp + lane;
      uint32_t key = keys[r * kWide + w];
      bool picked = key > high || j == 0 || j == i;
      uint32_t same = __ballot_sync(~0u, in_range(key));
      if ((same >> lane & 1u) != 0) {
        int place = rank + __popc(same & ((1u << lane) - 1));
        if (few <= kFew) {
          shared.few[place] = Candidate::of(key, i, j);
        } else {
          // All are equal.
          double mass = __uint_as_float(key);
          auto open = [&](int at) { return limits.open(high_sum + at * mass, high_count + at); };
          picked = open(place);
          if (picked && (place + 1 == few || !open(place + 1))) {
            own.outcome(p) = limits.outcome(high_sum + (place + 1) * mass, high_count + place + 1);
          }
        }
      }
      rank += __popc(same);
      uint32_t word = __ballot_sync(~0u, i < n && picked);
      if (lane == 0 && i < n) shared.kept[i][w] = word;
    }
  }
  __syncthreads();
  if (few == 0) {
    if (thread == 0) own.outcome(p) = limits.outcome(high_sum, high_count);
  } else if (few <= kFew && thread < 2 * kFew) {
    choose_few(shared.few, few, high_sum, high_count, high_count + few, limits, own.outcome(p),
               [&](int row, int column) { atomicOr(&shared.kept[row][column / kWarp], 1u << column % kWarp); });
  }
  __syncthreads();
  for (int k = thread; k < n * kWide; k += threads) {
    int column = k % n, from = k / n * kWarp;
    uint32_t word = 0;
    for (int r = 0; r < min(kWarp, n - from); ++r) word |= (shared.kept[from + r][column / kWarp] >> column % kWarp & 1u) << r;
    shared.t_kept[column][k / n] = word;
  }
  __syncthreads();
  write_both<kWide>(p, own, shared.kept, shared.t_kept);
}

}  // namespace

}  // namespace attention

uint64_t select_attention_workspace(const pnb_select_attention_params& p) {
  int64_t samples = std::max<int64_t>(1, p.cu_seqlens.shape[0] - 1);
  return static_cast<uint64_t>(p.blocks.indices.shape[0] * samples) * sizeof(attention::Outcome);
}

void select_attention(const Device& device, const pnb_select_attention_params& p) {
  using namespace attention;
  static const char* op = "select_attention";
  const pnb_attention_blocks& blocks = p.blocks;
  int64_t heads = blocks.indices.shape[0], samples = std::max<int64_t>(1, p.cu_seqlens.shape[0] - 1);
  Select args{static_cast<const float*>(p.mass.data),
              static_cast<const float*>(p.table.data),
              static_cast<const float*>(p.budgets.data),
              Borders(p.cu_seqlens),
              static_cast<int32_t*>(blocks.indices.data),
              static_cast<int32_t*>(blocks.counts.data),
              static_cast<int32_t*>(blocks.t_indices.data),
              static_cast<int32_t*>(blocks.t_counts.data),
              static_cast<Outcome*>(p.workspace.data),
              static_cast<int>(blocks.indices.shape[1]),
              static_cast<int>(blocks.indices.shape[2]),
              blocks.size == 64 ? 6 : 7,
              p.coverage};
  int64_t longest = ceil_div(std::min(p.max_seqlen, p.tokens), blocks.size);
  if (longest > kMostBlocks) {
    fail(PNB_ERROR_UNSUPPORTED, "%s: expected samples of at most %d blocks, found a max_seqlen of %lld in blocks of %d", op,
         kMostBlocks, static_cast<long long>(p.max_seqlen), blocks.size);
  }
  if (heads == 0) return;
  cudaStream_t stream = stream_of(p.stream);
  dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(samples));
  auto choose = [&](auto wide) {
    constexpr int kWide = decltype(wide)::value;
    static_assert(8 * kWide * kRows >= 32 * kWide, "every row has a warp");
    launch(select_kernel<kWide>, {grid, 8 * kWide * kWarp, 0, stream, 1, true}, op, args);
  };
  if (longest <= kFewBlocks) launch(select_few_kernel, {grid, kFewThreads, 0, stream, 1, true}, op, args);
  else if (longest <= 32) choose(std::integral_constant<int, 1>());
  else if (longest <= 64) choose(std::integral_constant<int, 2>());
  else choose(std::integral_constant<int, 4>());

  write_orders(device,
               {args.counts, args.t_counts, static_cast<int32_t*>(blocks.order.data), heads * args.slots,
                static_cast<int>(longest), args.outcomes, heads * samples, static_cast<float*>(p.summary.data)},
               stream, op);
}

}  // namespace pnb::cuda
