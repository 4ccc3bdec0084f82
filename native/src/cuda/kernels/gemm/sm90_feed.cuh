// What feeds the warpgroups of a persistent product on sm_90: one warp of a block fills a ring of stages by bulk tensor copies,
// one looks tiles up and sends what became of them to d, and two write the steps of low-rank terms, or make ReLU's masks. Two
// blocks one above the other form a cluster: each copies one half of b's tile to both.
//
// A list of active blocks changes where a copy reads the weight and how many tiles or steps there are, and nothing else: a
// stage's part of b comes in boxes of at most a block's rows, each with its own coordinate, and the tile itself is that of
// the dense product. So a full list gives its bits.
#pragma once

#include <algorithm>

#include "cuda/kernels/gemm/sm90_finish.cuh"
#include "cuda/kernels/gemm/sm90_maps.h"
#include "cuda/kernels/gemm/sm90_terms.cuh"
#include "cuda/runtime/device.h"

namespace pnb::cuda::sm90 {

constexpr int kFedThreads = 3 * hopper::kWarpgroup;  // the feeding warps', and two warpgroups'
// Named barriers: 1 and 2 are the warpgroups' own.
constexpr int kTurn = 3;  // and 4: whose wgmmas are next, of which tile
constexpr int kTermsWritten = 5;

struct FedArgs {
  CUtensorMap a, b, d;
  CUtensorMap residual, d_halves;  // of halves of parts where panels are whole, else of panels
  Schedule schedule;
  Blocks blocks;
  Finish finish;
  int32_t k;         // of a
  int32_t box_bits;  // log2 of the rows of W in a box
};

// Shape: kTileN columns of a tile, kStages, the Part of a tile that a warpgroup computes.
template <class Shape>
struct FedShared {
  Stage<Shape::kTileN> stages[Shape::kStages];
  FinishShared<typename Shape::Part> finish;
  hopper::Barrier full[Shape::kStages], empty[Shape::kStages];
  hopper::Barrier term_stage, terms_written;  // a stage is free for a step of terms; that step is there
  TileQueue queue;
};
// Threads that read the queue: the one that feeds stages, those that write terms, and the warpgroups'.
constexpr int kQueueReaders = 1 + kTermThreads + 2 * hopper::kWarpgroup;

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

template <int kStages>
__device__ __forceinline__ void skip(hopper::Ring<kStages>& ring, int steps) {
  int slot = ring.slot + steps;
  ring.parity ^= static_cast<uint32_t>(slot / kStages) & 1;
  ring.slot = slot % kStages;
}

template <class Shape, bool kAlongK, Gather kGather>
struct Feed {
  static constexpr int kTileN = Shape::kTileN;
  static constexpr int kHalf = kTileN / 2;  // what one block of a cluster copies of b: columns
  // W's rows in half a tile's columns, or in a step, and the boxes that these come in at most.
  static constexpr int kListed = kAlongK ? kHalf : kTileK;
  static constexpr int kMostBoxes = kGather == Gather::kNone ? 1 : kListed / kPanelColumns;
  using Ring = hopper::Ring<Shape::kStages>;
  using Shared = FedShared<Shape>;

  // One warp's work: looks tiles up, two ahead of the one whose parts it sends to d, tells biases and asks for residuals.
  template <class Finish>
  __device__ static void look_up_and_send(const FedArgs& args, Shared& shared) {
    constexpr int kParts = Shape::Part::kWhole ? 1 : 2;  // of a tile
    TileQueue& queue = shared.queue;
    int lane = static_cast<int>(threadIdx.x) % 32;
    Walk<kGather, kTileN> walk(args.schedule, args.blocks, args.k);
    hopper::Ring<kTilesAhead> ring;
    bool all = false;
    auto tell_next = [&] {
      if (all) return;
      all = !walk.valid();
      TileInfo tile = look_up(args, walk, lane);
      queue.empty[ring.slot].wait(ring.parity ^ 1);
      if (lane == 0) {
        queue.tiles[ring.slot] = tile;
        queue.full[ring.slot].arrive();
      }
      __syncwarp();
      ring.advance();
      walk.next();
    };
    auto ask = [&](const TileInfo& tile, int warpgroup, int half) {
      if (tile.valid) Finish::fetch_residual(args.finish, args.residual, shared.finish, tile, warpgroup, half);
    };
    auto tell_bias = [&](const TileInfo& tile, int turn) {
      if (tile.valid) Finish::tell_bias(args.finish, shared.finish, tile, turn, lane);
    };
    tell_next();
    tell_bias(queue.tiles[0], 0);
    if (lane < 2) ask(queue.tiles[0], 0, lane);
    tell_next();
    // Only this warp writes tiles, so one that it has told stays until it tells the fourth after that.
    int part = 0, turn = 0;
    for (hopper::Ring<kTilesAhead> at; queue.tiles[at.slot].valid; at.advance()) {
      const TileInfo& tile = queue.tiles[at.slot];
      const TileInfo& next = queue.tiles[(at.slot + 1) % kTilesAhead];
      tell_bias(next, turn ^= 1);  // the bias that had its place, of the tile before this, has been read
      tell_next();
#pragma unroll 1
      for (int i = 0; i < kParts; ++i, part ^= 1) {
        const TileInfo& after = i + 1 < kParts ? tile : next;
        auto left = [&](int half) {
          ask(after, part ^ 1, half);
          shared.finish.left[part][half].arrive();
        };
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // By each lane: by this it knows that its share of the bias has been read. None is left behind when the part goes on.
          shared.finish.rounded[half].wait(static_cast<uint32_t>(part));
          __syncwarp();
          if (lane == 0) Finish::send(args.finish, args.d_halves, args.d, shared.finish, tile, part, half);
        }
        if (lane == 0) {
          Finish::template wait_sent<1>();
          left(0);
          Finish::template wait_sent<0>();
          left(1);
        }
        __syncwarp();
      }
    }
  }

  __device__ static TileInfo look_up(const FedArgs& args, const Walk<kGather, kTileN>& walk, int lane) {
    TileInfo tile{};
    tile.valid = walk.valid();
    if (!walk.valid()) return tile;
    tile.row = walk.row();
    tile.column = walk.column();
    tile.slices = walk.slices();
    tile.term_slices = term_slices<kGather, kTileN>(args.finish.epilogue, tile.column);
    tile.end = kGather == Gather::kColumns ? walk.active() : args.finish.n;
    if constexpr (kGather == Gather::kColumns) {
      static_assert(kTileN <= kListedPanels * kPanelColumns, "a tile's panels have their places");
#pragma unroll
      for (int p = 0; p < kTileN / kPanelColumns; ++p) {
        tile.origin[p] = ActiveBlocks(args.blocks, tile.row).neuron(tile.column + p * kPanelColumns);
      }
    }
    if constexpr (kGather == Gather::kSteps) {
      // So that the one thread that will read the list finds it in the first cache.
      ActiveBlocks active(args.blocks, tile.row);
      for (int place = lane * 32; place < active.count(); place += 32 * 32) active.touch(place);
    }
    return tile;
  }

  // Where W's boxes of a step begin. They are asked for while the step before is copied.
  class RowsAlongK {
   public:
    __device__ RowsAlongK(const FedArgs& args, int row) : active_(args.blocks, row), box_(1 << args.box_bits) { ask(0); }
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
    __device__ OwnRows(const FedArgs&, int) {}
    __device__ void next(int k, int (&rows)[2]) { rows[0] = k; }
  };

  // One thread's work.
  __device__ static void produce(const FedArgs& args, Shared& shared, int rank) {
    bool pair = args.schedule.cluster == 2;
    int first_half = pair ? rank : 0, end_half = pair ? rank + 1 : 2;
    uint16_t both = pair ? 3 : 1;
    int box = 1 << args.box_bits;
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
        Stage<kTileN>& stage = shared.stages[ring.slot];
        hopper::Barrier& full = shared.full[ring.slot];
        shared.empty[ring.slot].wait(ring.parity ^ 1);
        full.arrive_and_expect(sizeof(stage));
        hopper::copy_box(stage.a, args.a, full, k, tile.row);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (half < first_half || half >= end_half) continue;
          char* to = stage.b + half * kHalf * kTileK * 2;
#pragma unroll
          for (int i = 0; i < kMostBoxes; ++i) {
            int row = i * kPanelColumns;
            if ((row & (box - 1)) != 0) continue;
            if constexpr (kAlongK) {
              int origin = panel_origin<kGather>(tile, half * (kHalf / kPanelColumns) + i);
              copy_box_to(to + row * 128, args.b, full, k, origin, both);
            } else {
#pragma unroll
              for (int x = 0; x < kHalf; x += 64) {
                copy_box_to(to + x * kTileK * 2 + row * 128, args.b, full, tile.column + half * kHalf + x, rows[i], both);
              }
            }
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

  __device__ static void write_terms(const FedArgs& args, Shared& shared, int thread) {
    TileReader reader(shared.queue);
    Ring ring;
    uint32_t parity = 0;
    for (;;) {
      const TileInfo& tile = reader.next();
      if (!tile.valid) return;
      TermWriter<kAlongK, kGather, kTileN> writer(args.finish.epilogue, args.finish.m, tile, thread);
      for (Steps steps(tile); steps.left();) {
        bool rest = steps.slices() > 0 && !steps.terms();
        if (steps.terms()) {
          Stage<kTileN>& stage = shared.stages[ring.slot];
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
      reader.release(tile);
    }
  }

  // The work of the warps that write terms where there are none: the masks of parts on their way.
  template <class Finish>
  __device__ static void make_masks(const FedArgs& args, Shared& shared, int thread) {
    TileReader reader(shared.queue);
    for (;;) {
      const TileInfo& tile = reader.next();
      if (!tile.valid) return;
#pragma unroll 1
      for (int part = 0; part < 2; ++part) {
        Finish finish(args.finish, shared.finish, tile, part, thread);
        shared.finish.rounded[0].wait(static_cast<uint32_t>(part));
        finish.template make_mask<0>();
        shared.finish.rounded[1].wait(static_cast<uint32_t>(part));
        finish.template make_mask<1>();
      }
      reader.release(tile);
    }
  }
};
static_assert(kMaskThreads == kTermThreads, "the same threads");

// Consumers: their Shape, what they read by, and their consume().
template <class Consumers>
__global__ void __launch_bounds__(kFedThreads, 1) fed_kernel(const __grid_constant__ FedArgs args) {
  using Shape = typename Consumers::Shape;
  using Feed = typename Consumers::Feed;
  using Shared = FedShared<Shape>;
  static_assert(sizeof(Shared) <= 227 * 1024, "what a block may have");
  static_assert(sizeof(Shared::stages) % 1024 == 0, "what follows is aligned as its swizzle needs");
  extern __shared__ __align__(1024) char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  int warpgroup = hopper::uniform(static_cast<int>(threadIdx.x) / hopper::kWarpgroup);
  int warp = hopper::uniform(static_cast<int>(threadIdx.x) / 32);
  int rank = args.schedule.cluster == 2 ? cluster_rank() : 0;
  if (threadIdx.x == 0) {
    hopper::prefetch_map(args.a);
    hopper::prefetch_map(args.b);
    hopper::prefetch_map(args.d_halves);
    for (int i = 0; i < Shape::kStages; ++i) {
      shared.full[i].init(1);
      shared.empty[i].init(static_cast<uint32_t>(args.schedule.cluster * Shape::kReaders));
    }
    shared.term_stage.init(1);
    shared.terms_written.init(1);
    for (hopper::Barrier& biased : shared.finish.biased) biased.init(32);
    for (int half = 0; half < 2; ++half) {
      shared.finish.residual[half].init(1);
      shared.finish.rounded[half].init(hopper::kWarpgroup);
      for (auto& left : shared.finish.left) left[half].init(Consumers::Finish::leaving(args.finish));
    }
    shared.queue.init(kQueueReaders);
    hopper::fence_barrier_init();
  }
  cluster_sync();
  // What comes before in the stream may still run until here; what comes after may begin as blocks of this grid end.
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
  if (warpgroup == 0) {
    hopper::give_registers<Shape::kFeedRegisters>();
    if (warp == 0) {
      if (elected()) Feed::produce(args, shared, rank);
    } else if (warp == 1) {
      Feed::template look_up_and_send<typename Consumers::Finish>(args, shared);
    } else if (Consumers::Finish::kMaskApart && args.finish.mask_apart) {
      Feed::template make_masks<typename Consumers::Finish>(args, shared, static_cast<int>(threadIdx.x) - 64);
    } else {
      Feed::write_terms(args, shared, static_cast<int>(threadIdx.x) - 64);
    }
  } else {
    hopper::take_registers<Shape::kConsumerRegisters>();
    Consumers::consume(args, shared, warpgroup - 1, rank);
  }
  // The other block of the cluster may still write to this one's memory and arrive at its barriers.
  cluster_sync();
}

template <class Consumers>
void run_fed(const Product& p, int multiprocessors, cudaStream_t stream) {
  constexpr bool kAlongK = Consumers::kAlongK;
  constexpr Gather kGather = Consumers::kGather;
  using Shape = typename Consumers::Shape;
  using Part = typename Shape::Part;
  FedArgs args{};
  int tiles_m = (p.m + kTileM - 1) / kTileM;
  bool own_lists = kGather != Gather::kNone && p.blocks.rows_per_list < p.m;
  // Both blocks of a cluster read the same columns of b.
  args.schedule.cluster = tiles_m > 1 && (!own_lists || p.blocks.rows_per_list % (2 * kTileM) == 0) ? 2 : 1;
  int group_rows = args.schedule.cluster * kTileM;
  args.schedule.row_groups = (p.m + group_rows - 1) / group_rows;
  args.schedule.row_groups_a_list = own_lists ? p.blocks.rows_per_list / group_rows : args.schedule.row_groups;
  args.schedule.columns = (p.n + Shape::kTileN - 1) / Shape::kTileN;
  args.schedule.band = kRowGroups;
  args.blocks = p.blocks;
  args.k = p.k;
  constexpr int kBoxBits = kAlongK && Shape::kTileN > 128 ? 7 : 6;
  args.box_bits = kGather == Gather::kNone ? kBoxBits : std::min(kBoxBits, p.blocks.size_bits);
  args.finish = finish_of(p);
  int box = 1 << args.box_bits;
  args.a = operand_map(p.a.data, p.m, p.k, p.a.row_stride, kTileM);
  if constexpr (kAlongK) {
    args.b = operand_map(p.b.data, kGather == Gather::kColumns ? p.blocks.neurons : p.n, p.k, p.b.column_stride, box);
  } else {
    args.b = operand_map(p.b.data, kGather == Gather::kSteps ? p.blocks.neurons : p.k, p.n, p.b.row_stride, box);
  }
  args.d = result_map(p.d.data, p.m, p.n, p.d.row_stride, Part::kRows);
  auto halves = [&](const Matrix& x) {
    return args.finish.whole_panels ? panels_map(x.data, p.m, p.n, x.row_stride, Part::kRows, Part::kHalfPanels)
                                    : result_map(x.data, p.m, p.n, x.row_stride, Part::kRows);
  };
  args.d_halves = halves(p.d);
  args.residual = args.finish.residual_copied ? halves(p.residual) : args.d;

  auto kernel = fed_kernel<Consumers>;
  allow_shared_memory(kernel, sizeof(FedShared<Shape>), "gemm");
  cudaLaunchConfig_t launch{};
  int tiles = args.schedule.row_groups * args.schedule.columns * args.schedule.cluster;
  launch.gridDim = static_cast<unsigned>(std::min(tiles, multiprocessors / args.schedule.cluster * args.schedule.cluster));
  launch.blockDim = kFedThreads;
  launch.dynamicSmemBytes = sizeof(FedShared<Shape>);
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
