// What a warpgroup does with a tile's sums: terms with dropout, bias, activation and its mask, residual, rounding, and the
// bulk copy to d.
//
// A thread of warp w has rows 16 w + lane / 4 + {0, 8} of each half of a tile, and columns 2 (lane % 4) + {0, 1} of each
// eight: sums[i][4 j + 2 y + x] is row 64 i + 16 w + lane / 4 + 8 y, column 8 j + 2 (lane % 4) + x.
#pragma once

#include "cuda/kernels/gemm/sm90_schedule.cuh"
#include "cuda/kernels/hopper.cuh"

namespace pnb::cuda::sm90 {

// A tile on its way: its panels' rows of 64 bytes are swizzled as the copy engine does it. Eight rows that one instruction
// stores then lie in different banks, and what a list leaves of a tile is a number of whole panels.
constexpr int kPanelBytes = kTileM * kPanelColumns * 2;

struct Finish {
  Epilogue epilogue;
  int32_t m, n;     // of d
  int32_t columns;  // of bias, mask and terms
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

// One tile on its way is enough: the other warpgroup's is a main loop away.
struct FinishShared {
  alignas(1024) char tile[kPanels * kPanelBytes];
  float bias[2][kTileN];     // each warpgroup's
  hopper::Barrier residual;  // has come for the next tile
  hopper::Barrier left;      // the tile before has left for d
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

template <Gather kGather, bool kDropout>
class TileFinish {
 public:
  using Sums = float[2][kTileN / 2];

  __device__ TileFinish(const Finish& finish, const CUtensorMap& d_map, FinishShared& shared, const TileInfo& tile, int warpgroup,
                        int thread)
      : f_(finish),
        d_map_(d_map),
        shared_(shared),
        warpgroup_(warpgroup),
        thread_(thread),
        row_(tile.row),
        column_(tile.column),
        end_(tile.end) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      origin_[p] = kGather != Gather::kColumns || column_ + p * kPanelColumns < end_ ? tile.origin[p] : f_.columns;
    }
  }

  // Starts the copy of a tile's residual to where its d will be. The tile before has left.
  __device__ static void fetch_residual(const Finish& finish, const CUtensorMap& map, FinishShared& shared, const TileInfo& tile) {
    if (!finish.residual_copied) return;
    shared.residual.arrive_and_expect(kPanels * kPanelBytes);
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      hopper::copy_box(shared.tile + p * kPanelBytes, map, shared.residual, tile.column + p * kPanelColumns, tile.row);
    }
  }

  // The bias of the column that has this thread's number in the tile; asked for before the tile's wgmmas.
  __device__ float bias() const {
    float bias = 0.0f;
    if (f_.epilogue.bias != nullptr && own_column() < f_.columns) bias = __ldg(f_.epilogue.bias + own_column());
    asm volatile("" : "+f"(bias));
    return bias;
  }

  __device__ void apply(Sums& sums, float bias) {
    const Epilogue& e = f_.epilogue;
    if (e.bias != nullptr) {
      shared_.bias[warpgroup_][thread_] = bias;
      synchronize();
    }
    // Tiles leave in turn: warpgroup 0's wait for every second phase, warpgroup 1's for the others.
    shared_.left.wait(static_cast<uint32_t>(warpgroup_ ^ 1));
    if constexpr (kDropout) add_dropped_terms(sums);
    if (e.bias != nullptr) add_bias(sums);
    if (e.kind == PNB_EPILOGUE_DRELU) {
      keep_masked(sums);
    } else if (e.kind == PNB_EPILOGUE_RELU) {
      if (e.mask != nullptr) store_mask(sums);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int v = 0; v < kTileN / 2; ++v) sums[i][v] = sums[i][v] < 0.0f ? 0.0f : sums[i][v];  // NaN stays
      }
    }
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
        if (column < end_) store_box(d_map_, shared_.tile + p * kPanelBytes, column, row_);
      }
      asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
      shared_.left.arrive();
    }
  }

 private:
  static constexpr int kRows = 4;      // of a thread: 2 i + y
  static constexpr int kColumnGap = 8;
  static constexpr int kGaps = kTileN / kColumnGap;
  static constexpr int kGapsAPanel = kPanelColumns / kColumnGap;

  __device__ void synchronize() const { hopper::sync_threads(1 + warpgroup_, hopper::kWarpgroup); }
  __device__ int lane() const { return thread_ % 32; }
  // Of bias and terms: the column that has this thread's number in the tile.
  __device__ int own_column() const {
    int origin = origin_[0];
#pragma unroll
    for (int p = 1; p < kPanels; ++p) origin = thread_ / kPanelColumns == p ? origin_[p] : origin;
    return origin < f_.columns ? origin + lane() : f_.columns;
  }
  __device__ int row_in_tile(int r) const { return r / 2 * 64 + thread_ / 32 * 16 + lane() / 4 + r % 2 * 8; }
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

  // A panel's bits of a row.
  __device__ uint32_t* mask_word(int row, int p) const {
    return reinterpret_cast<uint32_t*>(f_.epilogue.mask + static_cast<int64_t>(row) * f_.epilogue.mask_stride + origin_[p] / 8);
  }

  // Whether the tile's part of a mask's row is sixteen aligned bytes.
  __device__ bool whole_mask() const {
    return (reinterpret_cast<uintptr_t>(f_.epilogue.mask) | static_cast<uintptr_t>(f_.epilogue.mask_stride)) % 16 == 0 &&
           origin_[0] % kTileN == 0 && origin_[kPanels - 1] == origin_[0] + kTileN - kPanelColumns &&
           origin_[0] + kTileN <= f_.columns;
  }

  // Zeroes what has no bit in the mask.
  __device__ void keep_masked(Sums& sums) const {
    uint32_t words[kRows][kPanels] = {};
    bool whole = whole_mask();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int row = min(row_ + row_in_tile(r), f_.m - 1);
      if (whole) {
        uint4 four = *reinterpret_cast<const uint4*>(mask_word(row, 0));
        words[r][0] = four.x, words[r][1] = four.y, words[r][2] = four.z, words[r][3] = four.w;
      } else {
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
          if (origin_[p] < f_.columns) words[r][p] = *mask_word(row, p);
        }
      }
    }
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

  __device__ void store_mask(const Sums& sums) const {
    int mine_of = lane() % 4;  // four threads share four rows, and each writes one
    uint32_t mine[kPanels];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        uint32_t bits = 0;
#pragma unroll
        for (int v = 0; v < 2 * kGapsAPanel; ++v) {
          bool above = sums[r / 2][4 * (p * kGapsAPanel + v / 2) + r % 2 * 2 + v % 2] > 0.0f;
          bits |= (above ? 1u : 0u) << (v / 2 * kColumnGap + v % 2);
        }
        bits <<= column_in_gap();
        bits |= __shfl_xor_sync(0xffffffffu, bits, 1);
        bits |= __shfl_xor_sync(0xffffffffu, bits, 2);
        mine[p] = r == 0 || mine_of == r ? bits : mine[p];
      }
    }
    int row = row_ + row_in_tile(mine_of);
    if (row >= f_.m) return;
    if (whole_mask()) {
      *reinterpret_cast<uint4*>(mask_word(row, 0)) = make_uint4(mine[0], mine[1], mine[2], mine[3]);
      return;
    }
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      if (origin_[p] < f_.columns) *mask_word(row, p) = mine[p];
    }
  }

  __device__ void add_residual(Sums& sums) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int row = row_ + row_in_tile(r);
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
    uint32_t base = hopper::shared_address(shared_.tile) + static_cast<uint32_t>(row) * 64;
    uint32_t swizzle = static_cast<uint32_t>(lane() % 8 / 2);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < kGaps; j += 2) {
        uint32_t address = base + static_cast<uint32_t>(i * 64 * 64 + j / kGapsAPanel * kPanelBytes) +
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
    float h[kFactorRanks][kTileM];
    float b[kFactorRanks][kTileN];
  };
  static_assert(sizeof(Factors) <= kPanels * kPanelBytes, "factors fit the tile's memory");

  __device__ void fetch_factors(const LowRankTerm& term, int from, int count, Factors& factors) const {
    static_assert(kTileM == hopper::kWarpgroup && kTileN == hopper::kWarpgroup,
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
    Factors& factors = *reinterpret_cast<Factors*>(shared_.tile);
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
          of_row[p / 2] |= kept_columns(mask, term, row_ + row_in_tile(r), origin_[p]) << (p % 2 * 2 * kGapsAPanel);
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
          for (int r = 0; r < kRows; ++r) h[r] = factors.h[rank][row_in_tile(r)];
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
  FinishShared& shared_;
  int warpgroup_, thread_;
  int row_, column_, end_;  // the tile's first element; d has no columns of it from end_ on
  int origin_[kPanels];     // of each panel in bias, mask and terms; past their end: not in the list
};

}  // namespace pnb::cuda::sm90
