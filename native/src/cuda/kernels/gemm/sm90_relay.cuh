// A persistent product on sm_90. One warp of a block feeds a ring of stages by bulk tensor copies; two warpgroups take turns
// at a 128 x 128 tile each, so that one's epilogue runs behind the other's wgmmas; one warp looks tiles up and two write the
// steps of low-rank terms. Two blocks one above the other form a cluster: each copies one half of b's tile to both.
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

constexpr int kStages = 6;
constexpr int kHalf = kTileN / 2;  // what one block of a cluster copies of b: columns
constexpr int kRelayThreads = 3 * hopper::kWarpgroup;
// Named barriers: 1 and 2 are the warpgroups' own.
constexpr int kTurn = 3;  // and 4: whose wgmmas are next
constexpr int kTermsWritten = 5;
// Registers a thread. The three warpgroups start with 168 each and divide them anew: 56 + 2 * 224.
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

struct RelayShared {
  Stage stages[kStages];
  FinishShared finish;
  hopper::Barrier full[kStages], empty[kStages];
  hopper::Barrier term_stage, terms_written;  // a stage is free for a step of terms; that step is there
  TileQueue queue;
};
static_assert(sizeof(RelayShared) <= 227 * 1024, "what a block may have");
// Warps that read the queue: the one that feeds stages, those that write terms, and the warpgroups'.
constexpr int kQueueReaders = 1 + kTermThreads / 32 + 8;

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

// Copies a box to the same place in the blocks of a cluster whose bits are set, and tells their barriers.
__device__ __forceinline__ void copy_box_to(void* to, const CUtensorMap& map, hopper::Barrier& full, int x, int y,
                                            uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(hopper::shared_address(to)),
      "l"(&map), "r"(hopper::shared_address(&full)), "r"(x), "r"(y), "h"(blocks)
      : "memory");
}

// Whether this is the one thread of its warp that is chosen; the compiler knows of this instruction that it is one.
__device__ __forceinline__ bool elected() {
  uint32_t chosen;
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, one;\n"
      "}"
      : "=r"(chosen));
  return chosen != 0;
}

// Descriptors of a stage's swizzled operands for slices along k.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t panel_bytes) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(panel_bytes >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

// The order of a tile's steps: a step of terms before every so many of k, as long as there are any, then what k leaves for a
// step of its own. Who writes the terms has the time between two of their steps for fetching the next.
class Steps {
 public:
  __device__ explicit Steps(const TileInfo& tile)
      : whole_(tile.slices / kSlicesAStep), rest_(tile.slices % kSlicesAStep), terms_(tile.term_slices) {
    gap_ = gap(whole_, terms_);
  }

  // Whole steps of k from one step of terms to the next; without terms all. The last step of terms is followed by what is left.
  __device__ static int gap(int whole, int term_slices) {
    int term_steps = (term_slices + kTermSlicesAStep - 1) / kTermSlicesAStep;
    return term_steps == 0 ? whole : (whole + term_steps - 1) / term_steps;
  }

  // Of terms or of what k leaves: what comes before the next whole steps of k. 0: nothing.
  __device__ int slices() const { return terms_ > 0 ? min(kTermSlicesAStep, terms_) : whole_ == 0 ? rest_ : 0; }
  __device__ bool terms() const { return terms_ > 0; }
  // That they are done; the number of whole steps that follow.
  __device__ int advance() {
    if (terms_ > 0) terms_ = max(0, terms_ - kTermSlicesAStep);
    else if (whole_ == 0) rest_ = 0;
    int count = min(gap_, whole_);
    whole_ -= count;
    return count;
  }
  __device__ bool left() const { return whole_ + rest_ + terms_ > 0; }

  // Of a tile, all of them.
  __device__ static int count(const TileInfo& tile) {
    return (tile.slices + kSlicesAStep - 1) / kSlicesAStep + (tile.term_slices + kTermSlicesAStep - 1) / kTermSlicesAStep;
  }

 private:
  int whole_, rest_, terms_, gap_;
};

template <bool kAlongK, Gather kGather, bool kDropout>
struct Relay {
  using Ring = hopper::Ring<kStages>;

  __device__ static void skip(Ring& ring, int steps) {
    int slot = ring.slot + steps;
    ring.parity ^= static_cast<uint32_t>(slot / kStages) & 1;
    ring.slot = slot % kStages;
  }

  // One warp's work.
  __device__ static void look_up(const RelayArgs& args, TileQueue& queue) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    hopper::Ring<kTilesAhead> ring;
    for (Walk<kGather> walk(args.schedule, args.blocks, args.k);; walk.next()) {
      TileInfo tile{};
      tile.valid = walk.valid();
      if (walk.valid()) {
        tile.row = walk.row();
        tile.column = walk.column();
        tile.slices = walk.slices();
        tile.term_slices = term_slices<kGather>(args.finish.epilogue, tile.column);
        tile.end = kGather == Gather::kColumns ? walk.active() : args.finish.n;
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
          tile.origin[p] = tile.column + p * kPanelColumns;
          if constexpr (kGather == Gather::kColumns) tile.origin[p] = ActiveBlocks(args.blocks, tile.row).neuron(tile.origin[p]);
        }
        if constexpr (kGather == Gather::kSteps) {
          // So that the one thread that will read the list finds it in the first cache.
          ActiveBlocks active(args.blocks, tile.row);
          for (int place = lane * 32; place < active.count(); place += 32 * 32) active.touch(place);
        }
      }
      queue.empty[ring.slot].wait(ring.parity ^ 1);
      if (lane == 0) {
        queue.tiles[ring.slot] = tile;
        queue.full[ring.slot].arrive();
      }
      __syncwarp();
      if (!tile.valid) return;
      ring.advance();
    }
  }

  // Where W's boxes of a step begin. They are asked for while the step before is copied.
  class RowsAlongK {
   public:
    __device__ RowsAlongK(const RelayArgs& args, int row) : active_(args.blocks, row), box_(1 << args.box_bits) { ask(0); }
    // Of the two boxes, or the one, of the step that starts with compact row k; steps come in turn.
    __device__ void next(int k, int (&rows)[2]) {
      rows[0] = rows_[0];
      rows[1] = rows_[1];
      ask(k + kTileK);
    }

   private:
    __device__ void ask(int k) {
      rows_[0] = active_.neuron(k);
      if (box_ < kTileK) rows_[1] = active_.neuron(k + box_);
    }
    ActiveBlocks active_;
    int box_;
    int rows_[2] = {};
  };
  // Without a list.
  struct OwnRows {
    __device__ OwnRows(const RelayArgs&, int) {}
    __device__ void next(int k, int (&rows)[2]) { rows[0] = k; }
  };

  // One thread's work.
  __device__ static void produce(const RelayArgs& args, RelayShared& shared, int rank) {
    bool pair = args.schedule.cluster == 2;
    int first_half = pair ? rank : 0, end_half = pair ? rank + 1 : 2;
    uint16_t both = pair ? 3 : 1;
    int box = 1 << args.box_bits;
    bool two_boxes = args.box_bits < 6;  // in half a tile's columns, or in a step
    TileReader reader(shared.queue);
    Ring ring;
    uint32_t written_parity = 0;
    for (;;) {
      const TileInfo& told = reader.next();
      TileInfo tile = told;
      reader.release(told);
      if (!tile.valid) return;
      std::conditional_t<kGather == Gather::kSteps, RowsAlongK, OwnRows> along_k(args, tile.row);
      int k = 0;
      auto copy_step = [&]() PNB_INLINE {
        int rows[2];
        if constexpr (!kAlongK) along_k.next(k, rows);
        Stage& stage = shared.stages[ring.slot];
        hopper::Barrier& full = shared.full[ring.slot];
        shared.empty[ring.slot].wait(ring.parity ^ 1);
        full.arrive_and_expect(sizeof(Stage));
        hopper::copy_box(stage.a, args.a, full, k, tile.row);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (half < first_half || half >= end_half) continue;
          char* to = stage.b + half * kHalf * kTileK * 2;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (i == 1 && !two_boxes) continue;
            if constexpr (kAlongK) copy_box_to(to + i * box * 128, args.b, full, k, tile.origin[2 * half + i], both);
            else copy_box_to(to + i * box * 128, args.b, full, tile.column + half * kHalf, rows[i], both);
          }
        }
        ring.advance();
        k += kTileK;
      };
      for (Steps steps(tile); steps.left();) {
        bool rest = steps.slices() > 0 && !steps.terms();
        if (steps.terms()) {
          // The waits stay with this thread, which leaves none out: parity tells a phase from its neighbours only.
          shared.empty[ring.slot].wait(ring.parity ^ 1);
          shared.terms_written.wait(written_parity ^ 1);  // of the step of terms before this
          written_parity ^= 1;
          shared.term_stage.arrive();
          ring.advance();
        }
        for (int count = steps.advance() + (rest ? 1 : 0); count > 0; --count) copy_step();
      }
    }
  }

  __device__ static void write_terms(const RelayArgs& args, RelayShared& shared, int thread) {
    TileReader reader(shared.queue);
    Ring ring;
    uint32_t parity = 0;
    for (;;) {
      const TileInfo& tile = reader.next();
      if (!tile.valid) return;
      TermWriter<kAlongK, kGather> writer(args.finish.epilogue, args.finish.m, tile, thread);
      for (Steps steps(tile); steps.left();) {
        bool rest = steps.slices() > 0 && !steps.terms();
        if (steps.terms()) {
          Stage& stage = shared.stages[ring.slot];
          writer.fetch();
          shared.term_stage.wait(parity);
          parity ^= 1;
          writer.store(stage, steps.slices());
          hopper::fence_async_proxy();
          hopper::sync_threads(kTermsWritten, kTermThreads);
          if (thread == 0) {
            shared.full[ring.slot].arrive();
            shared.terms_written.arrive();
          }
          ring.advance();
        }
        skip(ring, steps.advance() + (rest ? 1 : 0));
      }
      __syncwarp();
      if (thread % 32 == 0) reader.release(tile);
    }
  }

  __device__ static void consume(const RelayArgs& args, RelayShared& shared, int warpgroup, int rank) {
    int thread = static_cast<int>(threadIdx.x) % hopper::kWarpgroup;
    bool pair = args.schedule.cluster == 2;
    // A warpgroup's wgmmas begin when the other has seen all stages before its own: a wait's parity is then that of the next
    // phase, and one's epilogue runs behind the other's wgmmas.
    auto pass_turn = [&] {
      asm volatile("bar.arrive %0, %1;" ::"r"(kTurn + (warpgroup ^ 1)), "r"(2 * hopper::kWarpgroup) : "memory");
    };
    TileReader reader(shared.queue);
    auto release_tile = [&](const TileInfo& tile) {
      __syncwarp();
      if (thread % 32 == 0) reader.release(tile);
    };
    Ring ring;
    const TileInfo* tile = &reader.next();
    if (!hopper::uniform(tile->valid)) return;
    if (warpgroup == 0) {
      if (thread == 0) TileFinish<kGather, kDropout>::fetch_residual(args.finish, args.residual, shared.finish, *tile);
    } else {
      pass_turn();
      skip(ring, hopper::uniform(Steps::count(*tile)));
      release_tile(*tile);
      tile = &reader.next();
      if (!hopper::uniform(tile->valid)) return;
    }
    for (;;) {
      int whole_steps = hopper::uniform(tile->slices / kSlicesAStep);
      int rest = hopper::uniform(tile->slices % kSlicesAStep);
      int term_slices = hopper::uniform(tile->term_slices);
      // What follows is looked up now: between two turns the tensor cores would wait for it.
      const TileInfo& other = reader.next();
      bool others = hopper::uniform(other.valid) != 0;
      int steps_of_other = others ? hopper::uniform(Steps::count(other)) : 0;
      float bias = TileFinish<kGather, kDropout>(args.finish, args.d, shared.finish, *tile, warpgroup, thread).bias();
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
      auto whole = [&](int count) PNB_INLINE {
        for (; count > 0; --count) {
          with_stage([&](uint64_t a, uint64_t b) PNB_INLINE {
#pragma unroll
            for (int s = 0; s < kSlicesAStep; ++s) slice(a, b, s);
          });
        }
      };
      if (term_slices == 0) {
        whole(whole_steps);
      } else {
        int gap = Steps::gap(whole_steps, term_slices);
#pragma unroll 1
        while (term_slices > 0) {
          int slices = min(kTermSlicesAStep, term_slices);
          with_stage([&](uint64_t a, uint64_t b) PNB_INLINE {
#pragma unroll
            for (int s = 0; s < kTermSlicesAStep; ++s) {
              if (s < slices) slice(a, b, s);
            }
          });
          term_slices -= slices;
          int count = min(gap, whole_steps);
          whole_steps -= count;
          whole(count);
        }
      }
      if (rest > 0) {
        with_stage([&](uint64_t a, uint64_t b) PNB_INLINE {
#pragma unroll 1
          for (int s = 0; s < rest; ++s) slice(a, b, s);
        });
      }
      if (others) pass_turn();
      skip(ring, steps_of_other);
      hopper::wgmma::wait<0>();
      hopper::wgmma::fence(sums[0]);
      hopper::wgmma::fence(sums[1]);
      if (unreleased >= 0) release(unreleased);
      if (!add) {
#pragma unroll
        for (int i = 0; i < kTileN / 2; ++i) sums[0][i] = sums[1][i] = 0.0f;
      }
      TileFinish<kGather, kDropout>(args.finish, args.d, shared.finish, *tile, warpgroup, thread).apply(sums, bias);
      if (thread == 0 && others) TileFinish<kGather, kDropout>::fetch_residual(args.finish, args.residual, shared.finish, other);
      release_tile(*tile);
      release_tile(other);
      if (!others) return;
      tile = &reader.next();
      if (!hopper::uniform(tile->valid)) return;
    }
  }
};

template <bool kAlongK, Gather kGather, bool kDropout>
__global__ void __launch_bounds__(kRelayThreads, 1) relay_kernel(const __grid_constant__ RelayArgs args) {
  extern __shared__ __align__(1024) char shared_bytes[];
  RelayShared& shared = *reinterpret_cast<RelayShared*>(shared_bytes);
  using Kernel = Relay<kAlongK, kGather, kDropout>;
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
    shared.term_stage.init(1);
    shared.terms_written.init(1);
    shared.finish.residual.init(1);
    shared.finish.left.init(1);
    shared.queue.init(kQueueReaders);
    hopper::fence_barrier_init();
  }
  cluster_sync();
  // What comes before in the stream may still run until here; what comes after may begin as blocks of this grid end.
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
  if (warpgroup == 0) {
    hopper::give_registers<kProducerRegisters>();
    if (warp == 0) {
      if (elected()) Kernel::produce(args, shared, rank);
    } else if (warp == 1) {
      Kernel::look_up(args, shared.queue);
    } else {
      Kernel::write_terms(args, shared, static_cast<int>(threadIdx.x) - 64);
    }
  } else {
    hopper::take_registers<kConsumerRegisters>();
    Kernel::consume(args, shared, warpgroup - 1, rank);
  }
  // The other block of the cluster may still write to this one's memory and arrive at its barriers.
  cluster_sync();
}

// kDropout: of terms with dropout, and only then.
template <bool kAlongK, Gather kGather, bool kDropout = false>
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
  args.schedule.band = kRowGroups;
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

  auto kernel = relay_kernel<kAlongK, kGather, kDropout>;
  allow_shared_memory(kernel, sizeof(RelayShared), "gemm");
  cudaLaunchConfig_t launch{};
  int tiles = args.schedule.row_groups * args.schedule.columns * args.schedule.cluster;
  launch.gridDim = static_cast<unsigned>(std::min(tiles, multiprocessors / args.schedule.cluster * args.schedule.cluster));
  launch.blockDim = kRelayThreads;
  launch.dynamicSmemBytes = sizeof(RelayShared);
  launch.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(args.schedule.cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  launch.attrs = attributes;
  launch.numAttrs = 2;
  check(cudaLaunchKernelEx(&launch, kernel, args), "gemm");
}

}  // namespace pnb::cuda::sm90
