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
constexpr int kTermsWritten = 5;
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
  hopper::Barrier term_stage, terms_written;  // a stage is free for a step of terms; that step is there
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

// Copies a box to the same place in the blocks of a cluster whose bits are set, and tells their barriers.
__device__ __forceinline__ void copy_box_to(void* to, const CUtensorMap& map, hopper::Barrier& full, int x, int y, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(
          hopper::shared_address(to)),
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

template <bool kAlongK, Gather kGather>
struct Relay {
  using Tiles = Walk<kGather>;
  using Ring = hopper::Ring<kStages>;

  __device__ static int term_steps(int slices) { return (slices + kSlicesAStep - 1) / kSlicesAStep; }

  // All steps of a tile.
  __device__ static int steps(const RelayArgs& args, const Tiles& tile) {
    return tile.steps() + term_steps(term_slices<kGather>(args.finish.epilogue, tile.column()));
  }

  __device__ static void skip(Ring& ring, int steps) {
    int slot = ring.slot + steps;
    ring.parity ^= static_cast<uint32_t>(slot / kStages) & 1;
    ring.slot = slot % kStages;
  }

  // Where W's boxes of a step begin. One is asked for while the step before it is copied.
  class RowsAlongK {
   public:
    __device__ RowsAlongK(const RelayArgs& args, int row) : active_(args.blocks, row), box_(1 << args.box_bits) {
      ask(0);
    }
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
  __device__ static void produce(const RelayArgs& args, RelayShared& shared, Tiles tile, int rank) {
    bool pair = args.schedule.cluster == 2;
    int first_half = pair ? rank : 0, end_half = pair ? rank + 1 : 2;
    uint16_t both = pair ? 3 : 1;
    int box = 1 << args.box_bits;
    bool two_boxes = args.box_bits < 6;  // in half a tile's columns, or in a step
    Ring ring;
    uint32_t written_parity = 0;
    for (; tile.valid(); tile.next()) {
      int row = tile.row(), column = tile.column(), steps = tile.steps();
      int rows[2][2];  // of W: for each half and box
      if constexpr (kAlongK) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            rows[half][i] = column + half * kHalf + i * box;
            if constexpr (kGather == Gather::kColumns) rows[half][i] = ActiveBlocks(args.blocks, row).neuron(rows[half][i]);
          }
        }
      }
      std::conditional_t<kGather == Gather::kSteps, RowsAlongK, OwnRows> along_k(args, row);
      for (int k = 0; k < steps * kTileK; k += kTileK) {
        if constexpr (!kAlongK) along_k.next(k, rows[0]);
        Stage& stage = shared.stages[ring.slot];
        hopper::Barrier& full = shared.full[ring.slot];
        shared.empty[ring.slot].wait(ring.parity ^ 1);
        full.arrive_and_expect(sizeof(Stage));
        hopper::copy_box(stage.a, args.a, full, k, row);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (half < first_half || half >= end_half) continue;
          char* to = stage.b + half * kHalf * kTileK * 2;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (i == 1 && !two_boxes) continue;
            if constexpr (kAlongK) copy_box_to(to + i * box * 128, args.b, full, k, rows[half][i], both);
            else copy_box_to(to + i * box * 128, args.b, full, column + half * kHalf, rows[0][i], both);
          }
        }
        ring.advance();
      }
      // The waits stay here, where none is left out: parity tells a phase from its neighbours only.
      for (int step = term_steps(term_slices<kGather>(args.finish.epilogue, column)); step > 0; --step) {
        shared.empty[ring.slot].wait(ring.parity ^ 1);
        shared.terms_written.wait(written_parity ^ 1);  // of the step of terms before this
        written_parity ^= 1;
        shared.term_stage.arrive();
        ring.advance();
      }
    }
  }

  __device__ static void write_terms(const RelayArgs& args, RelayShared& shared, Tiles tile, int thread) {
    const Epilogue& epilogue = args.finish.epilogue;
    Ring ring;
    uint32_t parity = 0;
    for (; tile.valid(); tile.next()) {
      skip(ring, tile.steps());
      int slices = term_slices<kGather>(epilogue, tile.column());
      if (slices == 0) continue;
      int columns[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        columns[i] = tile.column() + 2 * thread + i;
        if constexpr (kGather == Gather::kColumns) columns[i] = ActiveBlocks(args.blocks, tile.row()).neuron(columns[i]);
      }
      TermWriter<kAlongK, kGather> writer(epilogue, args.finish.m, tile.row(), tile.column(), columns, thread);
      for (; slices > 0; slices -= kSlicesAStep) {
        Stage& stage = shared.stages[ring.slot];
        writer.fetch();
        shared.term_stage.wait(parity);
        parity ^= 1;
        writer.store(stage.a, stage.b, 0, slices);
        if (slices > writer.kBatch) {
          writer.fetch();
          writer.store(stage.a, stage.b, writer.kBatch, slices - writer.kBatch);
        }
        hopper::fence_async_proxy();
        hopper::sync_threads(kTermsWritten, kTermThreads);
        if (thread == 0) {
          shared.full[ring.slot].arrive();
          shared.terms_written.arrive();
        }
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
      // The last step where k, or a list's neurons, end within it, and then the terms'.
      int rest = tile.slices() % kSlicesAStep, of_terms = term_slices<kGather>(args.finish.epilogue, tile.column());
#pragma unroll 1
      while (rest + of_terms > 0) {
        int slices = rest > 0 ? rest : min(kSlicesAStep, of_terms);
        if (rest == 0) of_terms -= slices;
        rest = 0;
        with_stage([&](uint64_t a, uint64_t b) PNB_INLINE {
#pragma unroll 1
          for (int s = 0; s < slices; ++s) slice(a, b, s);
        });
      }
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
    shared.term_stage.init(1);
    shared.terms_written.init(1);
    for (FinishShared& finish : shared.finish) finish.residual.init(1);
    hopper::fence_barrier_init();
  }
  cluster_sync();
  // What comes before in the stream may still run until here; what comes after may begin as blocks of this grid end.
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
  typename Kernel::Tiles tile(args.schedule, args.blocks, args.k);
  if (warpgroup == 0) {
    hopper::give_registers<kProducerRegisters>();
    if (warp == 0 && elected()) Kernel::produce(args, shared, tile, rank);
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

  auto kernel = relay_kernel<kAlongK, kGather>;
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
