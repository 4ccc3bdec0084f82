#include "cuda/kernels/attention/order.h"

#include <algorithm>

#include "cuda/kernels/attention/lists.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"

// One block of threads an order, and one for the summary. Lists are sorted by falling count. Where they may be long they are then
// dealt among attention's blocks of threads, and written share by share.

namespace pnb::cuda::attention {

namespace {

constexpr int kMostBlocks = 128;  // of a list
constexpr int kBins = kMostBlocks + 1;
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTogether = 4;  // counts that a lane asks for at once

// Lists of so many blocks are dealt: with shorter ones, dealing takes longer than uneven loads do.
constexpr int kDealtFrom = 32;

// A list that has blocks, by its number and its count.
struct Dealt {
  static constexpr int kCountBits = 8;
  static_assert(kMostBlocks < 1 << kCountBits && kMostShared <= 1 << (32 - kCountBits), "both in 32 bits");

  uint32_t bits;

  Dealt() = default;
  __device__ Dealt(int64_t number, int count) : bits(static_cast<uint32_t>(number << kCountBits | count)) {}
  __device__ int number() const { return static_cast<int>(bits >> kCountBits); }
  __device__ int cost() const { return list_cost(static_cast<int>(bits & ((1u << kCountBits) - 1))); }

  // In blocks: a list costs something besides them.
  __device__ static int list_cost(int count) { return count + 1; }
};

// Where a list goes: whose share it is, and how many of that come before it.
struct Place {
  uint16_t share, index;
};

// Who deals: a warp to each of its lanes.
struct Dealers {
  int warps, shares;  // no warps: nobody deals

  // As few warps as divide the shares, if any do: else those of one warp differ from those of another, by one in 26 or so.
  static Dealers of(int shares) {
    int fewest = static_cast<int>(ceil_div(shares, kWarp));
    for (int warps = fewest; warps <= kWarps; ++warps) {
      if (shares % warps == 0) return {warps, shares};
    }
    return {fewest, shares};
  }
  __device__ int share(int warp, int lane) const { return lane * warps + warp; }
};

struct Args : Orders {
  Dealers dealers;
};

// An exclusive sum over the block's threads; called by all, which synchronise.
__device__ int sum_before(int own, int (&sums)[kWarps]) {
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, sum = own;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    int other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();
  sum -= own;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += w < warp ? sums[w] : 0;
  return sum;
}

// Deals sorted lists: who has least gets the heaviest. A warp takes every so-manieth list, from the other end of the next so
// many, and deals to its lanes in turns. A turn is of those whose load is not above the least by what its first list costs; who
// has less comes first, as far as quarters of that tell. numbers: of each share's lists.
__device__ void deal(const Dealt* sorted, int lists, Dealers dealers, Place* places, int* numbers) {
  int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (warp >= dealers.warps) return;
  auto place = [&](int i) { return i * dealers.warps + (i % 2 == 0 ? warp : dealers.warps - 1 - warp); };
  int own = lists / dealers.warps;  // of the warp
  own += place(own) < lists ? 1 : 0;
  uint32_t before = (1u << lane) - 1;
  constexpr int kNobody = 1 << 28;  // no turn is one's who has as much
  int share = dealers.share(warp, lane);
  int load = share < dealers.shares ? 0 : kNobody, taken = 0;
  for (int next = 0; next < own;) {
    int cost = sorted[place(next)].cost();
    int more = 4 * (load - __reduce_min_sync(~0u, load));
    uint32_t least = __ballot_sync(~0u, more < cost), less = __ballot_sync(~0u, more < 2 * cost);
    uint32_t fewer = __ballot_sync(~0u, more < 3 * cost), all = __ballot_sync(~0u, more < 4 * cost);
    uint32_t ahead = more < cost ? 0 : more < 2 * cost ? least : more < 3 * cost ? less : fewer;
    uint32_t upto = more < cost ? least : more < 2 * cost ? less : more < 3 * cost ? fewer : all;
    int i = next + __popc(ahead) + __popc(upto & ~ahead & before);
    if (more < 4 * cost && i < own) {
      places[place(i)] = {static_cast<uint16_t>(share), static_cast<uint16_t>(taken++)};
      load += sorted[place(i)].cost();
    }
    __syncwarp();
    next += __popc(all);
  }
  if (share < dealers.shares) numbers[share] = taken;
}

// A counting sort in which equal counts stay in their order: each warp counts, then places, neighbours. What has no block comes
// last, as -1. The others are dealt if anybody deals; scratch has room for all lists twice then.
__device__ void write_order(const Args& p, const int32_t* counts, int32_t* order, Dealt* scratch) {
  __shared__ int before[kWarps][kBins];
  __shared__ int totals[kMostShares], starts[kMostShares], sums[kWarps];  // of counts, then of shares
  static_assert(kBins <= kMostShares && kWarps == kWarp, "a lane has a warp's number");
  int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp, bins = p.most + 1;
  for (int bin = lane; bin < bins; bin += kWarp) before[warp][bin] = 0;
  __syncwarp();
  int64_t share = round_up(ceil_div(p.lists, kWarps), kWarp);
  int64_t from = warp * share, to = min(p.lists, from + share);
  // With the list, the count and the number of equal ones of this warp that come before.
  auto each = [&](auto&& visit) {
    for (int64_t i = from + lane; i - lane < to; i += kTogether * kWarp) {
      int own[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) own[k] = i + k * kWarp < to ? counts[i + k * kWarp] : -1;
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        uint32_t same = __match_any_sync(~0u, own[k]);
        int number = own[k] < 0 ? 0 : before[warp][own[k]];
        __syncwarp();
        if (own[k] >= 0) {
          visit(i + k * kWarp, own[k], number + __popc(same & ((1u << lane) - 1)));
          if (__ffs(static_cast<int>(same)) - 1 == lane) before[warp][own[k]] = number + __popc(same);
        }
        __syncwarp();
      }
    }
  };
  after_previous();
  each([](int64_t, int, int) {});
  __syncthreads();
  for (int bin = warp; bin < bins; bin += kWarps) {
    int own = before[lane][bin], sum = own;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    before[lane][bin] = sum - own;
    if (lane == kWarp - 1) totals[bin] = sum;
  }
  __syncthreads();
  if (thread < bins) {
    int start = 0;
#pragma unroll 8
    for (int bin = 0; bin < bins; ++bin) start += bin > thread ? totals[bin] : 0;
    starts[thread] = start;
  }
  __syncthreads();
  int held = starts[0];
  bool dealt = p.dealers.warps > 0 && held > p.dealers.shares;
  each([&](int64_t i, int count, int number) {
    int place = starts[count] + number;
    if (count == 0 || !dealt) order[place] = count == 0 ? -1 : static_cast<int32_t>(i);
    else scratch[place] = Dealt(i, count);
  });
  if (!dealt) return;
  Place* places = reinterpret_cast<Place*>(scratch + p.lists);
  __syncthreads();
  deal(scratch, held, p.dealers, places, totals);
  __syncthreads();
  int begin = sum_before(thread < p.dealers.shares ? totals[thread] : 0, sums);
  if (thread < p.dealers.shares) starts[thread] = begin;
  __syncthreads();
  for (int i = thread; i < held; i += kThreads) {
    int place = starts[places[i].share] + places[i].index;
    order[place] = shared_entry(scratch[i].number(), place < p.dealers.shares ? starts[place] : 0);
  }
}

__device__ void add_up(const Args& p) {
  constexpr int kValues = 6;
  __shared__ double sums[kWarps][kValues];
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  double values[kValues] = {};
  after_previous();
  for (int64_t i = threadIdx.x; i < p.outcome_count; i += kThreads) {
    Outcome one = p.outcomes[i];
    values[0] += one.kept;
    values[1] += one.possible;
    values[2] += one.covered;
    values[3] += one.whole;
    values[4] += one.cut;
    values[5] += one.lists;
  }
  auto add = [](double x, double y) { return x + y; };
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    values[k] = warp_combine(values[k], add);
    if (lane == 0) sums[warp][k] = values[k];
  }
  __syncthreads();
  if (warp > 0) return;
#pragma unroll
  for (int k = 0; k < kValues; ++k) values[k] = warp_combine(sums[lane][k], add);
  if (lane > 0) return;
  auto part = [&](int of, float otherwise) {
    return values[of + 1] == 0 ? otherwise : static_cast<float>(values[of] / values[of + 1]);
  };
  p.summary[PNB_SUMMARY_KEPT] = part(0, 0.0f);
  p.summary[PNB_SUMMARY_COVERED] = part(2, 1.0f);
  p.summary[PNB_SUMMARY_CUT] = part(4, 0.0f);
}

__global__ void __launch_bounds__(kThreads) order_kernel(Args p) {
  extern __shared__ Dealt scratch[];
  let_next_begin();
  if (blockIdx.x == 2) add_up(p);
  else write_order(p, blockIdx.x == 0 ? p.counts : p.t_counts, p.order + blockIdx.x * p.lists, scratch);
}

}  // namespace

void write_orders(const Device& device, const Orders& p, cudaStream_t stream, const char* op) {
  // Shares differ in their lists by less than the longest one weighs. On a part of a device they might have no room.
  int64_t room = static_cast<int64_t>(kMaxVisits - kMostBlocks) * device.multiprocessors;
  bool dealt = p.most >= kDealtFrom && p.lists <= std::min<int64_t>(kMostShared, room) && device.multiprocessors <= kMostShares;
  Args args{p, dealt ? Dealers::of(device.multiprocessors) : Dealers{}};
  size_t scratch = dealt ? p.lists * (sizeof(Dealt) + sizeof(Place)) : 0;
  allow_shared_memory(order_kernel, kMostShared * (sizeof(Dealt) + sizeof(Place)), op);
  launch(order_kernel, {dim3(p.summary == nullptr ? 2u : 3u), kThreads, scratch, stream, 1, true}, op, args);
}

}  // namespace pnb::cuda::attention
