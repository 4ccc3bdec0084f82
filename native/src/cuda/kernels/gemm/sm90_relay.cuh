// A persistent product on sm_90. One warp of a block feeds a ring of stages by bulk tensor copies; two warpgroups take turns
// at a 128 x 128 tile each, so that one's epilogue runs behind the other's wgmmas; two more warps write the steps of low-rank
// terms. Two blocks one above the other form a cluster: each copies one half of b's tile to both.
//
// A list of active blocks changes where a copy reads the weight and how many tiles or steps there are, and nothing else: a
// stage's part of b comes in boxes of at most a block's rows, each with its own coordinate, and the tile itself is that of
// the dense product. So a full list gives its bits.
#pragma once

#include <algorithm>

#include "cuda/kernels/gemm/sm90_finish.cuh"
#include "cuda/kernels/gemm/sm90_maps.h"
#include "cuda/kernels/gemm/sm90_relay.h"
#include "cuda/kernels/gemm/sm90_terms.cuh"
#include "cuda/runtime/device.h"

namespace pnb::cuda::sm90 {

constexpr int kStages = 5;
constexpr int kHalf = kTileN / 2;  // what one block of a cluster copies of b: columns
constexpr int kRelayThreads = 3 * hopper::kWarpgroup;
// Named barriers: 1 and 2 are the warpgroups' own.
constexpr int kTurn = 3;       // and 4: whose wgmmas are next
constexpr int kTermStage = 5;  // a stage is free for a step of terms
constexpr int kTermsWritten = 6;
// Registers a thread, of the 512 that a thread of each of the four warpgroups' worth of a multiprocessor shares.
constexpr int kProducerRegisters = 56;
constexpr int kConsumerRegisters = 224;

struct RelayArgs {
  CUtensorMap a, b, residual, d;
  Schedule schedule;
  Blocks blocks;
  Finish finish;
  int32_t k;         // of a
  int32_t box_bits;  // log2 of the rows of W in a box
};

struct Stage {
  char a[kTileM * kTileK * 2];
  char b[kTileN * kTileK * 2];
};

struct RelayShared {
  Stage stages[kStages];
  FinishShared finish[2];
  hopper::Barrier full[kStages], empty[kStages];
};

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Arrives at the same barrier of another block of the cluster.
__device__ __forceinline__ void arrive_remotely(hopper::Barrier& barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(hopper::shared_address(&barrier.bits)),
      "r"(rank)
      : "memory");
}

// Copies a box to the same place in both blocks of a cluster, and tells both barriers.
__device__ __forceinline__ void copy_box_to_both(void* to, const CUtensorMap& map, hopper::Barrier& full, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(
          hopper::shared_address(to)),
      "l"(&map), "r"(hopper::shared_address(&full)), "r"(x), "r"(y), "h"(static_cast<uint16_t>(3))
      : "memory");
}

// Descriptors of a stage's swizzled operands for slices along k.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t panel_bytes) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(panel_bytes >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

template <bool kAlongK, Gather kGather>
struct Relay {
  using Tiles = Walk<kGather>;
  using Ring = hopper::Ring<kStages>;

  // All steps of a tile.
  __device__ static int steps(const RelayArgs& args, const Tiles& tile) {
    return tile.steps() + term_steps(folded_ranks<kGather>(args.finish.epilogue, tile.column()));
  }

  __device__ static void skip(Ring& ring, int steps) {
    int slot = ring.slot + steps;
    ring.parity ^= static_cast<uint32_t>(slot / kStages) & 1;
    ring.slot = slot % kStages;
  }

  // Where the boxes of W begin that a step needs. A warp's lanes hold 32 entries of the list, and the 32 after them.
  class ListAlongK {
   public:
    __device__ ListAlongK(const RelayArgs& args, int row) : active_(args.blocks, row), bits_(args.blocks.size_bits) {
      entries_ = load(0);
      later_ = load(32);
    }
    __device__ int row(int k) {
      int place = k >> bits_;
      if (place - first_ >= 32) {
        first_ += 32;
        entries_ = later_;
        later_ = load(first_ + 32);
      }
      return (__shfl_sync(0xffffffffu, entries_, place - first_) << bits_) + (k & ((1 << bits_) - 1));
    }

   private:
    __device__ int load(int first) const { return active_.block(first + static_cast<int>(threadIdx.x) % 32); }
    ActiveBlocks active_;
    int bits_, first_ = 0, entries_, later_;
  };

  __device__ static void produce(const RelayArgs& args, RelayShared& shared, Tiles tile, int rank) {
    bool leader = threadIdx.x % 32 == 0;
    bool pair = args.schedule.cluster == 2;
    int box = 1 << args.box_bits;
    int boxes = kHalf >> args.box_bits;  // 1 or 2 in half a tile's columns, or in a step
    auto copy_b = [&](char* to, hopper::Barrier& full, int x, int y) {
      if (pair) copy_box_to_both(to, args.b, full, x, y);
      else hopper::copy_box(to, args.b, full, x, y);
    };
    Ring ring;
    for (; tile.valid(); tile.next()) {
      if (tile.steps() > 0) {
        int rows_of_boxes[2][2];  // along n: of W
        if constexpr (kAlongK) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              int column = tile.column() + half * kHalf + i * box;
              if constexpr (kGather == Gather::kColumns) column = ActiveBlocks(args.blocks, tile.row()).neuron(column);
              rows_of_boxes[half][i] = column;
            }
          }
        }
        std::conditional_t<kGather == Gather::kSteps, ListAlongK, NoList> list(args, tile.row());
        for (int step = 0; step < tile.steps(); ++step) {
          int k = step * kTileK;
          int first = list.row(k), second = boxes == 2 ? list.row(k + box) : 0;
          Stage& stage = shared.stages[ring.slot];
          hopper::Barrier& full = shared.full[ring.slot];
          shared.empty[ring.slot].wait(ring.parity ^ 1);
          if (leader) {
            full.arrive_and_expect(sizeof(Stage));
            hopper::copy_box(stage.a, args.a, full, k, tile.row());
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              if (pair && half != rank) continue;
              char* to = stage.b + half * kHalf * kTileK * 2;
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                if (i >= boxes) continue;
                if constexpr (kAlongK) {
                  copy_b(to + i * box * 128, full, k, rows_of_boxes[half][i]);
                } else {
                  copy_b(to + i * box * 128, full, tile.column() + half * kHalf, i == 0 ? first : second);
                }
              }
            }
          }
          __syncwarp();
          ring.advance();
        }
      }
      // The waits stay here, where none is left out: parity tells a phase from its neighbours only.
      for (int step = term_steps(folded_ranks<kGather>(args.finish.epilogue, tile.column())); step > 0; --step) {
        shared.empty[ring.slot].wait(ring.parity ^ 1);
        hopper::sync_threads(kTermStage, 32 + kTermThreads);
        ring.advance();
      }
    }
  }

  // Where no list gathers along k.
  struct NoList {
    __device__ NoList(const RelayArgs&, int) {}
    __device__ int row(int k) const { return k; }
  };

  __device__ static void write_terms(const RelayArgs& args, RelayShared& shared, Tiles tile, int thread) {
    const Epilogue& epilogue = args.finish.epilogue;
    Ring ring;
    for (; tile.valid(); tile.next()) {
      skip(ring, tile.steps());
      int ranks = folded_ranks<kGather>(epilogue, tile.column());
      if (ranks == 0) continue;
      int origin[kTileN / kTermThreads];
#pragma unroll
      for (int i = 0; i < kTileN / kTermThreads; ++i) {
        origin[i] = tile.column() + thread + i * kTermThreads;
        if constexpr (kGather == Gather::kColumns) origin[i] = ActiveBlocks(args.blocks, tile.row()).neuron(origin[i]);
      }
      TermWriter<kAlongK, kGather> writer(epilogue, args.finish.m, tile.row(), tile.column(), origin);
      for (int from = 0; from < ranks; from += kRanks) {
        Stage& stage = shared.stages[ring.slot];
        writer.fetch(thread);
        hopper::sync_threads(kTermStage, 32 + kTermThreads);
        writer.store(stage.a, stage.b, 0, thread);
        if (term_slices(ranks, from) * kSliceK > 3 * writer.kBatch) {
          writer.fetch(thread);
          writer.store(stage.a, stage.b, writer.kBatch, thread);
        }
        hopper::fence_async_proxy();
        hopper::sync_threads(kTermsWritten, kTermThreads);
        if (thread == 0) shared.full[ring.slot].arrive();
        ring.advance();
      }
    }
  }

  __device__ static void consume(const RelayArgs& args, RelayShared& shared, Tiles tile, int warpgroup, int rank) {
    int thread = static_cast<int>(threadIdx.x) % hopper::kWarpgroup;
    bool pair = args.schedule.cluster == 2;
    // A warpgroup's wgmmas begin when the other has seen all stages before its own: a wait's parity is then that of the next
    // phase, and one's epilogue runs behind the other's wgmmas.
    auto pass_turn = [&] {
      asm volatile("bar.arrive %0, %1;" ::"r"(kTurn + (warpgroup ^ 1)), "r"(2 * hopper::kWarpgroup) : "memory");
    };
    Ring ring;
    if (warpgroup == 1 && tile.valid()) {
      pass_turn();
      skip(ring, steps(args, tile));
      tile.next();
    }
    TileFinish<kGather> finish(args.finish, args.blocks, args.residual, args.d, shared.finish[warpgroup], warpgroup, thread);
    if (tile.valid()) finish.fetch_residual(tile);
    while (tile.valid()) {
      finish.begin(tile);
      hopper::sync_threads(kTurn + warpgroup, 2 * hopper::kWarpgroup);

      float sums[2][kTileN / 2];
      bool add = false;
      int unreleased = -1;
      auto release = [&](int slot) {
        if (thread == 0) shared.empty[slot].arrive();
        if (pair && thread == 32) arrive_remotely(shared.empty[slot], rank ^ 1);
      };
      auto slice = [&](uint64_t a, uint64_t b, int s) PNB_INLINE {
        constexpr uint64_t kRow = 32 >> 4;  // bytes of a slice in a row, in units of 16
        constexpr uint64_t kStepB = kAlongK ? kRow : (kSliceK * 128) >> 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          hopper::wgmma::step<kTileN, kAlongK ? hopper::wgmma::Major::K : hopper::wgmma::Major::MN>(
              sums[i], a + i * ((64 * 128) >> 4) + s * kRow, b + s * kStepB, add);
        }
        add = true;
      };
      auto with_stage = [&](auto&& body) PNB_INLINE {
        shared.full[ring.slot].wait(ring.parity);
        uint64_t a = operand(hopper::shared_address(shared.stages[ring.slot].a), 16);
        uint64_t b = operand(hopper::shared_address(shared.stages[ring.slot].b), kAlongK ? 16 : kTileK * 128);
        hopper::wgmma::fence(sums[0]);
        hopper::wgmma::fence(sums[1]);
        hopper::wgmma::begin();
        body(a, b);
        hopper::wgmma::commit();
        hopper::wgmma::wait<1>();
        if (unreleased >= 0) release(unreleased);
        unreleased = ring.slot;
        ring.advance();
      };
      for (int step = tile.slices() / kSlicesAStep; step > 0; --step) {
        with_stage([&](uint64_t a, uint64_t b) PNB_INLINE {
#pragma unroll
          for (int s = 0; s < kSlicesAStep; ++s) slice(a, b, s);
        });
      }
      auto partly = [&](int slices) PNB_INLINE {
        with_stage([&](uint64_t a, uint64_t b) PNB_INLINE {
#pragma unroll 1
          for (int s = 0; s < slices; ++s) slice(a, b, s);
        });
      };
      int ranks = folded_ranks<kGather>(args.finish.epilogue, tile.column());
      int rest = tile.slices() % kSlicesAStep;
      // The last step where k, or a list's neurons, end within it, and then the terms'.
#pragma unroll 1
      for (int from = rest > 0 ? -kRanks : 0; from < ranks; from += kRanks) partly(from < 0 ? rest : term_slices(ranks, from));
      tile.next();
      if (tile.valid()) {
        pass_turn();
        skip(ring, steps(args, tile));
        tile.next();
      }
      hopper::wgmma::wait<0>();
      hopper::wgmma::fence(sums[0]);
      hopper::wgmma::fence(sums[1]);
      if (unreleased >= 0) release(unreleased);
      if (!add) {
#pragma unroll
        for (int i = 0; i < kTileN / 2; ++i) sums[0][i] = sums[1][i] = 0.0f;
      }
      finish.apply(sums);
      finish.end();
      if (tile.valid()) finish.fetch_residual(tile);
    }
  }
};

template <bool kAlongK, Gather kGather>
__global__ void __launch_bounds__(kRelayThreads, 1) relay_kernel(const __grid_constant__ RelayArgs args) {
  extern __shared__ __align__(1024) char shared_bytes[];
  RelayShared& shared = *reinterpret_cast<RelayShared*>(shared_bytes);
  using Kernel = Relay<kAlongK, kGather>;
  int warpgroup = hopper::uniform(static_cast<int>(threadIdx.x) / hopper::kWarpgroup);
  int warp = hopper::uniform(static_cast<int>(threadIdx.x) / 32);
  int rank = args.schedule.cluster == 2 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    hopper::prefetch_map(args.a);
    hopper::prefetch_map(args.b);
    hopper::prefetch_map(args.d);
    for (int i = 0; i < kStages; ++i) {
      shared.full[i].init(1);
      shared.empty[i].init(static_cast<uint32_t>(args.schedule.cluster));
    }
    for (FinishShared& finish : shared.finish) finish.residual.init(1);
    hopper::fence_barrier_init();
  }
  cluster_sync();
  typename Kernel::Tiles tile(args.schedule, args.blocks, args.k);
  if (warpgroup == 0) {
    hopper::give_registers<kProducerRegisters>();
    if (warp == 0) Kernel::produce(args, shared, tile, rank);
    else if (warp >= 2) Kernel::write_terms(args, shared, tile, static_cast<int>(threadIdx.x) - 64);
  } else {
    hopper::take_registers<kConsumerRegisters>();
    Kernel::consume(args, shared, tile, warpgroup - 1, rank);
  }
  // The other block of the cluster may still write to this one's memory and arrive at its barriers.
  cluster_sync();
}

template <bool kAlongK, Gather kGather>
void run_relay(const Product& p, int multiprocessors, cudaStream_t stream) {
  RelayArgs args{};
  int tiles_m = (p.m + kTileM - 1) / kTileM;
  bool own_lists = kGather != Gather::kNone && p.blocks.rows_per_list < p.m;
  // Both blocks of a cluster read the same columns of b.
  args.schedule.cluster = tiles_m > 1 && (!own_lists || p.blocks.rows_per_list % (2 * kTileM) == 0) ? 2 : 1;
  int group_rows = args.schedule.cluster * kTileM;
  args.schedule.row_groups = (p.m + group_rows - 1) / group_rows;
  args.schedule.row_groups_a_list = own_lists ? p.blocks.rows_per_list / group_rows : args.schedule.row_groups;
  args.schedule.columns = (p.n + kTileN - 1) / kTileN;
  args.blocks = p.blocks;
  args.k = p.k;
  args.box_bits = kGather == Gather::kNone ? 6 : std::min(6, p.blocks.size_bits);
  args.finish = finish_of(p);
  int box = 1 << args.box_bits;
  args.a = operand_map(p.a.data, p.m, p.k, p.a.row_stride, kTileM);
  if constexpr (kAlongK) {
    args.b = operand_map(p.b.data, kGather == Gather::kColumns ? p.blocks.neurons : p.n, p.k, p.b.column_stride, box);
  } else {
    args.b = operand_map(p.b.data, kGather == Gather::kSteps ? p.blocks.neurons : p.k, p.n, p.b.row_stride, box);
  }
  args.d = result_map(p.d.data, p.m, p.n, p.d.row_stride, kTileM);
  args.residual = args.finish.residual_copied ? result_map(p.residual.data, p.m, p.n, p.residual.row_stride, kTileM) : args.d;

  auto kernel = relay_kernel<kAlongK, kGather>;
  allow_shared_memory(kernel, sizeof(RelayShared), "gemm");
  cudaLaunchConfig_t launch{};
  int tiles = args.schedule.row_groups * args.schedule.columns * args.schedule.cluster;
  launch.gridDim = static_cast<unsigned>(std::min(tiles, multiprocessors / args.schedule.cluster * args.schedule.cluster));
  launch.blockDim = kRelayThreads;
  launch.dynamicSmemBytes = sizeof(RelayShared);
  launch.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(args.schedule.cluster), 1, 1};
  launch.attrs = &cluster;
  launch.numAttrs = 1;
  check(cudaLaunchKernelEx(&launch, kernel, args), "gemm");
}

}  // namespace pnb::cuda::sm90
