// Which tile a block computes when. The blocks of a persistent grid walk over all tiles in the same order; how many there are
// may depend on lists that only the device knows. One warp of a block looks ahead and tells the others through shared memory:
// a look-up's instructions have left their cache since the last tile, and fetching them takes as long as the stages last.
#pragma once

#include "cuda/kernels/gemm/blocks.cuh"
#include "cuda/kernels/hopper.cuh"

namespace pnb::cuda::sm90 {

// A tile has so many rows; a step along k is what a bulk copy's 128-byte rows hold.
constexpr int kTileM = 128;
constexpr int kTileK = 64;
constexpr int kSliceK = 16;  // of one instruction
constexpr int kSlicesAStep = kTileK / kSliceK;

// A row group is the tiles that a cluster computes together, one above the other.
struct Schedule {
  int32_t cluster;            // tiles in a row group, and blocks in a cluster: 1 or 2
  int32_t row_groups;         // of the product
  int32_t row_groups_a_list;  // that share a list
  int32_t columns;            // of tiles, where no list says how many
  int32_t band;               // row groups that are computed before the next column of tiles
};

// Row groups that are computed before the next column of tiles: their rows of a and a few columns of b stay in L2 together.
constexpr int kRowGroups = 8;

// kTileN: columns of a tile.
template <Gather kGather, int kTileN>
class Walk {
 public:
  __device__ Walk(const Schedule& schedule, const Blocks& blocks, int k)
      : schedule_(schedule),
        blocks_(blocks),
        rank_(static_cast<int>(blockIdx.x) % schedule.cluster),
        index_(static_cast<int>(blockIdx.x) / schedule.cluster),
        stride_(static_cast<int>(gridDim.x) / schedule.cluster),
        slices_((k + kSliceK - 1) / kSliceK) {
    find();
  }

  __device__ bool valid() const { return valid_; }
  __device__ void next() {
    index_ += stride_;
    find();
  }

  __device__ int row() const { return row_; }        // the tile's first in d
  __device__ int column() const { return column_; }  // likewise
  __device__ int active() const { return active_; }  // compact columns of the tile's list
  __device__ int slices() const { return slices_; }  // of k

 private:
  __device__ void find() {
    valid_ = false;
    while (list_ * schedule_.row_groups_a_list < schedule_.row_groups) {
      int rows = min(schedule_.row_groups_a_list, schedule_.row_groups - list_ * schedule_.row_groups_a_list);
      int columns = schedule_.columns;
      if constexpr (kGather != Gather::kNone) {
        active_ = ActiveBlocks(blocks_, first_row_of_list()).columns();
        if constexpr (kGather == Gather::kColumns) columns = (active_ + kTileN - 1) / kTileN;
        else slices_ = active_ / kSliceK;
      }
      int place = index_ - first_;
      if (place < rows * columns) {
        int band = place / (schedule_.band * columns);
        int rows_in_band = min(schedule_.band, rows - band * schedule_.band);
        place -= band * schedule_.band * columns;
        int column = place / rows_in_band;
        int row_group = list_ * schedule_.row_groups_a_list + band * schedule_.band + (place - column * rows_in_band);
        row_ = (row_group * schedule_.cluster + rank_) * kTileM;
        column_ = column * kTileN;
        valid_ = true;
        return;
      }
      first_ += rows * columns;
      ++list_;
    }
  }

  __device__ int first_row_of_list() const { return list_ * schedule_.row_groups_a_list * schedule_.cluster * kTileM; }

  const Schedule& schedule_;
  const Blocks& blocks_;
  int rank_;
  int index_, stride_;        // in the walk, of clusters
  int list_ = 0, first_ = 0;  // the list that index_ is in, and its first tile's index
  int row_ = 0, column_ = 0, active_ = 0, slices_;
  bool valid_ = false;
};

// Columns of a tile that lie side by side in the weight whatever a list says.
constexpr int kPanelColumns = 32;
constexpr int kListedPanels = 8;  // of the widest tile whose columns a list gathers

struct TileInfo {
  int32_t valid;  // 0: there is none, and none after it
  int32_t row, column;
  int32_t slices;       // of k
  int32_t term_slices;  // of low-rank terms
  int32_t end;          // d has no columns of the tile from this on
  int32_t origin[kListedPanels];  // with Gather::kColumns: where each panel's first column lies in the weight, bias, mask and terms
};

// Where a panel's first column lies in the weight, bias, mask and terms.
template <Gather kGather>
__device__ __forceinline__ int panel_origin(const TileInfo& tile, int panel) {
  return kGather == Gather::kColumns ? tile.origin[panel] : tile.column + panel * kPanelColumns;
}

// Tiles that are known ahead: those that the warpgroups compute, the one after, and one that is looked up.
constexpr int kTilesAhead = 4;

struct TileQueue {
  TileInfo tiles[kTilesAhead];
  hopper::Barrier full[kTilesAhead], empty[kTilesAhead];

  __device__ void init(int readers) {
    for (int i = 0; i < kTilesAhead; ++i) {
      full[i].init(1);
      empty[i].init(static_cast<uint32_t>(readers));
    }
  }
};

class TileReader {
 public:
  __device__ explicit TileReader(TileQueue& queue) : queue_(queue) {}

  // Waits for the next tile. It stays until this thread releases it.
  __device__ const TileInfo& next() {
    queue_.full[ring_.slot].wait(ring_.parity);
    const TileInfo& tile = queue_.tiles[ring_.slot];
    ring_.advance();
    return tile;
  }

  // By each thread: racecheck takes one lane's arrival for its own reads only.
  __device__ void release(const TileInfo& tile) { queue_.empty[&tile - queue_.tiles].arrive(); }

 private:
  TileQueue& queue_;
  hopper::Ring<kTilesAhead> ring_;
};

}  // namespace pnb::cuda::sm90
