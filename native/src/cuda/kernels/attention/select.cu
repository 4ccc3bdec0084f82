#include <algorithm>
#include <type_traits>

#include "cuda/kernels/attention/attention.h"
#include "cuda/kernels/attention/lists.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"

// A block of threads chooses for one head of one sample. Its masses stay in registers; the lowest one that is kept is found by
// asking for what lies above three values at a time, as sums of doubles in a fixed order. A second kernel sorts what the lists
// came to and adds up the summary.

namespace pnb::cuda {

namespace attention {

namespace {

constexpr int kMostBlocks = 128;  // of a sample
constexpr int kWords = kMostBlocks / 32;
constexpr int kPivots = 3;
constexpr int kMostThreads = 1024;

struct Outcome {
  double covered, whole;  // sums of masses
  int kept, possible, cut, lists;
};

struct Select {
  const float* mass;     // [heads, slots, width], or
  const float* table;    // [heads, width, width]
  const float* budgets;  // or NULL
  Borders borders;
  int32_t *indices, *counts, *t_indices, *t_counts;
  Outcome* outcomes;  // [heads, samples]
  int slots, width, size;
  float coverage;
};

// Sums and numbers of the masses above some values.
struct Above {
  double sum[kPivots];
  int count[kPivots];
};

struct Shared {
  uint32_t kept[kMostBlocks][kWords], t_kept[kMostBlocks][kWords];  // bits
  Above parts[2][kMostThreads / kWarp];
  int equals[kMostBlocks];  // of a row
  uint32_t found;
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

// By a warp a row.
__device__ __noinline__ void write_lists(const uint32_t (*bits)[kWords], int n, int32_t* indices, int32_t* counts, int width) {
  int lane = static_cast<int>(threadIdx.x) % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  for (int row = static_cast<int>(threadIdx.x) / kWarp; row < n; row += warps) {
    int32_t* to = indices + row * width;
    for (int w = 0; w < kWords; ++w) {
      uint32_t word = bits[row][w];
      int before = __popc(word & ((1u << lane) - 1));
      if ((word >> lane & 1u) != 0) to[before] = 32 * w + lane;
      to += __popc(word);
    }
    if (lane == 0) counts[row] = static_cast<int32_t>(to - (indices + row * width));
  }
}

constexpr int kRows = 4;  // of a warp

// A warp has every so-manieth row; its lanes have the columns of each of kWide words. There are 8 kWide warps.
template <int kWide>
__global__ void __launch_bounds__(kMostThreads) select_kernel(Select p) {
  __shared__ Shared shared;
  let_next_begin();
  int head = blockIdx.x, sample = blockIdx.y, threads = blockDim.x;
  constexpr int kEach = kRows * kWide;
  int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, warps = threads / kWarp;
  for (int i = threadIdx.x; i < kMostBlocks * kWords; i += threads) (&shared.kept[0][0])[i] = (&shared.t_kept[0][0])[i] = 0;
  if (threadIdx.x == 0) shared.found = 0;
  after_previous();
  bool any = p.borders.samples > 0;
  int n = any ? (p.borders.at[sample + 1] - p.borders.at[sample] + p.size - 1) / p.size : 0;
  int slot = any ? first_slot(p.borders, sample, p.size) : 0;
  int end = sample + 1 < p.borders.samples ? first_slot(p.borders, sample + 1, p.size) : p.slots;
  int32_t* counts = p.counts + static_cast<int64_t>(head) * p.slots;
  int32_t* t_counts = p.t_counts + static_cast<int64_t>(head) * p.slots;
  for (int i = slot + n + threadIdx.x; i < end; i += threads) counts[i] = t_counts[i] = 0;
  Outcome& outcome = p.outcomes[static_cast<int64_t>(head) * max(p.borders.samples, 1) + sample];
  if (n == 0) {
    if (threadIdx.x == 0) outcome = {};
    return;
  }
  __syncthreads();

  const float* masses = p.table != nullptr ? p.table + static_cast<int64_t>(head) * p.width * p.width
                                           : p.mass + (static_cast<int64_t>(head) * p.slots + slot) * p.width;
  int possible = n * (n + 1) / 2, always = 2 * n - 1;
  uint32_t keys[kEach];  // of what may be chosen; floats of one sign are ordered as their bits are
  Above own{};
  int turn = 0;
  uint32_t most = 0;
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
    own.sum[0] += mass;
    own.sum[1] += always_kept ? mass : 0.0f;
    own.sum[2] += always_kept ? 0.0f : mass;
    own.count[0] += keys[e] != 0;
    most = max(most, keys[e]);
  }
  most = __reduce_max_sync(~0u, most);
  if (threadIdx.x % kWarp == 0) atomicMax(&shared.found, most);
  Above all = block_above(own, shared, turn);
  most = shared.found;
  double whole = all.sum[0], base = all.sum[1];
  int wanted = all.count[0];
  double target = p.coverage == 1.0f ? INFINITY : static_cast<double>(p.coverage) * whole;
  float budget = p.budgets == nullptr ? 1.0f : p.budgets[head];
  int room = max(static_cast<int>(__fmul_rn(budget, static_cast<float>(possible))), always) - always;

  // Kept are those above `limit`, and the first `equal` of those that are it.
  uint32_t limit = 0x7fffffff;
  int equal = 0;
  if (wanted > 0 && room > 0 && base < target) {
    uint32_t low = 0, high = most;  // what is above `high` does not fill the room nor reach the target; above `low`, it does
    double high_sum = base;
    int high_count = 0, low_count = wanted;
    if (base + all.sum[2] < target && wanted < room) {
      limit = 0;
    } else {
      while (high - low > 1 && low_count - high_count > 1) {
        uint32_t pivots[kPivots];
        Above above{};
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
          if (base + above.sum[k] < target && above.count[k] < room) {
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
      limit = high;
      if (high - low > 1) {
        // One is left between them.
        __syncthreads();
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          if (keys[e] > low && keys[e] <= high) shared.found = keys[e];
        }
        __syncthreads();
        limit = shared.found;
      }
      int equals = low_count - high_count;
      double mass = __uint_as_float(limit);
      equal = min(equals, room - high_count);
      if (p.coverage != 1.0f) {
        int reach = static_cast<int>(fmin(fmax(ceil((target - high_sum) / mass), 0.0), static_cast<double>(equal)));
        while (reach > 0 && high_sum + (reach - 1) * mass >= target) --reach;
        while (reach < equal && high_sum + reach * mass < target) ++reach;
        equal = reach;
      }
    }
  }

  // The choice row by row, as bits.
  Above chosen{};
  bool some = limit != 0 && equal > 0;
  if (some) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int equals = 0;
#pragma unroll
      for (int w = 0; w < kWide; ++w) equals += __popc(__ballot_sync(~0u, keys[r * kWide + w] == limit));
      if (lane == 0) shared.equals[r * warps + warp] = equals;
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    int i = r * warps + warp;
    int rank = 0;
    if (some) {
      for (int above = lane; above < i; above += kWarp) rank += shared.equals[above];
      rank = __reduce_add_sync(~0u, rank);
    }
#pragma unroll
    for (int w = 0; w < kWide; ++w) {
      int j = w * kWarp + lane;
      uint32_t key = keys[r * kWide + w];
      uint32_t same = __ballot_sync(~0u, some && key == limit);
      bool picked = key > limit || ((same >> lane & 1u) != 0 && rank + __popc(same & ((1u << lane) - 1)) < equal);
      rank += __popc(same);
      if (picked) {
        chosen.sum[0] += __uint_as_float(key);
        ++chosen.count[0];
      }
      uint32_t word = __ballot_sync(~0u, i < n && (picked || j == 0 || j == i));
      if (lane == 0) shared.kept[i][w] = word;
    }
  }
  chosen = block_above(chosen, shared, turn);
  for (int k = threadIdx.x; k < n * kWide; k += threads) {
    int column = k % n, from = k / n * kWarp;
    uint32_t word = 0;
    for (int r = 0; r < kWarp; ++r) word |= (shared.kept[from + r][column / kWarp] >> column % kWarp & 1u) << r;
    shared.t_kept[column][k / n] = word;
  }
  __syncthreads();
  int64_t list = static_cast<int64_t>(head) * p.slots + slot;
  write_lists(shared.kept, n, p.indices + list * p.width, counts + slot, p.width);
  write_lists(shared.t_kept, n, p.t_indices + list * p.width, t_counts + slot, p.width);
  if (threadIdx.x == 0) {
    double covered = base + chosen.sum[0];
    int cut = chosen.count[0] < wanted && covered < target;
    outcome = {covered, whole, always + chosen.count[0], possible, cut, 1};
  }
}

struct Order {
  const int32_t *counts, *t_counts;
  int32_t* order;  // [2, lists]
  const Outcome* outcomes;
  float* summary;
  int64_t lists, outcome_count;
};

constexpr int kOrderWarps = kMostThreads / kWarp;
constexpr int kBins = kMostBlocks + 1;

// A counting sort in which equal counts stay in their order: each warp counts, then places, neighbours. What has no block comes
// last, as -1.
__device__ void sort_lists(const int32_t* counts, int32_t* order, int64_t lists) {
  __shared__ int before[kOrderWarps][kBins];
  __shared__ int totals[kBins];
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x; i < kOrderWarps * kBins; i += kMostThreads) (&before[0][0])[i] = 0;
  __syncthreads();
  int64_t share = round_up(ceil_div(lists, kOrderWarps), kWarp);
  int64_t from = warp * share, to = min(lists, from + share);
  for (int64_t i = from; i < to; i += kWarp) {
    int bin = i + lane < to ? counts[i + lane] : -1;
    uint32_t same = __match_any_sync(~0u, bin);
    if (bin >= 0 && __ffs(static_cast<int>(same)) - 1 == lane) before[warp][bin] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  if (threadIdx.x < kBins) {
    int sum = 0;
    for (int w = 0; w < kOrderWarps; ++w) {
      int own = before[w][threadIdx.x];
      before[w][threadIdx.x] = sum;
      sum += own;
    }
    totals[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kBins) {
    int start = 0;
    for (int bin = static_cast<int>(threadIdx.x) + 1; bin < kBins; ++bin) start += totals[bin];
    for (int w = 0; w < kOrderWarps; ++w) before[w][threadIdx.x] += start;
  }
  __syncthreads();
  for (int64_t i = from; i < to; i += kWarp) {
    int bin = i + lane < to ? counts[i + lane] : -1;
    uint32_t same = __match_any_sync(~0u, bin);
    int place = bin < 0 ? 0 : before[warp][bin] + __popc(same & ((1u << lane) - 1));
    __syncwarp();
    if (bin >= 0) order[place] = bin == 0 ? -1 : static_cast<int32_t>(i + lane);
    if (bin >= 0 && __ffs(static_cast<int>(same)) - 1 == lane) before[warp][bin] += __popc(same);
    __syncwarp();
  }
}

__global__ void __launch_bounds__(kMostThreads) order_kernel(Order p) {
  after_previous();
  if (blockIdx.x < 2) return sort_lists(blockIdx.x == 0 ? p.counts : p.t_counts, p.order + blockIdx.x * p.lists, p.lists);
  __shared__ double sums[kWarp];
  double covered = 0, whole = 0, kept = 0, possible = 0, cut = 0, lists = 0;
  for (int64_t i = threadIdx.x; i < p.outcome_count; i += kMostThreads) {
    Outcome one = p.outcomes[i];
    covered += one.covered;
    whole += one.whole;
    kept += one.kept;
    possible += one.possible;
    cut += one.cut;
    lists += one.lists;
  }
  for (double* x : {&covered, &whole, &kept, &possible, &cut, &lists}) *x = block_sum(*x, sums);
  if (threadIdx.x != 0) return;
  p.summary[PNB_SUMMARY_KEPT] = possible == 0 ? 0.0f : static_cast<float>(kept / possible);
  p.summary[PNB_SUMMARY_COVERED] = whole == 0 ? 1.0f : static_cast<float>(covered / whole);
  p.summary[PNB_SUMMARY_CUT] = lists == 0 ? 0.0f : static_cast<float>(cut / lists);
}

}  // namespace

}  // namespace attention

uint64_t select_attention_workspace(const pnb_select_attention_params& p) {
  int64_t samples = std::max<int64_t>(1, p.cu_seqlens.shape[0] - 1);
  return static_cast<uint64_t>(p.blocks.indices.shape[0] * samples) * sizeof(attention::Outcome);
}

void select_attention(const pnb_select_attention_params& p) {
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
              blocks.size,
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
  if (longest <= 32) choose(std::integral_constant<int, 1>());
  else if (longest <= 64) choose(std::integral_constant<int, 2>());
  else choose(std::integral_constant<int, 4>());

  Order order{args.counts,
              args.t_counts,
              static_cast<int32_t*>(blocks.order.data),
              args.outcomes,
              static_cast<float*>(p.summary.data),
              heads * args.slots,
              heads * samples};
  launch(order_kernel, {dim3(order.summary == nullptr ? 2u : 3u), kMostThreads, 0, stream, 1, true}, op, order);
}

}  // namespace pnb::cuda
