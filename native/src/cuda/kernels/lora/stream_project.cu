#include <algorithm>

#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/lora/parts.cuh"
#include "cuda/kernels/lora/passes.h"
#include "cuda/kernels/reduce.cuh"

// A block takes thirty-two rows, its warps 128 columns each: everything that a thread reads of a row is on its way before the
// first product, and the ranks of all adapters share it. What the warps found is added up at the end.

namespace pnb::cuda::lora {

namespace {

constexpr int kRowTiles = 2;
constexpr int kRows = 16 * kRowTiles;
constexpr int kSets = 4;               // of 32 columns: four lanes' runs
constexpr int kWarpColumns = kSets * 4 * kRun;
constexpr int kMostWarps = 16;

// A rank of an adapter's A, and where its column of h lies.
struct Rank {
  const float* factor;
  int64_t factor_column;
  float* h;
  int64_t h_row;

  __device__ void load(int64_t column, float (&v)[kRun]) const {
    const float* from = factor + column * factor_column;
    if (factor_column == 1 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
      to_floats(Pack<float, kRun>::load(from), v);
    } else {
#pragma unroll
      for (int i = 0; i < kRun; ++i) v[i] = from[i * factor_column];
    }
  }
};

struct Args {
  const __nv_bfloat16* x;
  DropoutParams dropout;
  Columns blocks;
  int64_t m, columns, width, x_stride;
  Rank ranks[kStreamRanks];
  int r;
};

template <int kRanks, bool kDrops>
__global__ void __launch_bounds__(kMostWarps * kWarp) stream_project_kernel(const __grid_constant__ Args p) {
  using Form = Parts<kRanks>;
  extern __shared__ float found[];  // [warps][kRows][kRanks]
  let_next_begin();
  after_previous();
  int warps = static_cast<int>(blockDim.x) / kWarp;
  int warp = threadIdx.x / kWarp;
  int lane = threadIdx.x % kWarp;
  int group = lane / 4;
  int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  int64_t list = p.blocks.list_of(first_row);  // of all rows here: kRows divides the rows of a list
  int64_t columns = p.blocks.active(list, p.columns);
  float sums[kRowTiles][Form::kTiles][4] = {};
  for (int64_t first = warp * kWarpColumns; first < columns; first += warps * kWarpColumns) {
    int64_t column = first + lane % 4 * kRun;
    Pack<__nv_bfloat16, kRun> runs[kSets][kRowTiles][2];
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int64_t row = first_row + 16 * tile + 8 * half + group;
          runs[set][tile][half] = load_run<true>(p.x + row * p.x_stride, column + set * 4 * kRun, row < p.m ? columns : 0);
        }
      }
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      int64_t at = column + set * 4 * kRun;
      bool inside = at < columns;
      int64_t neuron = inside ? p.blocks.neuron(list, at) : 0;
      uint32_t factor[2][Form::kFactors][2];
      Form::load_factor(
          p.ranks, p.r,
          [&](const Rank& rank, float(&v)[kRun]) {
            if (inside) rank.load(neuron, v);
          },
          factor);
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        auto& both = runs[set][tile];
        if constexpr (kDrops) {
          DropoutMask mask(p.dropout);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            int64_t row = first_row + 16 * tile + 8 * half + group;
            drop(both[half], mask, static_cast<uint64_t>(row * p.width + neuron));
          }
        }
#pragma unroll
        for (int product = 0; product < 2; ++product) {
          uint32_t rows[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) rows[i] = word(both[i % 2], 2 * product + i / 2);
          Form::project(rows, factor[product], sums[tile]);
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) Form::store_low(sums[tile], found + (warp * kRows + 16 * tile) * kRanks);
  __syncthreads();
  float keep = p.dropout.keep;
  for (int i = threadIdx.x; i < kRows * kRanks; i += blockDim.x) {
    int64_t row = first_row + i / kRanks;
    int rank = i % kRanks;
    if (row >= p.m || rank >= p.r) continue;
    float sum = 0.0f;
    for (int k = 0; k < warps; ++k) sum += found[k * kRows * kRanks + i];
    p.ranks[rank].h[row * p.ranks[rank].h_row] = keep * sum;
  }
}

template <int kRanks>
void launch_ranks(const Args& args, cudaStream_t stream) {
  int warps = static_cast<int>(std::clamp<int64_t>(ceil_div(args.columns, kWarpColumns), 1, kMostWarps));
  size_t shared = static_cast<size_t>(warps) * kRows * kRanks * sizeof(float);
  auto kernel = args.dropout.active() ? stream_project_kernel<kRanks, true> : stream_project_kernel<kRanks, false>;
  launch(kernel, {dim3(static_cast<unsigned>(ceil_div(args.m, kRows))), warps * kWarp, shared, stream, 1, true}, "lora: h = x A^T",
         args);
}

// Appends an adapter's ranks.
void add_ranks(const pnb_lora_project_params& p, Args& args) {
  for (int64_t rank = 0; rank < p.a.shape[0]; ++rank) {
    args.ranks[args.r++] = {static_cast<const float*>(p.a.data) + rank * p.a.stride[0], p.a.stride[1],
                            static_cast<float*>(p.h.data) + rank * p.h.stride[1], p.h.stride[0]};
  }
}

}  // namespace

bool streams(const pnb_tensor& x) { return x.dtype == PNB_DTYPE_BF16 && rows_aligned(x) && x.shape[1] % kRun == 0; }

bool streams(const pnb_lora_project_params& p) {
  bool fits = streams(p.x);
  for (const auto* one = &p; one != nullptr; one = one->next) fits = fits && one->a.shape[0] <= kStreamRanks;
  return fits;
}

void stream_project(const pnb_lora_project_params& p) {
  if (p.x.shape[0] == 0) return;
  Args args{};
  args.x = static_cast<const __nv_bfloat16*>(p.x.data);
  args.blocks = Columns(p.x_blocks);
  args.m = p.x.shape[0];
  args.columns = p.x.shape[1];
  args.width = p.a.shape[1];
  args.x_stride = p.x.stride[0];
  for (const auto* one = &p; one != nullptr; one = one->next) {
    args.dropout = DropoutParams(one->dropout);
    add_ranks(*one, args);
    // The next adapter joins where its ranks fit and no dropout makes its x another one.
    const auto* next = one->next;
    if (next != nullptr && !args.dropout.active() && next->dropout.p == 0.0f && args.r + next->a.shape[0] <= kStreamRanks) continue;
    if (args.r > 0) {
      if (args.r <= 4) launch_ranks<4>(args, stream_of(p.stream));
      else if (args.r <= 8) launch_ranks<8>(args, stream_of(p.stream));
      else launch_ranks<16>(args, stream_of(p.stream));
    }
    args.r = 0;
  }
}

}  // namespace pnb::cuda::lora
