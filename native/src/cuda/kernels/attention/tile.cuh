// Tiles of rows of one head in shared memory: how they are copied there, and how matrix products read them.
#pragma once

#include "cuda/kernels/hopper.cuh"
#include "cuda/runtime/device.h"

namespace pnb::cuda::attention {

using namespace hopper;

// Maps of a [tokens, heads, head_dim] view for the copy engine, which swizzles panels of at most 128 bytes a row: `wide` has
// boxes of 64 dimensions, `rest` of the 16 that head size 80 leaves.
struct HeadsMap {
  CUtensorMap wide, rest;
};

// For tiles of so many rows. Throws when the view's address or strides are not multiples of 16 bytes.
HeadsMap make_heads_map(const pnb_tensor& t, int rows, const char* op);

// Of a contiguous bf16 matrix with a multiple of eight columns, in boxes of 64 columns: what they bring is a Tile<box_rows, 64>.
CUtensorMap make_matrix_map(const void* data, int64_t rows, int64_t columns, int box_rows, const char* op);

// Of an f32 matrix whose rows begin at multiples of 16 bytes, in boxes of 32 columns, swizzled as those of a Tile<box_rows, 64>.
CUtensorMap make_float_map(const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows, const char* op);

// Of an array of so many elements of 16 bytes, in boxes of `box`.
CUtensorMap make_array_map(void* data, int64_t count, int box, const char* op);

// Whether make_heads_map takes the view.
bool is_mappable(const pnb_tensor& t);

// A bf16 tile [kRows, kDim]: panels of 64 dimensions with rows of 128 bytes one after another, then a panel of 16 with rows
// of 32 bytes where kDim is not a multiple of 64. Starts at a multiple of 1024 bytes.
template <int kRows, int kDim>
struct Tile {
  static constexpr int kPanels = kDim / 64;
  static constexpr int kRest = kDim % 64;
  static constexpr int kBytes = kRows * kDim * 2;
  static constexpr int kPanelBytes = kRows * 128;
  static constexpr int kRestStart = kPanels * kPanelBytes;
  static_assert(kRest == 0 || kRest == 16, "the panel of the last dimensions has 32-byte rows");
  static_assert(kBytes % 1024 == 0, "a tile is followed by another one");

  // Copies rows [token, token + kRows) of a head; rows past the tensor's end arrive as zeros.
  __device__ static void copy(char* to, const HeadsMap& map, Barrier& full, int head, int token) {
#pragma unroll
    for (int i = 0; i < kPanels; ++i) copy_box(to + i * kPanelBytes, map.wide, full, 64 * i, head, token);
    if constexpr (kRest != 0) copy_box(to + kRestStart, map.rest, full, 64 * kPanels, head, token);
  }

  // Rows [from, kRows) become zero. Called by a warpgroup that will read the tile; it then still has to fence and to
  // synchronise. Where several warpgroups read it each writes its zeros, and none has to wait for another.
  __device__ static void zero_rows(char* tile, int from, int thread) {
    for (int i = 0; i < kPanels; ++i) {
      uint4* panel = reinterpret_cast<uint4*>(tile + i * kPanelBytes);
      for (int j = from * 8 + thread; j < kRows * 8; j += kWarpgroup) panel[j] = uint4{0, 0, 0, 0};
    }
    if constexpr (kRest != 0) {
      uint4* panel = reinterpret_cast<uint4*>(tile + kRestStart);
      for (int j = from * 2 + thread; j < kRows * 2; j += kWarpgroup) panel[j] = uint4{0, 0, 0, 0};
    }
  }

  // d[64, kN] = a[64, kDim] * rows [0, kN) of this tile, transposed. a is a tile of shared memory from row a_row on (64-row
  // steps; its tile type is A), or registers that load_fragments() filled.
  template <int kN, typename A>
  __device__ __forceinline__ static void product_of_rows(float* d, uint32_t a, int a_row, uint32_t tile) {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      wgmma::step<kN, wgmma::Major::K>(d, A::row_major(a, a_row, i), row_major(tile, 0, i), i > 0);
    }
  }

  template <int kN>
  __device__ __forceinline__ static void product_of_rows(float* d, const uint32_t* a, uint32_t tile) {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) wgmma::step<kN, wgmma::Major::K>(d, a + 4 * i, row_major(tile, 0, i), i > 0);
  }

  // d[64, kDim] += a[64, kRows] * this tile; a is in registers, as four of a step of 16.
  __device__ __forceinline__ static void add_product(float* d, const uint32_t* a, uint32_t tile, bool add = true) {
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      // Along the rows: eight rows are one swizzle's period; the next 64 dimensions lie a panel further.
      uint64_t wide = descriptor(tile / 16 + i * 16 * 8, 1, kPanelBytes, 1024);
      wgmma::step<64 * kPanels, wgmma::Major::MN>(d, a + 4 * i, wide, add || i > 0);
    }
    if constexpr (kRest != 0) {
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
        uint64_t rest = descriptor(tile / 16 + kRestStart / 16 + i * 16 * 2, 3, 16, 256);
        wgmma::step<kRest, wgmma::Major::MN>(d + 32 * kPanels, a + 4 * i, rest, add || i > 0);
      }
    }
  }

  // The 16 dimensions of step i as an operand whose rows from `row` on are contiguous along them.
  __device__ __forceinline__ static uint64_t row_major(uint32_t tile, int row, int i) {
    if (i < 4 * kPanels) return descriptor(tile / 16 + row * 8 + (i / 4) * (kPanelBytes / 16) + i % 4 * 2, 1, 16, 1024);
    return descriptor(tile / 16 + row * 2 + kRestStart / 16, 3, 16, 256);
  }

  // Rows [16 i, 16 i + 16) of a panel as an operand whose 64 columns are contiguous.
  __device__ __forceinline__ static uint64_t column_major(uint32_t tile, int panel, int i) {
    return descriptor(tile / 16 + panel * (kPanelBytes / 16) + i * 16 * 8, 1, kPanelBytes, 1024);
  }

  // Rows [row, row + 64) as the left operand in registers: four a step of 16.
  __device__ __forceinline__ static void load_fragments(uint32_t* a, uint32_t tile, int row) {
    int lane = threadIdx.x % 32;
    __syncwarp();  // lanes leave a barrier's wait one by one
    // Lanes 0-15 address rows, at the lower 8 columns, lanes 16-31 the same rows at the upper 8.
    int r = row + threadIdx.x % kWarpgroup / 32 * 16 + lane % 16;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t address;
      if (i < 4 * kPanels) {
        int chunk = (2 * (i % 4) + lane / 16) ^ (r % 8);
        address = tile + (i / 4) * kPanelBytes + r * 128 + chunk * 16;
      } else {
        int chunk = (lane / 16) ^ (r / 4 % 2);
        address = tile + kRestStart + r * 32 + chunk * 16;
      }
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a[4 * i]), "=r"(a[4 * i + 1]), "=r"(a[4 * i + 2]), "=r"(a[4 * i + 3])
                   : "r"(address)
                   : "memory");
    }
  }

 private:
  // Addresses count 16 bytes; swizzle 1 is that of 128 bytes, 3 that of 32. The steps of a product differ in a constant that is
  // added to the address: were it masked and shifted each time, those few dependent instructions would take longer than the
  // product of 64 columns that waits for them.
  __device__ __forceinline__ static uint64_t descriptor(uint32_t address, uint32_t swizzle, uint32_t leading, uint32_t stride) {
    uint32_t low = address + (leading / 16 << 16), high = stride / 16 | swizzle << 30;
    return static_cast<uint64_t>(high) << 32 | low;
  }
};

// Where a warp puts 16 rows of an accumulator on their way to device memory: 32 dimensions, or all 64.
template <int kDim>
struct alignas(128) Stage {
  static constexpr int kPanels = kDim == 64 ? 2 : 1;

  char bytes[kPanels][16 * 64];

  // Chunks of 16 bytes change places from row to row, so that neither columns nor rows meet in a bank.
  __device__ static uint32_t offset(int panel, int row, int chunk) {
    return panel * sizeof bytes[0] + row * 64 + (chunk ^ (row / 2 % 4)) * 16;
  }
};

// Writes the 16 rows of an accumulator that a warp holds, times a factor for the thread's upper row and one for its lower: rows
// from `to` on, so many elements apart, of which `left` are there. A thread writes 16 bytes at a time: with the 4 that it holds
// next to each other, every sector would be written twice in parts. Called by whole warps.
template <int kDim>
__device__ __forceinline__ void store_rows(Stage<kDim>& stage, __nv_bfloat16* to, int64_t stride, const float (&d)[kDim / 2],
                                           float upper, float lower, int left) {
  using S = Stage<kDim>;
  int lane = threadIdx.x % 32;
  uint32_t base = shared_address(stage.bytes);
  auto put = [&](int j, int panel, int chunk) PNB_INLINE {  // columns [8 j, 8 j + 16)
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float factor = i % 2 == 0 ? upper : lower;
      a[i] = pack_bf16(d[4 * (j + i / 2) + 2 * (i % 2)] * factor, d[4 * (j + i / 2) + 2 * (i % 2) + 1] * factor);
    }
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     base + S::offset(panel, lane % 16, chunk + lane / 16)),
                 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
                 : "memory");
  };
  auto get = [&](int panel, int row, int chunk) PNB_INLINE {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(base + S::offset(panel, row, chunk))
                 : "memory");
    return x;
  };
  constexpr int kStep = 4 * S::kPanels;  // chunks of 16 bytes a turn
#pragma unroll
  for (int j = 0; j + kStep <= kDim / 8; j += kStep) {
#pragma unroll
    for (int c = 0; c < kStep; c += 2) put(j + c, c / 4, c % 4);
    __syncwarp();
    uint4 x[2 * S::kPanels];
#pragma unroll
    for (int i = 0; i < 2 * S::kPanels; ++i) x[i] = get(i / 2, lane / 4 + i % 2 * 8, lane % 4);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2 * S::kPanels; ++i) {
      int row = lane / 4 + i % 2 * 8;
      if (row < left) reinterpret_cast<uint4*>(to + row * stride)[j + i / 2 * 4 + lane % 4] = x[i];
    }
  }
  if constexpr (kDim % 32 != 0) {
    static_assert(kDim % 32 == 16, "what 32 dimensions leave");
    constexpr int kFrom = kDim / 32 * 4;
    put(kFrom, 0, 0);
    __syncwarp();
    uint4 x = get(0, lane / 2, lane % 2);
    __syncwarp();
    if (lane / 2 < left) reinterpret_cast<uint4*>(to + lane / 2 * stride)[kFrom + lane % 2] = x;
  }
}

// An accumulator of 16 n columns as the left operand of a product over those columns: n times four registers.
template <int kCount>
__device__ __forceinline__ void to_left_operand(const float (&d)[kCount], uint32_t (&a)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) a[i] = pack_bf16(d[2 * i], d[2 * i + 1]);
}

}  // namespace pnb::cuda::attention
