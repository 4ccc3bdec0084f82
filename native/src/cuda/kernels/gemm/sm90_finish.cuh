// What a warpgroup does with a tile's sums: terms with dropout, bias, activation and its mask, residual, rounding, and the
// bulk copy to d. What it needs of memory is asked for before the tile's wgmmas begin.
//
// A thread of warp w has rows 16 w + lane / 4 + {0, 8} of each half of a tile, and columns 2 (lane % 4) + {0, 1} of each
// eight: sums[i][4 j + 2 y + x] is row 64 i + 16 w + lane / 4 + 8 y, column 8 j + 2 (lane % 4) + x.
#pragma once

#include "cuda/kernels/attention/hopper.cuh"
#include "cuda/kernels/gemm/sm90_schedule.cuh"

namespace pnb::cuda::sm90 {

namespace hopper = attention;

// A tile on its way: panels of 32 columns, whose rows of 64 bytes are swizzled as the copy engine does it. Eight rows that
// one instruction stores then lie in different banks, and what a list leaves of a tile is a number of whole panels.
constexpr int kPanelColumns = 32;
constexpr int kPanels = kTileN / kPanelColumns;
constexpr int kPanelBytes = kTileM * kPanelColumns * 2;

struct Finish {
  Epilogue epilogue;
  int32_t m, n;     // of d
  int32_t columns;  // of bias, mask and terms
  const __nv_bfloat16* residual;
  int64_t residual_stride;
  bool residual_copied;  // by bulk copies; else threads read it, because terms' factors take the room
  bool dropout;          // of some term
};

inline Finish finish_of(const Product& p) {
  Finish finish{p.epilogue, p.m, p.n, p.epilogue_columns(), static_cast<const __nv_bfloat16*>(p.residual.data), p.residual.row_stride};
  for (int t = 0; t < p.epilogue.term_count; ++t) finish.dropout |= p.epilogue.terms[t].dropout.active();
  finish.residual_copied = p.residual.data != nullptr && !finish.dropout;
  return finish;
}

struct FinishShared {
  alignas(1024) char tile[kPanels * kPanelBytes];
  float bias[kTileN];
  hopper::Barrier residual;
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

template <Gather kGather>
class TileFinish {
 public:
  using Sums = float[2][kTileN / 2];

  __device__ TileFinish(const Finish& finish, const Blocks& blocks, const CUtensorMap& residual_map, const CUtensorMap& d_map,
                        FinishShared& shared, int warpgroup, int thread)
      : f_(finish), blocks_(blocks), residual_map_(residual_map), d_map_(d_map), shared_(shared), barrier_(1 + warpgroup), thread_(thread) {}

  // Starts the copy of a tile's residual to where its d will be; end() has been called for the tile before.
  template <class Tile>
  __device__ void fetch_residual(const Tile& tile) {
    if (!f_.residual_copied || thread_ != 0) return;
    shared_.residual.arrive_and_expect(kPanels * kPanelBytes);
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      hopper::copy_box(shared_.tile + p * kPanelBytes, residual_map_, shared_.residual, tile.column() + p * kPanelColumns, tile.row());
    }
  }

  // Reads what the tile's end will need.
  template <class Tile>
  __device__ void begin(const Tile& tile) {
    row_ = tile.row();
    column_ = tile.column();
    own_column_ = column_ + thread_;
    if constexpr (kGather == Gather::kColumns) {
      ActiveBlocks active(blocks_, row_);
      end_ = active.columns();
      own_column_ = own_column_ < end_ ? active.neuron(own_column_) : f_.columns;
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        int first = column_ + p * kPanelColumns;
        origin_[p] = first < end_ ? active.neuron(first) : f_.columns;
      }
    } else {
      end_ = f_.n;
#pragma unroll
      for (int p = 0; p < kPanels; ++p) origin_[p] = column_ + p * kPanelColumns;
    }
    const Epilogue& e = f_.epilogue;
    bias_ = e.bias != nullptr && own_column_ < f_.columns ? __ldg(e.bias + own_column_) : 0.0f;
    if (e.kind == PNB_EPILOGUE_DRELU) load_mask();
  }

  __device__ void apply(Sums& sums) {
    const Epilogue& e = f_.epilogue;
    if (e.bias != nullptr) shared_.bias[thread_] = bias_;
    // The bias is there for all, and the last tile has left for d.
    hopper::sync_threads(barrier_, hopper::kWarpgroup);
    if (f_.dropout) add_dropped_terms(sums);
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
      shared_.residual.wait(residual_parity_);
      residual_parity_ ^= 1;
      write<true>(sums);
    } else {
      if (f_.residual != nullptr) add_residual(sums);
      write<false>(sums);
    }
    hopper::fence_async_proxy();
    hopper::sync_threads(barrier_, hopper::kWarpgroup);
    if (thread_ == 0) {
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        int column = column_ + p * kPanelColumns;
        if (column < end_) store_box(d_map_, shared_.tile + p * kPanelBytes, column, row_);
      }
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
  }

  // Waits until the tile's memory may be written again.
  __device__ void end() const {
    if (thread_ == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }

 private:
  static constexpr int kRows = 4;      // of a thread: 2 i + y
  static constexpr int kColumnGap = 8;
  static constexpr int kGaps = kTileN / kColumnGap;
  static constexpr int kGapsAPanel = kPanelColumns / kColumnGap;

  __device__ int lane() const { return thread_ % 32; }
  __device__ int row_in_tile(int r) const { return r / 2 * 64 + thread_ / 32 * 16 + lane() / 4 + r % 2 * 8; }
  __device__ int column_in_gap() const { return lane() % 4 * 2; }

  __device__ void add_bias(Sums& sums) const {
#pragma unroll
    for (int j = 0; j < kGaps; ++j) {
      float2 added = *reinterpret_cast<const float2*>(&shared_.bias[column_in_gap() + j * kColumnGap]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r / 2][4 * j + r % 2 * 2] += added.x;
        sums[r / 2][4 * j + r % 2 * 2 + 1] += added.y;
      }
    }
  }

  // Whether a panel's part of the mask's rows is one aligned word.
  __device__ bool word(int p) const {
    return (reinterpret_cast<uintptr_t>(f_.epilogue.mask) | static_cast<uintptr_t>(f_.epilogue.mask_stride)) % 4 == 0 &&
           origin_[p] + kPanelColumns <= f_.columns;
  }

  // Whether the whole tile's is sixteen aligned bytes.
  __device__ bool words() const {
    return (reinterpret_cast<uintptr_t>(f_.epilogue.mask) | static_cast<uintptr_t>(f_.epilogue.mask_stride)) % 16 == 0 &&
           origin_[0] % kTileN == 0 && origin_[kPanels - 1] == origin_[0] + kTileN - kPanelColumns && origin_[0] + kTileN <= f_.columns;
  }

  __device__ uint8_t* mask_bytes(int row, int p) const {
    return f_.epilogue.mask + static_cast<int64_t>(row) * f_.epilogue.mask_stride + origin_[p] / 8;
  }

  __device__ void load_mask() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int row = row_ + row_in_tile(r);
      if (row < f_.m && words()) {
        uint4 four = *reinterpret_cast<const uint4*>(mask_bytes(row, 0));
        mask_[r][0] = four.x, mask_[r][1] = four.y, mask_[r][2] = four.z, mask_[r][3] = four.w;
        continue;
      }
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        mask_[r][p] = 0;
        if (row >= f_.m) continue;
        const uint8_t* bytes = mask_bytes(row, p);
        if (word(p)) {
          mask_[r][p] = *reinterpret_cast<const uint32_t*>(bytes);
        } else {
          for (int b = 0; b < 4; ++b) {
            if (origin_[p] + 8 * b < f_.columns) mask_[r][p] |= static_cast<uint32_t>(bytes[b]) << (8 * b);
          }
        }
      }
    }
  }

  __device__ void keep_masked(Sums& sums) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        uint32_t bits = mask_[r][p] >> column_in_gap();
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
    if (words()) {
      *reinterpret_cast<uint4*>(mask_bytes(row, 0)) = make_uint4(mine[0], mine[1], mine[2], mine[3]);
      return;
    }
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      uint8_t* bytes = mask_bytes(row, p);
      if (word(p)) {
        *reinterpret_cast<uint32_t*>(bytes) = mine[p];
      } else {
        for (int b = 0; b < 4; ++b) {
          if (origin_[p] + 8 * b < f_.columns) bytes[b] = static_cast<uint8_t>(mine[p] >> (8 * b));
        }
      }
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
    static_assert(kTileM == hopper::kWarpgroup && kTileN == hopper::kWarpgroup, "a thread fetches one row's and one column's factors");
    int row = row_ + thread_, column = own_column_ - term.column;
    bool in_columns = own_column_ < f_.columns && column >= 0 && column < term.columns;
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
      uint32_t kept[kRows][2];  // bit 2 (j % 8) + x of word j / 8: column 8 j + x of the row stays
#pragma unroll
      for (int r = 0; r < kRows; ++r) kept_columns(mask, term, row_ + row_in_tile(r), kept[r]);
      for (int from = 0; from < term.rank; from += kFactorRanks) {
        int count = min(kFactorRanks, term.rank - from);
        fetch_factors(term, from, count, factors);
        hopper::sync_threads(barrier_, hopper::kWarpgroup);
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
        hopper::sync_threads(barrier_, hopper::kWarpgroup);  // the factors have been read
      }
    }
  }

  __device__ void kept_columns(const DropoutMask& mask, const LowRankTerm& term, int row, uint32_t (&kept)[2]) const {
    kept[0] = kept[1] = 0;
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      int64_t first = static_cast<int64_t>(row) * term.columns + origin_[p] + column_in_gap() - term.column;
      uint32_t bits = 0;
#pragma unroll 1
      for (int j = 0; j < kGapsAPanel; ++j) {
        int64_t element = first + j * kColumnGap;
        bits |= static_cast<uint32_t>(kept_pair(mask, term.dropout.threshold, element)) << (2 * j);
      }
      kept[p / 2] |= bits << (p % 2 * 2 * kGapsAPanel);
    }
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
  const Blocks& blocks_;
  const CUtensorMap& residual_map_;
  const CUtensorMap& d_map_;
  FinishShared& shared_;
  int barrier_, thread_;
  uint32_t residual_parity_ = 0;

  // Of the tile.
  int row_ = 0, column_ = 0, end_ = 0;  // d has no columns of it from end_ on
  int own_column_ = 0;                  // of bias and terms: that of the thread's number
  int origin_[kPanels];                 // where each panel's columns lie in bias, mask and terms
  float bias_ = 0.0f;
  uint32_t mask_[kRows][kPanels];
};

}  // namespace pnb::cuda::sm90
