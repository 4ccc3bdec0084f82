// A warpgroup's way through the stages of a tile: what its wgmmas make of them is added to sums, of 64 rows each.
#pragma once

#include "cuda/kernels/gemm/sm90_feed.cuh"

namespace pnb::cuda::sm90 {

// A stage is given back when the next one's wgmmas are under way, or all are waited for.
template <class Shape, bool kAlongK>
class Multiplier {
 public:
  static constexpr int kParts = Shape::Part::kRows / 64;
  using Ring = hopper::Ring<Shape::kStages>;
  using Shared = FedShared<Shape>;
  using Sums = float[kParts][Shape::kTileN / 2];

  // first_row: of a stage's rows of a. thread: of the warpgroup. pair: the cluster's other block waits for stages, too.
  __device__ __forceinline__ Multiplier(Shared& shared, Ring& ring, Sums& sums, int first_row, int thread, bool pair, int rank)
      : shared_(shared), ring_(ring), sums_(sums), first_row_(first_row), thread_(thread), pair_(pair), rank_(rank) {}

  // So many whole steps of k.
  __device__ __forceinline__ void whole(int count) {
    for (; count > 0; --count) {
      with_stage([&](uint64_t a, uint64_t b) PNB_INLINE {
#pragma unroll
        for (int s = 0; s < kSlicesAStep; ++s) slice(a, b, s);
      });
    }
  }

  // A step of terms, of the slices that are left of them.
  __device__ __forceinline__ void terms(int& left) {
    int slices = min(kTermSlicesAStep, left);
    with_stage([&](uint64_t a, uint64_t b) PNB_INLINE {
#pragma unroll
      for (int s = 0; s < kTermSlicesAStep; ++s) {
        if (s < slices) slice(a, b, s);
      }
    });
    left -= slices;
  }

  // What k leaves for a step of its own. 0: nothing.
  __device__ __forceinline__ void rest(int slices) {
    if (slices == 0) return;
    with_stage([&](uint64_t a, uint64_t b) PNB_INLINE {
#pragma unroll 1
      for (int s = 0; s < slices; ++s) slice(a, b, s);
    });
  }

  // Waits for all wgmmas, and gives their last stage back.
  __device__ __forceinline__ void drain() {
    hopper::wgmma::wait<0>();
    if (unreleased_ >= 0) release(unreleased_);
    unreleased_ = -1;
  }

  // After the last step: the sums may be read, and are 0 where there was none.
  __device__ __forceinline__ void finish() {
    drain();
    fence();
    if (add_) return;
    asm volatile("");  // so that this stays a branch, not a selection for each sum
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int v = 0; v < Shape::kTileN / 2; ++v) sums_[i][v] = 0.0f;
    }
  }

 private:
  template <typename Body>
  __device__ __forceinline__ void with_stage(Body&& body) {
    shared_.full[ring_.slot].wait(ring_.parity);
    uint64_t a = operand(hopper::shared_address(shared_.stages[ring_.slot].a) + first_row_ * 128, 16);
    uint64_t b = operand(hopper::shared_address(shared_.stages[ring_.slot].b), kAlongK ? 16 : kTileK * 128);
    fence();
    hopper::wgmma::begin();
    body(a, b);
    hopper::wgmma::commit();
    hopper::wgmma::wait<1>();
    if (unreleased_ >= 0) release(unreleased_);
    unreleased_ = ring_.slot;
    ring_.advance();
  }

  __device__ __forceinline__ void slice(uint64_t a, uint64_t b, int s) {
    constexpr uint64_t kRow = 32 >> 4;  // bytes of a slice in a row, in units of 16
    constexpr uint64_t kStepB = kAlongK ? kRow : (kSliceK * 128) >> 4;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      hopper::wgmma::step<Shape::kTileN, kAlongK ? hopper::wgmma::Major::K : hopper::wgmma::Major::MN>(
          sums_[i], a + i * ((64 * 128) >> 4) + s * kRow, b + s * kStepB, add_);
    }
    add_ = true;
  }

  // Descriptors of a stage's swizzled operands for slices along k.
  __device__ static uint64_t operand(uint32_t address, uint32_t panel_bytes) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(panel_bytes >> 4) << 16 |
           static_cast<uint64_t>(1024 >> 4) << 32 | static_cast<uint64_t>(1) << 62;
  }

  __device__ __forceinline__ void release(int slot) {
    if (thread_ == 0) shared_.empty[slot].arrive();
    if (pair_ && thread_ == 32) arrive_remotely(shared_.empty[slot], rank_ ^ 1);
  }

  __device__ __forceinline__ void fence() {
#pragma unroll
    for (int i = 0; i < kParts; ++i) hopper::wgmma::fence(sums_[i]);
  }

  Shared& shared_;
  Ring& ring_;
  Sums& sums_;
  int first_row_, thread_;
  bool pair_;
  int rank_;  // in the cluster
  bool add_ = false;
  int unreleased_ = -1;
};

}  // namespace pnb::cuda::sm90
