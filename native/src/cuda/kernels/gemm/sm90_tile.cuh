// A persistent product on sm_90: one warp of a block feeds shared memory by bulk tensor copies, two warpgroups take turns
// at a 128 x 128 tile each, so that one's epilogue runs behind the other's wgmmas.
#pragma once

#include <cute/tensor.hpp>

#include <cutlass/bfloat16.h>
#include <cutlass/device_kernel.h>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "cuda/kernels/gemm/sm90_epilogue.cuh"
#include "cuda/kernels/gemm/sm90_tile.h"
#include "cuda/runtime/device.h"

namespace pnb::cuda::sm90 {

enum class Contiguous { kAlongK, kAlongN };

// One warpgroup a tile, two in turn: an epilogue runs behind the other's wgmmas.
struct PingPong {
  static constexpr int kTileM = 128;
  static constexpr int kTileN = 128;
  static constexpr int kEpilogueRows = 64;  // a step of the way out: 64 x 32 elements
  static constexpr int kThreads = 128;      // that share a tile
  static constexpr int kBuffers = 4;
  static constexpr int kRanks = 15;  // six stages of the mainloop leave 16 KB: 15 ranks of both factors and the bias
  static constexpr bool kRanges = false;
  using MainloopSchedule = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
};

// Two warpgroups share a tile twice as wide: fewer bytes of shared memory a wgmma, but the epilogue is not hidden.
struct Cooperative {
  static constexpr int kTileM = 128;
  static constexpr int kTileN = 256;
  static constexpr int kEpilogueRows = 128;
  static constexpr int kThreads = 256;
  static constexpr int kBuffers = 3;
  static constexpr int kRanks = 5;  // four stages leave 11 KB
  static constexpr bool kRanges = false;
  using MainloopSchedule = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
};

// The same for bare products in f32, whose steps on the way out are twice as large, and for ranges of k.
struct CooperativeRanges : Cooperative {
  static constexpr int kBuffers = 2;
  static constexpr int kRanks = 0;  // four stages leave 1 KB
  static constexpr bool kRanges = true;
};

template <Contiguous kB, class ElementD, class Config, bool kExponentials = false>
struct TileGemm {
  using Element = cutlass::bfloat16_t;
  using RowMajor = cutlass::layout::RowMajor;
  using LayoutB = std::conditional_t<kB == Contiguous::kAlongK, cutlass::layout::ColumnMajor, RowMajor>;

  static constexpr int kTileM = Config::kTileM;
  static constexpr int kTileN = Config::kTileN;
  using TileShape = cute::Shape<cute::Int<kTileM>, cute::Int<kTileN>, cute::_64>;
  // Two blocks one above the other read the same columns of b: one copy serves both.
  using ClusterShape = cute::Shape<cute::_2, cute::_1, cute::_1>;

  using EpilogueTile = cute::Shape<cute::Int<Config::kEpilogueRows>, cute::_32>;
  static constexpr int kFragment = Config::kEpilogueRows * 32 / Config::kThreads;
  // The buffers carry the residual in and d out; two stores may be under way.
  using EpiloguePolicy = cutlass::epilogue::Sm90TmaWarpSpecialized<Config::kBuffers, 2, kFragment, true>;
  using Shared = FactorStorage<kTileM, kTileN, Config::kRanks>;
  using Visitor = AddResidual<ElementD, Shared>;
  using PlainEpilogue = typename cutlass::epilogue::collective::detail::Sm90TmaBuilderImpl<
      TileShape, EpilogueTile, float, float, ElementD, RowMajor, 16 / sizeof(ElementD), ElementD, RowMajor, 16 / sizeof(ElementD),
      Visitor, EpiloguePolicy>::CollectiveOp;
  using CollectiveEpilogue = FusedEpilogue<PlainEpilogue, Shared, kTileM, kTileN, kExponentials>;
  using Carveout =
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename CollectiveEpilogue::SharedStorage))>;
  using CollectiveMainloop =
      typename cutlass::gemm::collective::CollectiveBuilder<cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, RowMajor,
                                                            8, Element, LayoutB, 8, float, TileShape, ClusterShape, Carveout,
                                                            typename Config::MainloopSchedule>::CollectiveOp;
  using ProblemShape = std::conditional_t<Config::kRanges, cute::Shape<int, int, int, int>, cute::Shape<int, int, int>>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<ProblemShape, CollectiveMainloop, CollectiveEpilogue>;

  // Tiles across before the next row of them: their operands are still in L2 when they are read again. The scheduler
  // computes whole groups, so that one which does not divide the tiles would compute some for nothing.
  static int group(int tiles_m, int tiles_n) {
    for (int size : {8, 4, 2}) {
      if (tiles_m % (2 * size) == 0 && tiles_n % size == 0) return size;
    }
    return 1;
  }

  static void run(const Product& p, int multiprocessors, cudaStream_t stream) {
    // CUTLASS's batches are ranges of k. The strides from one to the next, of a single one 0: others are bound to 16 bytes.
    int64_t range = p.ranges > 1 ? p.k / p.ranges : 0, rows = p.ranges > 1 ? p.m : 0;
    typename Kernel::Arguments arguments{};
    if constexpr (Config::kRanges) {
      arguments.mode = cutlass::gemm::GemmUniversalMode::kBatched;
      arguments.problem_shape = {p.m, p.n, p.k / p.ranges, p.ranges};
    } else {
      arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
      arguments.problem_shape = {p.m, p.n, p.k};
    }
    arguments.mainloop.ptr_A = static_cast<const Element*>(p.a.data);
    arguments.mainloop.dA = cute::make_stride(p.a.row_stride, cute::_1{}, range);
    arguments.mainloop.ptr_B = static_cast<const Element*>(p.b.data);
    if constexpr (kB == Contiguous::kAlongK) {
      arguments.mainloop.dB = cute::make_stride(p.b.column_stride, cute::_1{}, range);
    } else {
      arguments.mainloop.dB = cute::make_stride(cute::_1{}, p.b.row_stride, range * p.b.row_stride);
    }
    bool residual = p.residual.data != nullptr;
    const Matrix& source = residual ? p.residual : p.d;
    arguments.epilogue.thread = {p.epilogue, residual};
    arguments.epilogue.ptr_C = static_cast<const ElementD*>(source.data);
    arguments.epilogue.dC = cute::make_stride(source.row_stride, cute::_1{}, rows * source.row_stride);
    arguments.epilogue.ptr_D = static_cast<const ElementD*>(p.d.data);
    arguments.epilogue.dD = cute::make_stride(p.d.row_stride, cute::_1{}, rows * p.d.row_stride);
    arguments.hw_info.sm_count = multiprocessors;
    arguments.scheduler.max_swizzle_size = group((p.m + kTileM - 1) / kTileM, (p.n + kTileN - 1) / kTileN);

    typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, nullptr);
    auto kernel = cutlass::device_kernel<Kernel>;
    allow_shared_memory(kernel, Kernel::SharedStorageSize, "gemm");
    cudaLaunchConfig_t launch{};
    launch.gridDim = Kernel::get_grid_shape(params);
    launch.blockDim = Kernel::get_block_shape();
    launch.dynamicSmemBytes = Kernel::SharedStorageSize;
    launch.stream = stream;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {2, 1, 1};
    launch.attrs = &cluster;
    launch.numAttrs = 1;
    check(cudaLaunchKernelEx(&launch, kernel, params), "gemm");
  }
};

}  // namespace pnb::cuda::sm90
