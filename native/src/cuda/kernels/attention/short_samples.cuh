// What the kernels for short samples share: a sample's rows as two blocks of 64, of which the second is seldom full.
#pragma once

#include "cuda/kernels/attention/heads.cuh"
#include "cuda/kernels/attention/softmax.cuh"
#include "cuda/kernels/attention/tile.cuh"

namespace pnb::cuda::attention {

constexpr int kShortDim = 64;
constexpr int kShortRows = 64;  // of a block: those of a warpgroup's product
constexpr int64_t kLongestShort = 2 * kShortRows;
// Most second blocks have no more rows than this, where samples are about as long as a block: products along them are narrow.
constexpr int kFewRows = 16;
constexpr int kBoxRows = 16;  // copied at a time, so that little is copied in vain

using ShortTile = Tile<kShortRows, kShortDim>;
using TwoTiles = char[2][ShortTile::kBytes];

// A sample of a head. All heads of a sample are next to each other in the grid, as they are in memory.
struct ShortSample {
  int first, length, head;

  __device__ ShortSample(const Borders& borders, int heads) {
    int sample = blockIdx.x / heads;
    head = blockIdx.x % heads;
    first = borders.at[sample];
    length = borders.at[sample + 1] - first;
  }
  __device__ bool is_two_blocks() const { return length > kShortRows; }
};

// Copies the rows of kTensors tensors, each block of them with a barrier of its own. Called by a warp; rows behind the
// sample, up to a multiple of 16, come along.
template <int kTensors>
__device__ __forceinline__ void copy_sample(const HeadsMap (&maps)[kTensors], TwoTiles (&tiles)[kTensors], Barrier (&full)[2],
                                            const ShortSample& sample) {
  constexpr int kBoxes = kShortRows / kBoxRows, kBoxBytes = kBoxRows * kShortDim * 2;
  static_assert(kTensors * kBoxes <= 32, "a lane a box");
  int lane = threadIdx.x, tensor = lane / kBoxes, box = lane % kBoxes;
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    int left = sample.length - block * kShortRows;
    if (left <= 0) return;
    if (lane == 0) full[block].arrive_and_expect(kTensors * min(kBoxes, (left + kBoxRows - 1) / kBoxRows) * kBoxBytes);
    __syncwarp();
    if (tensor < kTensors && box * kBoxRows < left) {
      copy_box(tiles[tensor][block] + box * kBoxBytes, maps[tensor].wide, full[block], 0, sample.head,
               sample.first + block * kShortRows + box * kBoxRows);
    }
  }
}

template <typename Params>
bool are_short(const Params& p) {
  return p.max_seqlen <= kLongestShort && p.q.shape[2] == kShortDim && !present(p.blocks.indices);
}

}  // namespace pnb::cuda::attention
