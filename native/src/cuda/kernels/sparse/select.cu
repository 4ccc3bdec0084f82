#include <algorithm>

#include "cuda/kernels/cluster.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/sparse/sparse.h"

// A block takes a list: it sorts the scores in registers and shared memory, sums them up in that order, and gathers what is
// chosen by its place. The sum of all scores, and of those before one, are sums of f32 in the order of the choice, one addition
// after another: whoever adds up like this chooses the same blocks, to the last of them.

namespace pnb::cuda {

namespace {

namespace cg = cooperative_groups;

constexpr int kMostThreads = 1024;
constexpr int kMostBlocks = 4096;

struct Select {
  const float* scores;
  int32_t* indices;
  int32_t* counts;
  float* summary;  // or NULL; with it, the grid is one cluster
  int64_t lists, scores_stride, indices_stride;
  int blocks, capacity;
  float coverage;
  int places;   // as many as blocks, or more: the threads of a list, but for those that have several
  int at_once;  // lists of a block of threads
};

// Falling scores, of equal ones rising indices, are falling keys.
__device__ inline uint64_t key_of(float score, int index) {
  return static_cast<uint64_t>(__float_as_uint(score)) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
__device__ inline float score_of(uint64_t key) { return __uint_as_float(static_cast<uint32_t>(key >> 32)); }
__device__ inline int index_of(uint64_t key) { return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key)); }

// Bitonic sort of kEach * blockDim.x keys, falling; thread t holds places kEach * t on.
template <int kEach>
__device__ void sort(uint64_t (&keys)[kEach], uint64_t* shared) {
  int count = kEach * static_cast<int>(blockDim.x);
  int first = kEach * static_cast<int>(threadIdx.x);
  for (int run = 2; run <= count; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      if (distance < kEach) {
#pragma unroll
        for (int d = kEach / 2; d > 0; d /= 2) {
          if (d != distance) continue;
#pragma unroll
          for (int i = 0; i < kEach; ++i) {
            if ((i & d) != 0) continue;
            uint64_t low = keys[i], high = keys[i | d];
            bool swap = ((first + i) & run) == 0 ? low < high : low > high;
            keys[i] = swap ? high : low;
            keys[i | d] = swap ? low : high;
          }
        }
        continue;
      }
      bool across = distance >= kEach * kWarp;
      if (across) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kEach; ++i) shared[i * blockDim.x + threadIdx.x] = keys[i];
        __syncthreads();
      }
      int mask = distance / kEach;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        uint64_t other = across ? shared[i * blockDim.x + (threadIdx.x ^ mask)] : __shfl_xor_sync(~0u, keys[i], mask);
        // The lower of two places gets the larger key where the run falls.
        bool lower = ((first + i) & distance) == 0;
        bool falls = ((first + i) & run) == 0;
        keys[i] = (lower == falls) == (other > keys[i]) ? other : keys[i];
      }
    }
  }
}

constexpr int kBatch = 16;

// sums[i] = sums[i - 1] + values[i], by one thread; the next values are on their way while it adds. `count` is a multiple of
// kBatch, and both arrays begin at multiples of 16 bytes.
__device__ void add_in_order(const float* values, float* sums, int count) {
  float4 next[kBatch / 4];
#pragma unroll
  for (int i = 0; i < kBatch / 4; ++i) next[i] = reinterpret_cast<const float4*>(values)[i];
  float sum = 0.0f;
#pragma unroll 4
  for (int from = 0; from < count; from += kBatch) {
    int following = min(from + kBatch, count - kBatch);
#pragma unroll
    for (int i = 0; i < kBatch / 4; ++i) {
      float4 now = next[i];
      next[i] = reinterpret_cast<const float4*>(values + following)[i];
      now.x = sum = __fadd_rn(sum, now.x);
      now.y = sum = __fadd_rn(sum, now.y);
      now.z = sum = __fadd_rn(sum, now.z);
      now.w = sum = __fadd_rn(sum, now.w);
      reinterpret_cast<float4*>(sums + from)[i] = now;
    }
  }
}

constexpr int kFew = 256;    // blocks at most that are placed by counting
constexpr int kAtOnce = 4;   // lists of so many blocks at most, beside each other

// Of some of a block's warps.
struct NamedBarrier {
  int name, threads;

  __device__ void sync() const { asm volatile("barrier.sync.aligned %0, %1;" ::"r"(name), "r"(threads) : "memory"); }
  // For how many of the threads it holds.
  __device__ int count(bool holds) const {
    int count;
    asm volatile("{\n.reg .pred holds;\nsetp.ne.s32 holds, %3, 0;\nbarrier.red.popc.aligned.u32 %0, %1, %2, holds;\n}"
                 : "=r"(count)
                 : "r"(name), "r"(threads), "r"(static_cast<int>(holds))
                 : "memory");
    return count;
  }
};

// Of up to kFew blocks, one a thread.
struct Few {
  alignas(16) uint32_t scores[kFew];  // bits; floats of one sign are ordered as they are
  alignas(16) float values[kFew];     // by falling score
  alignas(16) float sums[kFew];
  int warps[kFew / kWarp];
};

// How many of a warp's scores are above a limit.
__device__ __forceinline__ int count_above(const uint32_t* scores, uint32_t limit) {
  int counts[4] = {};
#pragma unroll
  for (int j = 0; j < kWarp; j += 4) {
    uint4 four = *reinterpret_cast<const uint4*>(scores + j);
    counts[0] += four.x > limit;
    counts[1] += four.y > limit;
    counts[2] += four.z > limit;
    counts[3] += four.w > limit;
  }
  return counts[0] + counts[1] + (counts[2] + counts[3]);
}

struct Shared {
  uint64_t keys[kMostBlocks];
  float values[kMostBlocks];  // sorted
  float sums[kMostBlocks];    // of the values up to here
  uint8_t chosen[kMostBlocks];
  int warps[kWarp];
};

// Sums over lists, by summary[]'s places, and that of all scores.
constexpr int kWhole = PNB_SUMMARY_SIZE;
constexpr int kOutcomes = PNB_SUMMARY_SIZE + 1;
static_assert(kOutcomes * sizeof(double) == 2 * sizeof(float4));
struct alignas(16) Outcome {
  double sums[kOutcomes];

  __device__ void add(int kept, bool cut, float covered, float whole) {
    sums[PNB_SUMMARY_KEPT] += kept;
    sums[PNB_SUMMARY_COVERED] += covered;
    sums[PNB_SUMMARY_CUT] += cut;
    sums[kWhole] += whole;
  }
};

template <int kEach>
__device__ void select(const Select& p, int64_t list, Shared& shared, Outcome& outcome) {
  int count = kEach * static_cast<int>(blockDim.x);
  int first = kEach * static_cast<int>(threadIdx.x);
  const float* scores = p.scores + list * p.scores_stride;
  uint64_t keys[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    int at = i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);  // any order will do
    float score = at < p.blocks ? scores[at] : 0.0f;
    keys[i] = key_of(score > 0.0f ? score : 0.0f, at);
  }
  sort<kEach>(keys, shared.keys);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    shared.values[first + i] = score_of(keys[i]);
    shared.chosen[first + i] = 0;
  }
  __syncthreads();
  if (threadIdx.x == 0) add_in_order(shared.values, shared.sums, count);
  __syncthreads();

  // Wanted are the first of those that have a score, until the sum of the ones before reaches the target.
  float whole = shared.sums[count - 1];
  float target = __fmul_rn(p.coverage, whole);
  int wanted = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    int place = first + i;
    float before = place == 0 ? 0.0f : shared.sums[place - 1];
    wanted += __syncthreads_count(score_of(keys[i]) > 0.0f && (p.coverage == 1.0f || before < target));
  }
  int kept = min(wanted, p.capacity);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (first + i < kept) shared.chosen[index_of(keys[i])] = 1;
  }
  __syncthreads();

  // The chosen before this thread's places: of its warp, by shuffles, and of the warps before.
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int own = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) own += shared.chosen[first + i];
  int up_to = own;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    int other = __shfl_up_sync(~0u, up_to, step);
    if (lane >= step) up_to += other;
  }
  if (lane == kWarp - 1) shared.warps[warp] = up_to;
  __syncthreads();
  int to = up_to - own;
  for (int i = 0; i < warp; ++i) to += shared.warps[i];
  int32_t* indices = p.indices + list * p.indices_stride;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (shared.chosen[first + i]) indices[to++] = first + i;
  }
  if (threadIdx.x == 0) {
    p.counts[list] = kept;
    outcome.add(kept, wanted > p.capacity, kept == 0 ? 0.0f : shared.sums[kept - 1], whole);
  }
  __syncthreads();  // before the next list writes here
}

// select() for up to kFew blocks, by p.places of the block's threads: each one's place is the number of those that come before
// it.
__device__ void select_few(const Select& p, int64_t list, Few& few, Outcome& outcome) {
  int count = p.places, i = static_cast<int>(threadIdx.x) % count, lane = i % kWarp, warp = i / kWarp;
  NamedBarrier barrier{1 + static_cast<int>(threadIdx.x) / count, count};
  float score = i < p.blocks ? p.scores[list * p.scores_stride + i] : 0.0f;
  uint32_t bits = score > 0.0f ? __float_as_uint(score) : 0;
  few.scores[i] = bits;
  few.values[i] = 0.0f;
  barrier.sync();
  // Of equal scores the earlier one comes first. What has no score has no place.
  int place = 0;
#pragma unroll 4
  for (int other = 0; other < count / kWarp; ++other) {
    if (other != warp) place += count_above(few.scores + other * kWarp, other < warp ? bits - 1 : bits);
  }
#pragma unroll 8
  for (int j = 0; j < kWarp; ++j) {
    uint32_t other = __shfl_sync(~0u, bits, j);
    place += other > bits || (other == bits && j < lane);
  }
  if (bits != 0) few.values[place] = __uint_as_float(bits);
  barrier.sync();
  if (i == 0) add_in_order(few.values, few.sums, count);
  barrier.sync();
  float whole = few.sums[count - 1];
  float before = bits == 0 || place == 0 ? 0.0f : few.sums[place - 1];
  int wanted = barrier.count(bits != 0 && (p.coverage == 1.0f || before < __fmul_rn(p.coverage, whole)));
  int kept = min(wanted, p.capacity);
  uint32_t chosen = __ballot_sync(~0u, bits != 0 && place < kept);
  if (lane == 0) few.warps[warp] = __popc(chosen);
  barrier.sync();
  int to = __popc(chosen & ((1u << lane) - 1));
#pragma unroll 1
  for (int other = 0; other < warp; ++other) to += few.warps[other];
  if (chosen >> lane & 1u) p.indices[list * p.indices_stride + to] = i;
  if (i == 0) {
    p.counts[list] = kept;
    outcome.add(kept, wanted > p.capacity, kept == 0 ? 0.0f : few.sums[kept - 1], whole);
  }
  barrier.sync();  // before the next list writes here
}

// What all lists came to, out of `count` outcomes, by one warp.
__device__ void tell(const Select& p, const Outcome* outcomes, int count) {
  int lane = threadIdx.x % kWarp;
  double sum = 0.0;
#pragma unroll 1
  for (int i = 0; i < count; ++i) sum += outcomes[i].sums[lane % kOutcomes];
  double whole = __shfl_sync(~0u, sum, kWhole);
  double of = lane == PNB_SUMMARY_COVERED ? whole : static_cast<double>(lane == PNB_SUMMARY_KEPT ? p.lists * p.blocks : p.lists);
  float part = of > 0.0 ? static_cast<float>(sum / of) : lane == PNB_SUMMARY_COVERED ? 1.0f : 0.0f;
  if (lane < PNB_SUMMARY_SIZE) p.summary[lane] = part;
}

// kEach: blocks a thread; 0: up to kFew, by select_few().
template <int kEach>
__global__ void __launch_bounds__(kMostThreads) select_kernel(const __grid_constant__ Select p) {
  extern __shared__ __align__(16) char memory[];
  __shared__ Outcome outcomes[kMaxCluster * kAtOnce], outcomes_of_block[kAtOnce];
  __shared__ Barrier arrived;
  constexpr bool kIsFew = kEach == 0;
  cg::cluster_group cluster = cg::this_cluster();
  int blocks = static_cast<int>(cluster.num_blocks()), own = static_cast<int>(cluster.block_rank());
  if (blocks > 1) {
    if (threadIdx.x == 0) {
      arrived.init(1);
      fence_barrier_init();
      arrived.arrive_and_expect(blocks * p.at_once * sizeof(Outcome));
    }
    __syncwarp();
    tell_begun();
  }
  let_next_begin();
  int group = kIsFew ? static_cast<int>(threadIdx.x) / p.places : 0, thread = static_cast<int>(threadIdx.x) - group * p.places;
  Outcome& outcome = outcomes_of_block[group];
  if (thread == 0) outcome = {};
  after_previous();
  if (blocks > 1) all_begun();
  int64_t first = blockIdx.x + static_cast<int64_t>(gridDim.x) * group, step = static_cast<int64_t>(gridDim.x) * p.at_once;
  for (int64_t list = first; list < p.lists; list += step) {
    if constexpr (kIsFew) select_few(p, list, reinterpret_cast<Few*>(memory)[group], outcome);
    else select<kEach>(p, list, *reinterpret_cast<Shared*>(memory), outcome);
  }
  if (p.summary == nullptr || thread >= kWarp) return;
  __syncwarp();
  const Outcome* all = &outcome;
  int count = 1;
  if (blocks > 1) {
    if (thread < 2) {
      auto* to = reinterpret_cast<float4*>(&outcomes[own * p.at_once + group]) + thread;
      send(reinterpret_cast<const float4*>(&outcome)[thread], to, arrived, 0);
    }
    if (own > 0 || group > 0) return;
    arrived.wait(0);
    all = outcomes, count = blocks * p.at_once;
  }
  tell(p, all, count);
}

struct Relative {
  const float* mass;
  float* scores;
  int blocks, size;
  float threshold, share;
};

constexpr int kRelativeThreads = 256;

// A warp takes a block of neurons.
__global__ void __launch_bounds__(kRelativeThreads) relative_kernel(Relative p) {
  int block = (static_cast<int>(blockIdx.x) * kRelativeThreads + static_cast<int>(threadIdx.x)) / kWarp;
  int lane = threadIdx.x % kWarp;
  if (block >= p.blocks) return;
  const float* mass = p.mass + static_cast<int64_t>(block) * p.size;
  float sum = 0.0f, largest = 0.0f;
  for (int j = lane; j < p.size; j += kWarp) {
    sum += mass[j];
    largest = fmaxf(largest, mass[j]);
  }
  sum = warp_combine(sum, [](float a, float b) { return a + b; });
  largest = warp_combine(largest, [](float a, float b) { return fmaxf(a, b); });
  float limit = __fmul_rn(p.threshold, largest);
  int below = 0;
  for (int j = lane; j < p.size; j += kWarp) below += mass[j] < limit;
  below = warp_combine(below, [](int a, int b) { return a + b; });
  bool dropped = static_cast<float>(below) >= __fmul_rn(p.share, static_cast<float>(p.size));
  if (lane == 0) p.scores[block] = dropped ? 0.0f : sum;
}

}  // namespace

void select_blocks(const pnb_select_blocks_params& p) {
  Select args{static_cast<const float*>(p.scores.data),
              static_cast<int32_t*>(p.blocks.indices.data),
              static_cast<int32_t*>(p.blocks.counts.data),
              static_cast<float*>(p.summary.data),
              p.scores.shape[0],
              p.scores.stride[0],
              p.blocks.indices.stride[0],
              static_cast<int>(p.scores.shape[1]),
              static_cast<int>(p.blocks.indices.shape[1]),
              p.coverage};
  if (args.lists == 0 && args.summary == nullptr) return;
  // What all lists came to is added up within one cluster.
  int cluster = args.summary == nullptr ? 1 : static_cast<int>(std::clamp<int64_t>(args.lists, 1, kMaxCluster));
  auto blocks = static_cast<unsigned>(args.summary == nullptr ? args.lists : cluster);
  args.places = kWarp;
  while (args.places < args.blocks) args.places *= 2;
  bool few = args.places <= kFew;
  args.at_once = few ? static_cast<int>(std::clamp<int64_t>(ceil_div(args.lists, blocks), 1, kAtOnce)) : 1;
  int each = std::max(1, args.places / kMostThreads);
  auto kernel = few ? select_kernel<0> : each == 1 ? select_kernel<1> : each == 2 ? select_kernel<2> : select_kernel<4>;
  size_t bytes = few ? args.at_once * sizeof(Few) : sizeof(Shared);
  allow_shared_memory(kernel, bytes, "select_blocks");
  int threads = args.places * args.at_once / each;
  launch(kernel, {dim3(blocks), threads, bytes, stream_of(p.stream), cluster, true}, "select_blocks", args);
}

void relative_mass(const pnb_relative_mass_params& p) {
  Relative args{static_cast<const float*>(p.neuron_mass.data),
                static_cast<float*>(p.scores.data),
                static_cast<int>(p.scores.shape[1]),
                p.block_size,
                p.threshold,
                p.share};
  if (args.blocks == 0) return;
  relative_kernel<<<static_cast<unsigned>(ceil_div(args.blocks, kRelativeThreads / kWarp)), kRelativeThreads, 0,
                    stream_of(p.stream)>>>(args);
  check_launch("relative_mass");
}

}  // namespace pnb::cuda
