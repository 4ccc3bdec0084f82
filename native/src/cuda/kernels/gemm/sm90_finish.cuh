// What a warpgroup does with a tile's sums: terms with dropout, bias, activation and its mask, residual, rounding, and the
// bulk copy to d.
//
// A thread of warp w has rows 16 w + lane / 4 + {0, 8} of each 64 rows that its warpgroup has, and columns 2 (lane % 4) + {0, 1} of
// each eight: sums[i][4 j + 2 y + x] is row 64 i + 16 w + lane / 4 + 8 y, column 8 j + 2 (lane % 4) + x.
#pragma once

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
};

inline Finish finish_of(const Product& p) {
  Finish finish{p.epilogue, p.m, p.n, p.epilogue_columns(), static_cast<const __nv_bfloat16*>(p.residual.data),
                p.residual.row_stride};
  finish.residual_copied = p.residual.data != nullptr && !p.epilogue.dropout();
  return finish;
}

// One part on its way is enough: the other warpgroup's is a main loop away, or can wait. At a multiple of 1024 bytes.
template <class Part>
struct FinishShared {
  char part[Part::kPanels * Part::kPanelBytes];
  float bias[2][Part::kColumns];  // each warpgroup's
  hopper::Barrier residual;       // has come for the next part
  hopper::Barrier left;           // the part before has left for d
};

__device__ __forceinline__ void store_box(const CUtensorMap& map, const void* from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(hopper::shared_address(from)), "r"(x), "r"(y)
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
  static constexpr int kHalves = Part::kRows / 64;
  static constexpr int kRows = 2 * kHalves;  // of a thread: 2 i + y
  static constexpr int kPanels = Part::kPanels;
  // Nothing hides a wait for the mask where both warpgroups end a tile at once.
  static constexpr bool kMaskAhead = !Part::kWhole;
  using Sums = float[kHalves][Part::kColumns / 2];
  using Shared = FinishShared<Part>;

  __device__ TileFinish(const Finish& finish, const CUtensorMap& d_map, Shared& shared, const TileInfo& tile, int warpgroup,
                        int thread)
      : f_(finish),
        d_map_(d_map),
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

  // Starts the copy of a part's residual to where its d will be. The part before has left.
  __device__ static void fetch_residual(const Finish& finish, const CUtensorMap& map, Shared& shared, const TileInfo& tile,
                                        int warpgroup) {
    if (!finish.residual_copied) return;
    shared.residual.arrive_and_expect(kPanels * Part::kPanelBytes);
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      hopper::copy_box(shared.part + p * Part::kPanelBytes, map, shared.residual, tile.column + p * kPanelColumns,
                       Part::row(tile, warpgroup));
    }
  }

  // What is asked for before the tile's wgmmas.
  struct Ahead {
    float bias[Part::kColumns / hopper::kWarpgroup];  // of the columns that have this thread's number in each 128 of the tile
    uint32_t mask[kMaskAhead ? kRows : 1][kPanels];    // ReLU's bits of this thread's rows
  };

  __device__ Ahead ahead() const {
    Ahead ahead;
#pragma unroll
    for (int i = 0; i < Part::kColumns / hopper::kWarpgroup; ++i) {
      int column = own_column(i);
      ahead.bias[i] = 0.0f;
      if (f_.epilogue.bias != nullptr && column < f_.columns) ahead.bias[i] = __ldg(f_.epilogue.bias + column);
      asm volatile("" : "+f"(ahead.bias[i]));
    }
    if constexpr (kMaskAhead) {
      if (f_.epilogue.kind == PNB_EPILOGUE_DRELU) load_mask(ahead.mask);
    }
    return ahead;
  }

  // Tells the warpgroup's threads each other's bias. The part before this has been applied. Without a bias, too, they wait for each
  // other: none waits for its turn before thread 0 has made room for it, or it would take the turn before for its own.
  __device__ void share(const Ahead& ahead) const {
    if (f_.epilogue.bias != nullptr) {
#pragma unroll
      for (int i = 0; i < Part::kColumns / hopper::kWarpgroup; ++i) {
        shared_.bias[warpgroup_][thread_ + i * hopper::kWarpgroup] = ahead.bias[i];
      }
    }
    synchronize();
  }

  // Until the part is on its way to d. The bias has been shared.
  __device__ void apply(Sums& sums, const Ahead& ahead) {
    const Epilogue& e = f_.epilogue;
    if constexpr (kDropout) {
      wait_for_turn();
      add_dropped_terms(sums);
    }
    if (e.bias != nullptr) add_bias(sums);
    if (e.kind == PNB_EPILOGUE_DRELU) {
      if constexpr (kMaskAhead) {
        keep_masked(sums, ahead.mask);
      } else {
        uint32_t mask[kRows][kPanels];
        load_mask(mask);
        keep_masked(sums, mask);
      }
    } else if (e.kind == PNB_EPILOGUE_RELU) {
#pragma unroll
      for (int i = 0; i < kHalves; ++i) {
#pragma unroll
        for (int v = 0; v < Part::kColumns / 2; ++v) asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(sums[i][v]));  // NaN stays
      }
      if (e.mask != nullptr) store_mask(sums);
    }
    if constexpr (!kDropout) wait_for_turn();
    if (f_.residual_copied) {
      shared_.residual.wait(static_cast<uint32_t>(warpgroup_));
      write<true>(sums);
    } else {
      if constexpr (kDropout) {
        if (f_.residual != nullptr) add_residual(sums);
      }
      write<false>(sums);
    }
    hopper::fence_async_proxy();
    synchronize();
    if (thread_ == 0) {
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        int column = column_ + p * kPanelColumns;
        if (column < end_) store_box(d_map_, shared_.part + p * Part::kPanelBytes, column, row_);
      }
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
  }

  // Threads that say that a part has left: all that have read factors in its place, or the one that copies it.
  static constexpr int kLeaving = kDropout ? hopper::kWarpgroup : 1;

  // After apply(): waits until the part has left, and makes room for the next.
  __device__ static void leave(Shared& shared, int thread) {
    if (thread == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    if (thread < kLeaving) shared.left.arrive();
  }

 private:
  static constexpr int kColumnGap = 8;
  static constexpr int kGaps = Part::kColumns / kColumnGap;
  static constexpr int kGapsAPanel = kPanelColumns / kColumnGap;

  // Parts leave in turn: warpgroup 0's wait for every second phase, warpgroup 1's for the others.
  __device__ void wait_for_turn() const { shared_.left.wait(static_cast<uint32_t>(warpgroup_ ^ 1)); }
  __device__ void synchronize() const { hopper::sync_threads(1 + warpgroup_, hopper::kWarpgroup); }
  __device__ int lane() const { return thread_ % 32; }
  // Of bias and terms: the column that has this thread's number in the i-th 128 of the tile.
  __device__ int own_column(int i = 0) const {
    int place = i * hopper::kWarpgroup + thread_;
    if constexpr (kGather != Gather::kColumns) return column_ + place;
    return column_ + place < end_ ? tile_.origin[place / kPanelColumns] + lane() : f_.columns;
  }
  __device__ int row_in_part(int r) const { return r / 2 * 64 + thread_ / 32 * 16 + lane() / 4 + r % 2 * 8; }
  __device__ int column_in_gap() const { return lane() % 4 * 2; }

  __device__ void add_bias(Sums& sums) const {
#pragma unroll
    for (int j = 0; j < kGaps; ++j) {
      float2 added = *reinterpret_cast<const float2*>(&shared_.bias[warpgroup_][column_in_gap() + j * kColumnGap]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r / 2][4 * j + r % 2 * 2] += added.x;
        sums[r / 2][4 * j + r % 2 * 2 + 1] += added.y;
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

  // Rounds the sums into the tile; a residual that is there is added first.
  template <bool kResidual>
  __device__ void write(const Sums& sums) const {
    int row = thread_ / 32 * 16 + lane() / 8 % 2 * 8 + lane() % 8;
    int chunk = lane() / 16;
    uint32_t base = hopper::shared_address(shared_.part) + static_cast<uint32_t>(row) * 64;
    uint32_t swizzle = static_cast<uint32_t>(lane() % 8 / 2);
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
#pragma unroll
      for (int j = 0; j < kGaps; j += 2) {
        uint32_t address = base + static_cast<uint32_t>(i * 64 * 64 + j / kGapsAPanel * Part::kPanelBytes) +
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
          for (int q = 0; q < 4; ++q) words[q] = hopper::pack_bf16(sums[i][4 * j + 2 * q], sums[i][4 * j + 2 * q + 1]);
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
  const CUtensorMap& d_map_;
  Shared& shared_;
  const TileInfo& tile_;
  int warpgroup_, thread_;
  int row_, column_, end_;  // the tile's first element; d has no columns of it from end_ on
  int origin_[kPanels];     // of each panel in bias, terms and a mask that is not compact; past their end: not in the list
};

}  // namespace pnb::cuda::sm90
