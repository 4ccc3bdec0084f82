// What a warpgroup does with a tile's sums: terms with dropout, bias, activation and its mask, residual, rounding. Another warp
// sends the part to d, so that the warpgroup's next wgmmas begin sooner.
//
// A thread of warp w has rows 16 w + lane / 4 + {0, 8} of each 64 rows that its warpgroup has, and columns 2 (lane % 4) + {0, 1} of
// each eight: sums[i][4 j + 2 y + x] is row 64 i + 16 w + lane / 4 + 8 y, column 8 j + 2 (lane % 4) + x.
#pragma once

#include "cuda/kernels/gemm/sm90_maps.h"
#include "cuda/kernels/gemm/sm90_schedule.cuh"
#include "cuda/kernels/hopper.cuh"

namespace pnb::cuda::sm90 {

// What a warpgroup has of a tile: all of it, or the upper or the lower half.
//
// On its way its panels' rows of 64 bytes are swizzled as the copy engine does it. Eight rows that one instruction stores then
// lie in different banks, and what a list leaves of a tile is a number of whole panels.
template <int kRows_, int kColumns_>
struct TilePart {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kPanels = kColumns / kPanelColumns;
  static constexpr int kPanelBytes = kRows * kPanelColumns * 2;
  // It goes to d in halves: the other warpgroup's first half follows when this one's has left.
  static constexpr int kHalfPanels = kPanels / 2;
  static constexpr int kHalfBytes = kHalfPanels * kPanelBytes;
  static constexpr int kHalfColumns = kHalfPanels * kPanelColumns;
  static constexpr bool kWhole = kRows == kTileM;

  // Its first row.
  __device__ static int row(const TileInfo& tile, int warpgroup) { return kWhole ? tile.row : tile.row + warpgroup * kRows; }
};

struct Finish {
  Epilogue epilogue;
  int32_t m, n;     // of d
  int32_t columns;  // of bias, terms and a mask that is not compact
  const __nv_bfloat16* residual;
  int64_t residual_stride;
  bool residual_copied;  // by bulk copies; else threads read it, because terms' factors take the room
  bool whole_panels;     // half a part is one box of d and of the residual
  bool mask_apart;       // ReLU's mask is made from a part that is on its way, by threads that have no wgmmas to start
};

inline Finish finish_of(const Product& p) {
  Finish finish{p.epilogue, p.m, p.n, p.epilogue_columns(), static_cast<const __nv_bfloat16*>(p.residual.data),
                p.residual.row_stride};
  finish.whole_panels = whole_panels(p.n);
  finish.residual_copied = p.residual.data != nullptr && !p.epilogue.dropout();
  finish.mask_apart = p.epilogue.kind == PNB_EPILOGUE_RELU && p.epilogue.mask != nullptr && p.epilogue.term_count == 0 &&
                      p.residual.data == nullptr;
  return finish;
}

constexpr int kMaskThreads = 64;  // that make a mask apart

// One part on its way is enough: the other warpgroup's is a main loop away, or can wait. At a multiple of 1024 bytes.
template <class Part>
struct FinishShared {
  char part[Part::kPanels * Part::kPanelBytes];
  float bias[2][Part::kColumns];  // of tiles in turn; a panel's in the order of bias_place
  hopper::Barrier biased[2];      // a tile's bias is there
  // By the part's half.
  hopper::Barrier residual[2];  // has come for the next part
  hopper::Barrier rounded[2];   // it is there, for who sends it to d and who makes its mask
  hopper::Barrier left[2][2];   // each warpgroup's has left
};

__device__ __forceinline__ void store_box(const CUtensorMap& map, const void* from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(hopper::shared_address(from)), "r"(x), "r"(y)
               : "memory");
}

__device__ __forceinline__ void store_box(const CUtensorMap& map, const void* from, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(hopper::shared_address(from)), "r"(x), "r"(y), "r"(z)
               : "memory");
}

// Of four 8 x 8 matrices each lane gives one row's address; it has two neighbours of a row of each.
__device__ __forceinline__ void store_matrices(uint32_t address, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t address, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

template <class Part, Gather kGather, bool kDropout>
class TileFinish {
 public:
  static constexpr int kWgmmas = Part::kRows / 64;  // one above the other
  static constexpr int kRows = 2 * kWgmmas;  // of a thread: 2 i + y
  static constexpr int kPanels = Part::kPanels;
  static constexpr int kColumnGap = 8;
  static constexpr int kGaps = Part::kColumns / kColumnGap;
  static constexpr int kGapsAPanel = kPanelColumns / kColumnGap;
  // Where both warpgroups end a tile at about the same time, nothing hides making a mask.
  static constexpr bool kMaskApart = !Part::kWhole;
  using Sums = float[kWgmmas][Part::kColumns / 2];
  using Shared = FinishShared<Part>;

  __device__ TileFinish(const Finish& finish, Shared& shared, const TileInfo& tile, int warpgroup, int thread)
      : f_(finish),
        shared_(shared),
        tile_(tile),
        warpgroup_(warpgroup),
        thread_(thread),
        row_(Part::row(tile, warpgroup)),
        column_(tile.column),
        end_(tile.end) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      origin_[p] = kGather != Gather::kColumns || column_ + p * kPanelColumns < end_ ? panel_origin<kGather>(tile, p) : f_.columns;
    }
  }

  // Starts the copy of half a part's residual to where its d will be. What was there has left.
  __device__ static void fetch_residual(const Finish& finish, const CUtensorMap& map, Shared& shared, const TileInfo& tile,
                                        int warpgroup, int half) {
    if (!finish.residual_copied) return;
    shared.residual[half].arrive_and_expect(Part::kHalfBytes);
    char* to = shared.part + half * Part::kHalfBytes;
    int row = Part::row(tile, warpgroup), column = tile.column + half * Part::kHalfColumns;
    if (finish.whole_panels) {
      hopper::copy_box(to, map, shared.residual[half], 0, row, column / kPanelColumns);
      return;
    }
#pragma unroll 1
    for (int p = 0; p < Part::kHalfPanels; ++p) {
      hopper::copy_box(to + p * Part::kPanelBytes, map, shared.residual[half], column + p * kPanelColumns, row);
    }
  }

  // Tells a tile's bias; one warp does it.
  __device__ static void tell_bias(const Finish& finish, Shared& shared, const TileInfo& tile, int turn, int lane) {
    if (finish.epilogue.bias == nullptr) return;
    float bias[kPanels];
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      bool inside = kGather != Gather::kColumns || tile.column + p * kPanelColumns < tile.end;
      int column = inside ? panel_origin<kGather>(tile, p) + lane : finish.columns;
      bias[p] = column < finish.columns ? __ldg(finish.epilogue.bias + column) : 0.0f;
    }
#pragma unroll
    for (int p = 0; p < kPanels; ++p) shared.bias[turn][p * kPanelColumns + bias_place(lane)] = bias[p];
    shared.biased[turn].arrive();
  }

  // ReLU's bits of this thread's rows.
  using Mask = uint32_t[kRows][kPanels];
  __device__ void ask_for_mask(Mask& mask) const {
    if (f_.epilogue.kind == PNB_EPILOGUE_DRELU) load_mask(mask);
  }

  // Until the part has been rounded. The mask has been asked for; count: of the warpgroup's parts before.
  __device__ void apply(Sums& sums, const Mask& mask, int count) {
    const Epilogue& e = f_.epilogue;
    if constexpr (kDropout) {
      for (int half = 0; half < 2; ++half) wait_for_turn(count % 2, half);
      add_dropped_terms(sums);
    }
    if (e.bias != nullptr) add_bias(sums, count);
    if (e.kind == PNB_EPILOGUE_RELU && e.mask != nullptr && !(kMaskApart && f_.mask_apart)) store_mask(sums);
    // A residual is added to what these leave; without one they take fewer instructions on what has been rounded.
    bool before_residual = f_.residual != nullptr;
    if (before_residual && e.kind == PNB_EPILOGUE_RELU) clamp(sums);
    if (before_residual && e.kind == PNB_EPILOGUE_DRELU) keep_masked(sums, mask);
    if constexpr (kDropout) {
      if (before_residual && !f_.residual_copied) add_residual(sums);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (!kDropout) wait_for_turn(count % 2, half);
      if (f_.residual_copied) {
        shared_.residual[half].wait(static_cast<uint32_t>(warpgroup_));
        write<true, PNB_EPILOGUE_NONE>(half, sums, mask);
      } else if (before_residual || e.kind == PNB_EPILOGUE_NONE) {
        write<false, PNB_EPILOGUE_NONE>(half, sums, mask);
      } else if (e.kind == PNB_EPILOGUE_RELU) {
        write<false, PNB_EPILOGUE_RELU>(half, sums, mask);
      } else {
        write<false, PNB_EPILOGUE_DRELU>(half, sums, mask);
      }
      hopper::fence_async_proxy();
      shared_.rounded[half].arrive();
      if constexpr (kDropout) shared_.left[warpgroup_][half].arrive();
    }
  }

  // One thread's work, when half a part has been rounded: begins to send it to d.
  __device__ static void send(const Finish& finish, const CUtensorMap& halves, const CUtensorMap& panels, const Shared& shared,
                              const TileInfo& tile, int warpgroup, int half) {
    const char* from = shared.part + half * Part::kHalfBytes;
    int row = Part::row(tile, warpgroup), first = tile.column + half * Part::kHalfColumns;
    if (finish.whole_panels && (kGather != Gather::kColumns || first + Part::kHalfColumns <= tile.end)) {
      store_box(halves, from, 0, row, first / kPanelColumns);
    } else {
#pragma unroll 1
      for (int p = 0; p < Part::kHalfPanels; ++p) {
        int column = first + p * kPanelColumns;
        if (column < tile.end) store_box(panels, from + p * Part::kPanelBytes, column, row);
      }
    }
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }
  // Likewise: until no more than so many later halves are on their way.
  template <int kLater>
  __device__ static void wait_sent() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLater) : "memory");
  }

  // One thread's row of the mask of half a part, when that has been rounded; kMaskThreads do it.
  template <int kHalf>
  __device__ void make_mask() const {
    static_assert(Part::kWhole || (Part::kRows == kMaskThreads && Part::kHalfPanels == 4), "a row each, of four words");
    const char* from = shared_.part + kHalf * Part::kHalfBytes + thread_ * 64;
    int row = row_ + thread_, first = kHalf * Part::kHalfPanels;
    uint32_t words[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      uint32_t bytes[kGapsAPanel];
#pragma unroll
      for (int j = 0; j < kGapsAPanel; ++j) {
        uint4 eight = *reinterpret_cast<const uint4*>(from + p * Part::kPanelBytes + ((j ^ thread_ % 8 / 2) << 4));
        uint32_t bits = above_zero(eight.x) & 0x00020001u;  // bit i of a first one's, 16 + i of a second one's
        bits |= above_zero(eight.y) & 0x00080004u;
        bits |= above_zero(eight.z) & 0x00200010u;
        bits |= above_zero(eight.w) & 0x00800040u;
        bytes[j] = bits | bits >> 16;
      }
      words[p] = __byte_perm(__byte_perm(bytes[0], bytes[1], 0x0040), __byte_perm(bytes[2], bytes[3], 0x0040), 0x5410);
    }
    shared_.left[warpgroup_][kHalf].arrive();
    if (row >= f_.m) return;
    if (whole_mask(first)) {
      *reinterpret_cast<uint4*>(mask_word(row, first)) = make_uint4(words[0], words[1], words[2], words[3]);
      return;
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      if (origin_[first + p] < f_.columns) *mask_word(row, first + p) = words[p];
    }
  }

  // Threads that say that half a part has left: who sends it, and who has read what lay in its place, or makes its mask.
  __device__ static uint32_t leaving(const Finish& finish) {
    return 1 + (kDropout ? hopper::kWarpgroup : 0) + (kMaskApart && finish.mask_apart ? kMaskThreads : 0);
  }

 private:
  // That half of the other warpgroup's part before has left.
  __device__ void wait_for_turn(int turn, int half) const {
    shared_.left[warpgroup_ ^ 1][half].wait(static_cast<uint32_t>(warpgroup_ == 0 ? turn ^ 1 : turn));
  }
  __device__ void synchronize() const { hopper::sync_threads(1 + warpgroup_, hopper::kWarpgroup); }
  __device__ int lane() const { return thread_ % 32; }
  // Of factors: the column that has this thread's number in the tile.
  __device__ int own_column() const {
    if constexpr (kGather != Gather::kColumns) return column_ + thread_;
    return column_ + thread_ < end_ ? tile_.origin[thread_ / kPanelColumns] + lane() : f_.columns;
  }
  __device__ int row_in_part(int r) const { return r / 2 * 64 + thread_ / 32 * 16 + lane() / 4 + r % 2 * 8; }
  __device__ int column_in_gap() const { return lane() % 4 * 2; }

  // Where a panel's bias lies: each thread reads its columns of two times eight at once.
  __device__ static int bias_place(int column) {
    return column / 16 * 16 + column % kColumnGap / 2 * 4 + column / kColumnGap % 2 * 2 + column % 2;
  }

  __device__ void add_bias(Sums& sums, int count) const {
    int place = Part::kWhole ? warpgroup_ : count % 2;
    shared_.biased[place].wait(static_cast<uint32_t>(Part::kWhole ? count % 2 : count / 2 % 2));
    const float* from = shared_.bias[place] + lane() % 4 * 4;
#pragma unroll
    for (int j = 0; j < kGaps; j += 2) {
      float4 added = *reinterpret_cast<const float4*>(from + j * kColumnGap);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float* to = &sums[r / 2][4 * j + r % 2 * 2];
        to[0] += added.x, to[1] += added.y;
        to[4] += added.z, to[5] += added.w;
      }
    }
  }

  // Where the mask has a panel's first column; from its end on: not in the list.
  __device__ int mask_origin(int p) const {
    if constexpr (kGather == Gather::kColumns) {
      if (f_.epilogue.mask_compact && origin_[p] < f_.columns) return column_ + p * kPanelColumns;
    }
    return origin_[p];
  }

  // A panel's bits of a row.
  __device__ uint32_t* mask_word(int row, int p) const {
    return reinterpret_cast<uint32_t*>(f_.epilogue.mask + static_cast<int64_t>(row) * f_.epilogue.mask_stride + mask_origin(p) / 8);
  }

  // Whether a mask's rows have the bits of the four panels from p on in sixteen aligned bytes.
  __device__ bool whole_mask(int p) const {
    return (reinterpret_cast<uintptr_t>(f_.epilogue.mask) | static_cast<uintptr_t>(f_.epilogue.mask_stride)) % 16 == 0 &&
           mask_origin(p) % 128 == 0 && mask_origin(p + 3) == mask_origin(p) + 128 - kPanelColumns &&
           mask_origin(p) + 128 <= f_.columns;
  }

  __device__ void load_mask(uint32_t (&words)[kRows][kPanels]) const {
    bool whole[kPanels / 4];
#pragma unroll
    for (int p = 0; p < kPanels; p += 4) whole[p / 4] = whole_mask(p);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int row = min(row_ + row_in_part(r), f_.m - 1);
#pragma unroll
      for (int p = 0; p < kPanels; p += 4) {
        if (whole[p / 4]) {
          uint4 four = *reinterpret_cast<const uint4*>(mask_word(row, p));
          words[r][p] = four.x, words[r][p + 1] = four.y, words[r][p + 2] = four.z, words[r][p + 3] = four.w;
        } else {
#pragma unroll
          for (int q = p; q < p + 4; ++q) words[r][q] = origin_[q] < f_.columns ? *mask_word(row, q) : 0;
        }
      }
    }
  }

  // ReLU; NaN stays.
  __device__ static void clamp(Sums& sums) {
#pragma unroll
    for (int i = 0; i < kWgmmas; ++i) {
#pragma unroll
      for (int v = 0; v < Part::kColumns / 2; ++v) asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(sums[i][v]));
    }
  }

  // Zeroes what has no bit in the mask.
  __device__ void keep_masked(Sums& sums, const uint32_t (&words)[kRows][kPanels]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        uint32_t bits = words[r][p] >> column_in_gap();
#pragma unroll
        for (int v = 0; v < 2 * kGapsAPanel; ++v) {
          float& value = sums[r / 2][4 * (p * kGapsAPanel + v / 2) + r % 2 * 2 + v % 2];
          value = (bits >> (v / 2 * kColumnGap + v % 2)) & 1 ? value : 0.0f;
        }
      }
    }
  }

  // All bits of the halves above 0, none of the others.
  __device__ static uint32_t above_zero(uint32_t pair) {
    return __hgt2_mask(reinterpret_cast<const __nv_bfloat162&>(pair), __nv_bfloat162{});
  }

  __device__ void store_mask(const Sums& sums) const {
    int own = lane() % 4;  // four threads share their rows, and each writes four words
    static_assert(kRows * kPanels == 16, "of sixteen");
    uint32_t mine[4];
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        // By pairs of neighbours: bits 0 and 8 are first ones', 16 and 24 second ones'.
        uint32_t left = 0, right = 0;
#pragma unroll
        for (int j = 0; j < kGapsAPanel; ++j) {
          const float* pair = &sums[r / 2][4 * (p * kGapsAPanel + j) + r % 2 * 2];
          uint32_t above = above_zero(hopper::pack_bf16(pair[0], pair[1])) & 0x00010001u << (j % 2 * kColumnGap);
          if (j < kGapsAPanel / 2) left |= above;
          else right |= above;
        }
        uint32_t bits = __byte_perm(left, right, 0x5410) | __byte_perm(left, right, 0x7632) << 1;
        bits <<= column_in_gap();
        bits |= __shfl_xor_sync(0xffffffffu, bits, 1);
        bits |= __shfl_xor_sync(0xffffffffu, bits, 2);
        int whose = r + p / 4 * kRows;
        mine[p % 4] = whose == 0 || own == whose ? bits : mine[p % 4];
      }
    }
    int row = row_ + row_in_part(own % kRows);
    if (row >= f_.m) return;
    bool right = own / kRows > 0;  // the other four of eight panels
    uint32_t* words[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) words[q] = mask_word(row, q);
    bool whole = whole_mask(0);
    if constexpr (kPanels > 4) {
#pragma unroll
      for (int q = 0; q < 4; ++q) words[q] = right ? mask_word(row, 4 + q) : words[q];
      whole = right ? whole_mask(4) : whole;
    }
    if (whole) {
      *reinterpret_cast<uint4*>(words[0]) = make_uint4(mine[0], mine[1], mine[2], mine[3]);
      return;
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      int origin = origin_[q];
      if constexpr (kPanels > 4) origin = right ? origin_[4 + q] : origin;
      if (origin < f_.columns) *words[q] = mine[q];
    }
  }

  __device__ void add_residual(Sums& sums) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int row = row_ + row_in_part(r);
      const __nv_bfloat16* from = f_.residual + row * f_.residual_stride + column_ + column_in_gap();
#pragma unroll
      for (int j = 0; j < kGaps; ++j) {
        if (row >= f_.m || column_ + column_in_gap() + j * kColumnGap >= f_.n) continue;
        float2 added = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(from + j * kColumnGap));
        sums[r / 2][4 * j + r % 2 * 2] += added.x;
        sums[r / 2][4 * j + r % 2 * 2 + 1] += added.y;
      }
    }
  }

  // A pair of neighbours rounded, by kKind; keep: all bits of those that a mask has.
  template <int kKind>
  __device__ static uint32_t rounded(const float* pair, uint32_t keep) {
    if constexpr (kKind == PNB_EPILOGUE_RELU) {
      uint32_t word;
      asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(pair[1]), "f"(pair[0]));
      return word;
    }
    uint32_t word = hopper::pack_bf16(pair[0], pair[1]);
    return kKind == PNB_EPILOGUE_DRELU ? word & keep : word;
  }

  // Of a panel's words of a mask, shifted so that this thread's first and second neighbours are each byte's highest bits: all bits
  // of those of the j-th eight columns.
  __device__ static uint32_t kept_bits(uint32_t first, uint32_t second, int j) {
    uint32_t keep;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(keep) : "r"(first), "r"(second), "r"(0xcc88 + 0x1111 * j));
    return keep;
  }

  // Rounds half of the sums into the part; a residual that is there is added first.
  template <bool kResidual, int kKind>
  __device__ __forceinline__ void write(int half, const Sums& sums, const uint32_t (&mask)[kRows][kPanels]) const {
    int row = thread_ / 32 * 16 + lane() / 8 % 2 * 8 + lane() % 8;
    int chunk = lane() / 16;
    uint32_t base = hopper::shared_address(shared_.part) + static_cast<uint32_t>(row) * 64;
    uint32_t swizzle = static_cast<uint32_t>(lane() % 8 / 2);
#pragma unroll
    for (int i = 0; i < kWgmmas; ++i) {
#pragma unroll
      for (int of_half = 0; of_half < kGaps / 2; of_half += 2) {
        int j = half * (kGaps / 2) + of_half;
        int panel = j / kGapsAPanel;
        uint32_t address = base + static_cast<uint32_t>(i * 64 * 64 + panel * Part::kPanelBytes) +
                           (((static_cast<uint32_t>(j % kGapsAPanel + chunk)) ^ swizzle) << 4);
        uint32_t words[4];
        if constexpr (kResidual) {
          load_matrices(address, words);
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            float2 added = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(words[q]));
            words[q] = hopper::pack_bf16(sums[i][4 * j + 2 * q] + added.x, sums[i][4 * j + 2 * q + 1] + added.y);
          }
        } else {
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            uint32_t keep = 0;
            if constexpr (kKind == PNB_EPILOGUE_DRELU) {
              uint32_t bits = mask[2 * i + q % 2][panel];
              keep = kept_bits(bits << (7 - column_in_gap()), bits << (6 - column_in_gap()), j % kGapsAPanel + q / 2);
            }
            words[q] = rounded<kKind>(&sums[i][4 * j + 2 * q], keep);
          }
        }
        store_matrices(address, words);
      }
    }
  }

  // Factors of terms with dropout, so many ranks at a time, where d's tile will be.
  static constexpr int kFactorRanks = 16;
  struct Factors {
    float h[kFactorRanks][Part::kRows];
    float b[kFactorRanks][Part::kColumns];
  };
  static_assert(sizeof(Factors) <= kPanels * Part::kPanelBytes || !kDropout, "factors fit the part's memory");

  __device__ void fetch_factors(const LowRankTerm& term, int from, int count, Factors& factors) const {
    static_assert(Part::kRows == hopper::kWarpgroup && Part::kColumns == hopper::kWarpgroup,
                  "a thread fetches one row's and one column's factors");
    int row = row_ + thread_, column = own_column() - term.column;
    bool in_columns = own_column() < f_.columns && column >= 0 && column < term.columns;
    const float* h = term.h + row * term.h_stride + from;
    const float* b = term.b + column * term.b_column_stride + from * term.b_rank_stride;
#pragma unroll 4
    for (int r = 0; r < count; ++r) {
      factors.h[r][thread_] = row < f_.m ? __ldg(h + r) : 0.0f;
      factors.b[r][thread_] = in_columns ? __ldg(b + r * term.b_rank_stride) * (term.scale * term.dropout.keep) : 0.0f;
    }
  }

  __device__ void add_dropped_terms(Sums& sums) const {
    Factors& factors = *reinterpret_cast<Factors*>(shared_.part);
    const Epilogue& e = f_.epilogue;
    for (int t = 0; t < e.term_count; ++t) {
      const LowRankTerm& term = e.terms[t];
      if (!term.dropout.active()) continue;
      DropoutMask mask(term.dropout);
      uint32_t kept[kRows][2] = {};  // bit 2 (j % 8) + x of word j / 8: column 8 j + x of the row stays
#pragma unroll 1
      for (int r = 0; r < kRows; ++r) {
        uint32_t of_row[2] = {};
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
          of_row[p / 2] |= kept_columns(mask, term, row_ + row_in_part(r), origin_[p]) << (p % 2 * 2 * kGapsAPanel);
        }
#pragma unroll
        for (int to = 0; to < kRows; ++to) {
          kept[to][0] = to == r ? of_row[0] : kept[to][0];
          kept[to][1] = to == r ? of_row[1] : kept[to][1];
        }
      }
      for (int from = 0; from < term.rank; from += kFactorRanks) {
        int count = min(kFactorRanks, term.rank - from);
        fetch_factors(term, from, count, factors);
        synchronize();
#pragma unroll 1
        for (int rank = 0; rank < count; ++rank) {
          float h[kRows];
#pragma unroll
          for (int r = 0; r < kRows; ++r) h[r] = factors.h[rank][row_in_part(r)];
#pragma unroll
          for (int j = 0; j < kGaps; ++j) {
            float2 b = *reinterpret_cast<const float2*>(&factors.b[rank][column_in_gap() + j * kColumnGap]);
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
              uint32_t bits = kept[r][j / 8] >> (2 * (j % 8));
              sums[r / 2][4 * j + r % 2 * 2] += h[r] * (bits & 1 ? b.x : 0.0f);
              sums[r / 2][4 * j + r % 2 * 2 + 1] += h[r] * (bits & 2 ? b.y : 0.0f);
            }
          }
        }
        synchronize();  // the factors have been read
      }
    }
  }

  // Bit 2 j + x: column 8 j + x of a panel's row stays, of those that this thread has.
  __device__ uint32_t kept_columns(const DropoutMask& mask, const LowRankTerm& term, int row, int origin) const {
    int64_t first = static_cast<int64_t>(row) * term.columns + origin + column_in_gap() - term.column;
    uint32_t bits = 0;
#pragma unroll 1
    for (int j = 0; j < kGapsAPanel; ++j) {
      bits |= static_cast<uint32_t>(kept_pair(mask, term.dropout.threshold, first + j * kColumnGap)) << (2 * j);
    }
    return bits;
  }

  // Bit x: element + x stays.
  __device__ static int kept_pair(const DropoutMask& mask, uint32_t threshold, int64_t element) {
    uint4 words = mask.words(static_cast<uint64_t>(element >> 2));
    switch (element & 3) {
      case 0: return (words.x >= threshold) | (words.y >= threshold) << 1;
      case 1: return (words.y >= threshold) | (words.z >= threshold) << 1;
      case 2: return (words.z >= threshold) | (words.w >= threshold) << 1;
      default: return (words.w >= threshold) | (mask.words(static_cast<uint64_t>((element >> 2) + 1)).x >= threshold) << 1;
    }
  }

  const Finish& f_;
  Shared& shared_;
  const TileInfo& tile_;
  int warpgroup_, thread_;
  int row_, column_, end_;  // the tile's first element; d has no columns of it from end_ on
  int origin_[kPanels];     // of each panel in bias, terms and a mask that is not compact; past their end: not in the list
};

}  // namespace pnb::cuda::sm90
