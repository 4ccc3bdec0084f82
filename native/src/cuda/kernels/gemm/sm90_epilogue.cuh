// The fused end of a product on sm_90: what happens to a tile's accumulators between the last wgmma and the bulk copy of d.
//
// All but the residual happens in the accumulators' registers, in f32, before CUTLASS's epilogue moves the tile out
// (FusedEpilogue); the residual comes and d goes through shared memory, a few columns at a time (AddResidual). In a
// ping-pong kernel one warpgroup does all this while the other's wgmmas run. Low-rank terms are multiply-adds here and not
// extra k tiles: h and b stay f32, and nothing has to be packed first. They do not hide entirely: at k = 2048 a term of
// rank 16 takes a third longer than one of rank 4.
#pragma once

#include <cute/tensor.hpp>  // before CUTLASS's own, which do not include each other in every order

#include <cutlass/arch/barrier.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_visitor_tma_warpspecialized.hpp>

#include "cuda/kernels/gemm/product.h"
#include "cuda/kernels/gemm/sm90_mask.cuh"

namespace pnb::cuda::sm90 {

// CUTLASS's visitor of a tile on its way out: d = v + residual.
template <class ElementD, class Shared>
struct AddResidual {
  using SharedStorage = Shared;

  struct Arguments {
    Epilogue epilogue;
    bool residual;
  };
  using Params = Arguments;

  template <class ProblemShape>
  static Params to_underlying_arguments(const ProblemShape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class ProblemShape>
  static size_t get_workspace_size(const ProblemShape&, const Arguments&) {
    return 0;
  }
  template <class ProblemShape>
  static cutlass::Status initialize_workspace(const ProblemShape&, const Arguments&, void*, cudaStream_t) {
    return cutlass::Status::kSuccess;
  }

  CUTLASS_HOST_DEVICE AddResidual() {}
  CUTLASS_HOST_DEVICE AddResidual(const Params& params, const SharedStorage&) : residual(params.residual) {}

  __device__ bool is_producer_load_needed() const { return residual; }
  __device__ bool is_C_load_needed() const { return residual; }

  template <class... Args>
  __device__ auto get_producer_load_callbacks(const cutlass::epilogue::fusion::detail::ProducerLoadArgs<Args...>&) {
    return cutlass::epilogue::fusion::EmptyProducerLoadCallbacks{};
  }

  template <class Source>
  struct Callbacks : cutlass::epilogue::fusion::EmptyConsumerStoreCallbacks {
    const Source& source;
    bool residual;

    __device__ Callbacks(const Source& source, bool residual) : source(source), residual(residual) {}

    template <class ElementAccumulator, int kSize>
    __device__ cutlass::Array<ElementD, kSize> visit(const cutlass::Array<ElementAccumulator, kSize>& accumulators, int v, int,
                                                     int) {
      cutlass::Array<float, kSize> values = accumulators;
      if (residual) {
        auto added = cute::recast<cutlass::Array<typename Source::value_type, kSize>>(source)(v);
        CUTLASS_PRAGMA_UNROLL
        for (int e = 0; e < kSize; ++e) values[e] += static_cast<float>(added[e]);
      }
      return cutlass::NumericArrayConverter<ElementD, float, kSize>{}(values);
    }
  };

  template <bool kReferenceSource, class... Args>
  __device__ auto get_consumer_store_callbacks(const cutlass::epilogue::fusion::detail::ConsumerStoreArgs<Args...>& args) {
    return Callbacks<cute::remove_cvref_t<decltype(args.tCrC)>>(args.tCrC, residual);
  }

  bool residual = false;
};

// Factors of low-rank terms in shared memory, kRanks ranks at a time, and the bias.
template <int kTileM, int kTileN, int kRanks_>
struct FactorStorage {
  static constexpr int kRanks = kRanks_;
  alignas(16) float h[kRanks][kTileM];
  alignas(16) float b[kRanks][kTileN];
  alignas(16) float bias[kTileN];
};

// Of a bare product.
template <int kTileM, int kTileN>
struct FactorStorage<kTileM, kTileN, 0> {
  static constexpr int kRanks = 0;
};

// CUTLASS's epilogue, which first adds low-rank terms and bias to a tile's accumulators and applies the activation, or, where
// kExponentials, exponentiates them and does nothing else. Without room for factors the product is bare.
template <class Base, class Shared, int kTileM, int kTileN, bool kExponentials>
class FusedEpilogue : public Base {
 public:
  using typename Base::LoadPipeline;
  using typename Base::LoadPipelineState;
  using typename Base::Params;
  using typename Base::StorePipeline;
  using typename Base::StorePipelineState;
  using typename Base::TensorStorage;

  CUTLASS_HOST_DEVICE FusedEpilogue(const Params& params, TensorStorage& shared)
      : Base(params, shared), epilogue_(params.thread.epilogue) {}

  template <class ProblemShape, class TileShape, class TileCoord, class Engine, class Layout, class TiledMma>
  __device__ auto store(LoadPipeline load_pipeline, LoadPipelineState load_state, StorePipeline store_pipeline,
                        StorePipelineState store_state, ProblemShape shape, TileShape tile_shape, TileCoord coord,
                        cute::Tensor<Engine, Layout> accumulators, TiledMma mma, int thread, TensorStorage& shared,
                        int subtile = -1) {
    using Accumulators = cute::Tensor<Engine, Layout>;
    Tile tile;
    tile.row = static_cast<int>(cute::get<0>(coord)) * kTileM;
    tile.column = static_cast<int>(cute::get<1>(coord)) * kTileN;
    tile.m = cute::get<0>(shape);
    tile.n = cute::get<1>(shape);
    auto coordinates =
        mma.get_slice(thread).partition_C(cute::make_identity_tensor(cute::Shape<cute::Int<kTileM>, cute::Int<kTileN>>{}));
    tile.thread_row = cute::get<0>(coordinates(cute::Int<0>{}));
    tile.thread_column = cute::get<1>(coordinates(cute::Int<0>{}));

    if constexpr (kExponentials) exponentiate(accumulators, tile);
    else if constexpr (kRanks > 0) finish(accumulators, mma, thread, tile, shared.thread);
    return Base::store(load_pipeline, load_state, store_pipeline, store_state, shape, tile_shape, coord, accumulators, mma, thread,
                       shared, subtile);
  }

 private:
  static constexpr int kRanks = Shared::kRanks;
  static constexpr int kBlocks = kTileN / kColumnGap;  // of columns, two a thread

  template <class Accumulators>
  static constexpr int kRowBlocks = decltype(cute::size<1>(Accumulators{}))::value;

  template <class Accumulators>
  __device__ void exponentiate(Accumulators& accumulators, const Tile& tile) const {
    static_assert(kTileN == kExponentialColumns, "a tile has one sum of each row");
    constexpr float kLog2E = 1.4426950408889634f;
    const Exponentials& e = epilogue_.exponentials;
    int tiles = (tile.n + kTileN - 1) / kTileN;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kRowBlocks<Accumulators>; ++i) {
      CUTLASS_PRAGMA_UNROLL
      for (int y = 0; y < 2; ++y) {
        int row = tile.row + tile.thread_row + i * (kTileM / kRowBlocks<Accumulators>) + y * kRowGap;
        int read = min(row, tile.m - 1);
        float shift = e.shift[read];
        int own = tile.column + tile.thread_column;
        int left_out = e.left_out[read] - own, end = tile.n - own;  // counted from this thread's first column
        auto value = [&](int j, int x) -> float& { return accumulators(cute::make_coord(x, y, j), i, 0); };
        CUTLASS_PRAGMA_UNROLL
        for (int j = 0; j < kBlocks; ++j) {
          CUTLASS_PRAGMA_UNROLL
          for (int x = 0; x < 2; ++x) {
            float exponent = value(j, x) * kLog2E - shift;
            asm("min.NaN.f32 %0, %0, %1;" : "+f"(exponent) : "f"(kMostExponent));
            asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value(j, x)) : "f"(exponent));
          }
        }
        if ((left_out >= 0 && left_out < kTileN) || end < kTileN) {
          CUTLASS_PRAGMA_UNROLL
          for (int j = 0; j < kBlocks; ++j) {
            CUTLASS_PRAGMA_UNROLL
            for (int x = 0; x < 2; ++x) {
              int column = j * kColumnGap + x;
              if (column == left_out || column >= end) value(j, x) = 0.0f;
            }
          }
        }
        float sum = 0.0f;
        CUTLASS_PRAGMA_UNROLL
        for (int j = 0; j < kBlocks; ++j) sum += value(j, 0) + value(j, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        bool writes = tile.thread_column % kColumnGap == 0 && row < tile.m;
        if (writes) e.sums[static_cast<int64_t>(row) * tiles + tile.column / kTileN] = sum;
      }
    }
  }

  template <class Accumulators, class TiledMma>
  __device__ void finish(Accumulators& accumulators, TiledMma mma, int thread, const Tile& tile, Shared& shared) const {
    using Mask = TileMask<kRowBlocks<Accumulators>, kTileM, kTileN>;
    Mask mask;
    bool drelu = epilogue_.kind == PNB_EPILOGUE_DRELU;
    // Asked for first, so that the bits are there when the terms have been added.
    if (drelu) mask.load(epilogue_, tile);
    add_terms(accumulators, mma, thread, tile, shared);
    if (drelu) {
      mask.keep(accumulators, tile);
    } else if (epilogue_.kind == PNB_EPILOGUE_RELU) {
      if (epilogue_.mask != nullptr) Mask::store(epilogue_, accumulators, tile);
      CUTLASS_PRAGMA_UNROLL
      for (int e = 0; e < cute::size(accumulators); ++e) {
        accumulators(e) = accumulators(e) < 0.0f ? 0.0f : accumulators(e);  // NaN stays
      }
    }
  }

  template <class Accumulators, class TiledMma>
  __device__ void add_terms(Accumulators& accumulators, TiledMma, int thread, const Tile& tile, Shared& shared) const {
    static_assert(decltype(cute::size<0>(Accumulators{}))::value == 4 * kBlocks, "a fragment spans the tile's columns");
    constexpr int kThreads = decltype(cute::size(TiledMma{}))::value;
    auto synchronize = [] { cutlass::arch::NamedBarrier::sync(kThreads, cutlass::arch::ReservedNamedBarriers::EpilogueBarrier); };
    const float* bias = epilogue_.bias;
    if (bias != nullptr) {
      for (int j = thread; j < kTileN; j += kThreads) shared.bias[j] = tile.column + j < tile.n ? bias[tile.column + j] : 0.0f;
    }
    bool synchronized = false;
    for (int t = 0; t < epilogue_.term_count; ++t) {
      const LowRankTerm& term = epilogue_.terms[t];
      if (term.column >= tile.column + kTileN || term.column + term.columns <= tile.column) continue;
      for (int from = 0; from < term.rank; from += kRanks) {
        if (synchronized) synchronize();  // the factors before these have been read
        int count = min(kRanks, term.rank - from);
        fetch<kThreads>(term, from, count, thread, tile, shared);
        synchronize();
        synchronized = true;
        if (term.dropout.active()) {
          add_term<true>(accumulators, term, count, tile, shared);
        } else {
          add_term<false>(accumulators, term, count, tile, shared);
        }
      }
    }
    if (bias == nullptr) return;
    if (!synchronized) synchronize();
    CUTLASS_PRAGMA_UNROLL
    for (int j = 0; j < kBlocks; ++j) {
      float2 added = *reinterpret_cast<const float2*>(&shared.bias[tile.thread_column + j * kColumnGap]);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kRowBlocks<Accumulators>; ++i) {
        CUTLASS_PRAGMA_UNROLL
        for (int y = 0; y < 2; ++y) {
          accumulators(cute::make_coord(0, y, j), i, 0) += added.x;
          accumulators(cute::make_coord(1, y, j), i, 0) += added.y;
        }
      }
    }
  }

  // Ranks [from, from + count) of the tile's rows of h and columns of b; zeros where the term or the product ends.
  template <int kThreads>
  __device__ static void fetch(const LowRankTerm& term, int from, int count, int thread, const Tile& tile, Shared& shared) {
    float scale = term.dropout.active() ? term.scale * term.dropout.keep : term.scale;
    CUTLASS_PRAGMA_UNROLL
    for (int first = 0; first < (kTileM > kTileN ? kTileM : kTileN); first += kThreads) {
      int i = first + thread;
      bool in_rows = i < kTileM && tile.row + i < tile.m;
      int j = tile.column + i - term.column;
      bool in_columns = i < kTileN && j >= 0 && j < term.columns;
      const float* h = term.h + (tile.row + i) * term.h_stride + from;
      const float* b = term.b + j * term.b_column_stride + from * term.b_rank_stride;
      // Four ranks' loads are under way before the first is stored.
      constexpr int kBatch = 4;
      for (int r = 0; r < count; r += kBatch) {
        float h_values[kBatch], b_values[kBatch];
        CUTLASS_PRAGMA_UNROLL
        for (int x = 0; x < kBatch; ++x) {
          h_values[x] = in_rows && r + x < count ? h[r + x] : 0.0f;
          b_values[x] = in_columns && r + x < count ? b[(r + x) * term.b_rank_stride] : 0.0f;
        }
        CUTLASS_PRAGMA_UNROLL
        for (int x = 0; x < kBatch; ++x) {
          if (r + x >= count) continue;
          if (i < kTileM) shared.h[r + x][i] = h_values[x];
          if (i < kTileN) shared.b[r + x][i] = b_values[x] * scale;
        }
      }
    }
  }

  template <bool kDropout, class Accumulators>
  __device__ static void add_term(Accumulators& accumulators, const LowRankTerm& term, int count, const Tile& tile,
                                  const Shared& shared) {
    constexpr int kRowCount = kRowBlocks<Accumulators>;
    constexpr int kBlockRows = kTileM / kRowCount;  // from one row block of a thread to the next
    uint64_t kept[kRowCount][2];                    // bit x + 2 j: element (x, y, j) was not dropped
    if constexpr (kDropout) {
      DropoutMask mask(term.dropout);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kRowCount; ++i) {
        CUTLASS_PRAGMA_UNROLL
        for (int y = 0; y < 2; ++y) {
          int64_t row = tile.row + tile.thread_row + i * kBlockRows + y * kRowGap;
          kept[i][y] = kept_pairs(mask, term, row * term.columns + tile.column + tile.thread_column - term.column);
        }
      }
    }
    for (int r = 0; r < count; ++r) {
      float h[kRowCount][2];
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kRowCount; ++i) {
        CUTLASS_PRAGMA_UNROLL
        for (int y = 0; y < 2; ++y) h[i][y] = shared.h[r][tile.thread_row + i * kBlockRows + y * kRowGap];
      }
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < kBlocks; ++j) {
        float2 b = *reinterpret_cast<const float2*>(&shared.b[r][tile.thread_column + j * kColumnGap]);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kRowCount; ++i) {
          CUTLASS_PRAGMA_UNROLL
          for (int y = 0; y < 2; ++y) {
            float x0 = b.x, x1 = b.y;
            if constexpr (kDropout) {
              x0 = (kept[i][y] >> (2 * j)) & 1 ? x0 : 0.0f;
              x1 = (kept[i][y] >> (2 * j + 1)) & 1 ? x1 : 0.0f;
            }
            accumulators(cute::make_coord(0, y, j), i, 0) += h[i][y] * x0;
            accumulators(cute::make_coord(1, y, j), i, 0) += h[i][y] * x1;
          }
        }
      }
    }
  }

  // Bit x + 2 j: element first + x + 8 j is not dropped.
  __device__ static uint64_t kept_pairs(const DropoutMask& mask, const LowRankTerm& term, int64_t first) {
    static_assert(kBlocks <= 32 && kBlocks % 4 == 0, "two bits a block in 64");
    uint32_t threshold = term.dropout.threshold;
    uint64_t kept = 0;
    if (__all_sync(0xffffffffu, first % 2 == 0)) {
      // Two neighbouring threads' pairs mostly come from one draw, but not always the same two: each draws its own.
      bool upper = (first & 2) != 0;
#pragma unroll 4
      for (int j = 0; j < kBlocks; ++j) {
        uint4 words = mask.words(static_cast<uint64_t>((first + j * kColumnGap) >> 2));
        uint32_t x0 = upper ? words.z : words.x;
        uint32_t x1 = upper ? words.w : words.y;
        kept |= static_cast<uint64_t>((x0 >= threshold ? 1u : 0u) | (x1 >= threshold ? 2u : 0u)) << (2 * j);
      }
    } else {
      for (int j = 0; j < kBlocks; ++j) {
        for (int x = 0; x < 2; ++x) {
          int64_t element = first + x + j * kColumnGap;
          uint4 words = mask.words(static_cast<uint64_t>(element >> 2));
          uint32_t low = element & 1 ? words.y : words.x;
          uint32_t high = element & 1 ? words.w : words.z;
          kept |= static_cast<uint64_t>((element & 2 ? high : low) >= threshold) << (2 * j + x);
        }
      }
    }
    return kept;
  }

  const Epilogue& epilogue_;
};

}  // namespace pnb::cuda::sm90
