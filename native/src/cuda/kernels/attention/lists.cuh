// Lists of blocks as kernels take them, and the sample that a slot's block belongs to.
#pragma once

#include "core/tensor.h"
#include "cuda/kernels/attention/heads.cuh"
#include "penumbra/attention_blocks.h"

namespace pnb::cuda::attention {

// Of query blocks, whose lists name key blocks, or of key blocks, whose lists name query blocks.
struct Lists {
  const int32_t* indices = nullptr;  // NULL: no lists
  const int32_t* counts = nullptr;
  const int32_t* order = nullptr;
  int slots = 0, width = 0, size = 0;

  static Lists of_queries(const pnb_attention_blocks& b) { return Lists(b, b.indices, b.counts, 0); }
  static Lists of_keys(const pnb_attention_blocks& b) { return Lists(b, b.t_indices, b.t_counts, 1); }

  Lists() = default;
  __host__ __device__ bool present() const { return indices != nullptr; }

 private:
  Lists(const pnb_attention_blocks& b, const pnb_tensor& of, const pnb_tensor& number, int side) {
    if (!pnb::present(b.indices)) return;
    indices = static_cast<const int32_t*>(of.data);
    counts = static_cast<const int32_t*>(number.data);
    order = static_cast<const int32_t*>(b.order.data) + side * (b.order.shape[1]);
    slots = static_cast<int>(b.indices.shape[1]);
    width = static_cast<int>(b.indices.shape[2]);
    size = b.size;
  }
};

// Lists that one block of threads works off at most.
constexpr int kMaxVisits = 1024;

// An order may hold shares, one for each block of threads, one after another: its first entries say where they begin. Orders of
// more lists never do: with so many for each, loads even out.
constexpr int kMostShared = 16384;
constexpr int kMostShares = 512;
constexpr int kNumberBits = 14;
constexpr int32_t kSharedEntry = 1 << 30;
static_assert(kMostShared <= 1 << kNumberBits && 2 * kNumberBits <= 30, "a list's number and a share's begin");

__device__ inline int32_t shared_entry(int number, int begin) { return kSharedEntry | begin << kNumberBits | number; }
__device__ inline int number_of_entry(int32_t entry) { return entry & ((1 << kNumberBits) - 1); }
__device__ inline int begin_of_entry(int32_t entry) { return (entry & (kSharedEntry - 1)) >> kNumberBits; }

// The slot of a sample's first block.
__device__ inline int first_slot(const Borders& rows, int sample, int size) { return rows.at[sample] / size + sample; }

// The last sample whose first block's slot is not above this one, with its block there: past the sample's end where the slot
// holds none. There has to be a sample.
struct SlotBlock {
  int sample, block;

  __device__ SlotBlock(const Borders& rows, int slot, int size) {
    int low = 0, high = rows.samples - 1;
    while (low < high) {
      int middle = (low + high + 1) / 2;
      if (first_slot(rows, middle, size) <= slot) low = middle;
      else high = middle - 1;
    }
    sample = low;
    block = slot - first_slot(rows, low, size);
  }
};

}  // namespace pnb::cuda::attention
