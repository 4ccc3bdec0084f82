// A persistent product on sm_90 whose two warpgroups share a 128 x 256 tile, the upper half and the lower. That takes fewer bytes
// of L2 and of shared memory an operation than a tile for each, and so less energy. Neither waits for the other except by the
// stages, which both must have read, by the lower half's last steps, which follow the upper half's, and by the one place on the
// way out: the lower half's wgmmas run while the upper half ends, and the upper half's next ones while the lower half does.
#pragma once

#include "cuda/kernels/gemm/sm90_multiplier.cuh"
#include "cuda/kernels/gemm/sm90_tandem.h"

namespace pnb::cuda::sm90 {

struct TandemShape {
  static constexpr int kTileN = 256;
  static constexpr int kStages = 4;
  static constexpr int kReaders = 2;  // warpgroups of a block that read a stage
  // Registers a thread. The three warpgroups start with 168 each and divide them anew: 88 + 2 * 208.
  static constexpr int kFeedRegisters = 88;
  static constexpr int kConsumerRegisters = 208;
  using Part = TilePart<kTileM / 2, kTileN>;
};

// Terms without dropout only.
template <bool kAlongK_, Gather kGather_>
struct Tandem {
  static constexpr bool kAlongK = kAlongK_;
  static constexpr Gather kGather = kGather_;
  static constexpr int kTileN = TandemShape::kTileN;
  using Shape = TandemShape;
  using Feed = sm90::Feed<Shape, kAlongK, kGather>;
  using Shared = FedShared<Shape>;
  using Ring = typename Feed::Ring;
  using Finish = TileFinish<typename Shape::Part, kGather, false>;

  __device__ static void consume(const FedArgs& args, Shared& shared, int warpgroup, int rank) {
    int thread = static_cast<int>(threadIdx.x) % hopper::kWarpgroup;
    bool pair = args.schedule.cluster == 2;
    TileReader reader(shared.queue);
    Ring ring;
    const TileInfo* tile = &reader.next();
    if (!hopper::uniform(tile->valid)) return;
    for (int count = 0;; ++count) {
      int turn = count % 2;  // the upper half may be a tile ahead
      int whole_steps = hopper::uniform(tile->slices / kSlicesAStep);
      int rest = hopper::uniform(tile->slices % kSlicesAStep);
      int term_slices = hopper::uniform(tile->term_slices);
      int gap = Steps::gap(whole_steps, term_slices);
      float sums[1][kTileN / 2];
      Multiplier<Shape, kAlongK> multiply(shared, ring, sums, warpgroup * Shape::Part::kRows, thread, pair, rank);
      if (term_slices > 0) {
        multiply.terms(term_slices);
      } else if (whole_steps > 0) {
        multiply.whole(1);
        --whole_steps;
      }
      // While these run.
      Finish finish(args.finish, shared.finish, *tile, warpgroup, thread);
      typename Finish::Mask mask;
      finish.ask_for_mask(mask);
#pragma unroll 1
      while (term_slices > 0) {
        int steps = min(gap, whole_steps);
        whole_steps -= steps;
        multiply.whole(steps);
        multiply.terms(term_slices);
      }
      // The lower half's last steps, as many as there are stages, begin when all of the upper half's are under way: they run while
      // the upper half ends. Until then it holds no stage that the upper half needs.
      int last_steps = min(whole_steps, Shape::kStages);
      multiply.whole(whole_steps - last_steps);
      multiply.drain();
      if (warpgroup == 1) hopper::sync_threads(kTurn + turn, 2 * hopper::kWarpgroup);
      multiply.whole(last_steps);
      if (warpgroup == 0) asm volatile("bar.arrive %0, %1;" ::"r"(kTurn + turn), "r"(2 * hopper::kWarpgroup) : "memory");
      multiply.rest(rest);
      const TileInfo* next = &reader.next();
      bool more = hopper::uniform(next->valid) != 0;
      multiply.finish();
      finish.apply(sums, mask, count);
      reader.release(*tile);
      if (!more) return;
      tile = next;
    }
  }
};

template <bool kAlongK, Gather kGather>
void run_tandem(const Product& p, int multiprocessors, cudaStream_t stream) {
  run_fed<Tandem<kAlongK, kGather>>(p, multiprocessors, stream);
}

}  // namespace pnb::cuda::sm90
