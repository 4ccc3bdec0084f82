// A persistent product on sm_90 whose two warpgroups take turns at a 128 x 128 tile each, so that one's epilogue runs behind the
// other's wgmmas.
#pragma once

#include "cuda/kernels/gemm/sm90_multiplier.cuh"
#include "cuda/kernels/gemm/sm90_relay.h"

namespace pnb::cuda::sm90 {

struct RelayShape {
  static constexpr int kTileN = 128;
  static constexpr int kStages = 6;
  static constexpr int kReaders = 1;  // warpgroups of a block that read a stage
  // Registers a thread. The three warpgroups start with 168 each and divide them anew: 56 + 2 * 224.
  static constexpr int kFeedRegisters = 56;
  static constexpr int kConsumerRegisters = 224;
  using Part = TilePart<kTileM, kTileN>;
};

// kDropout: of terms with dropout, and only then.
template <bool kAlongK_, Gather kGather_, bool kDropout>
struct Relay {
  static constexpr bool kAlongK = kAlongK_;
  static constexpr Gather kGather = kGather_;
  static constexpr int kTileN = RelayShape::kTileN;
  using Shape = RelayShape;
  using Feed = sm90::Feed<Shape, kAlongK, kGather>;
  using Shared = FedShared<Shape>;
  using Ring = typename Feed::Ring;
  using Finish = TileFinish<typename Shape::Part, kGather, kDropout>;

  __device__ static void consume(const FedArgs& args, Shared& shared, int warpgroup, int rank) {
    int thread = static_cast<int>(threadIdx.x) % hopper::kWarpgroup;
    bool pair = args.schedule.cluster == 2;
    // A warpgroup's wgmmas begin when the other has seen all stages before its own: a wait's parity is then that of the next
    // phase, and one's epilogue runs behind the other's wgmmas.
    auto pass_turn = [&] {
      asm volatile("bar.arrive %0, %1;" ::"r"(kTurn + (warpgroup ^ 1)), "r"(2 * hopper::kWarpgroup) : "memory");
    };
    TileReader reader(shared.queue);
    Ring ring;
    const TileInfo* tile = &reader.next();
    if (!hopper::uniform(tile->valid)) return;
    if (warpgroup == 1) {
      pass_turn();
      skip(ring, hopper::uniform(Steps::count(*tile)));
      reader.release(*tile);
      tile = &reader.next();
      if (!hopper::uniform(tile->valid)) return;
    }
    for (int count = 0;; ++count) {
      int whole_steps = hopper::uniform(tile->slices / kSlicesAStep);
      int rest = hopper::uniform(tile->slices % kSlicesAStep);
      int term_slices = hopper::uniform(tile->term_slices);
      // What follows is looked up now: between two turns the tensor cores would wait for it.
      const TileInfo& other = reader.next();
      bool others = hopper::uniform(other.valid) != 0;
      int steps_of_other = others ? hopper::uniform(Steps::count(other)) : 0;
      hopper::sync_threads(kTurn + warpgroup, 2 * hopper::kWarpgroup);

      float sums[2][kTileN / 2];
      Multiplier<Shape, kAlongK> multiply(shared, ring, sums, 0, thread, pair, rank);
      if (term_slices == 0) {
        multiply.whole(whole_steps);
      } else {
        int gap = Steps::gap(whole_steps, term_slices);
#pragma unroll 1
        while (term_slices > 0) {
          multiply.terms(term_slices);
          int count = min(gap, whole_steps);
          whole_steps -= count;
          multiply.whole(count);
        }
      }
      multiply.rest(rest);
      if (others) pass_turn();
      skip(ring, steps_of_other);
      multiply.finish();
      Finish finish(args.finish, shared.finish, *tile, warpgroup, thread);
      typename Finish::Mask mask;
      finish.ask_for_mask(mask);
      finish.apply(sums, mask, count);
      reader.release(*tile);
      reader.release(other);
      if (!others) return;
      tile = &reader.next();
      if (!hopper::uniform(tile->valid)) return;
    }
  }
};

template <bool kAlongK, Gather kGather, bool kDropout = false>
void run_relay(const Product& p, int multiprocessors, cudaStream_t stream) {
  run_fed<Relay<kAlongK, kGather, kDropout>>(p, multiprocessors, stream);
}

}  // namespace pnb::cuda::sm90
