// A pass over a matrix of bf16 for the gradients of low-rank adapters: a block has some rows and some columns of it, and makes its
// part of a product over rows, the left values' times the matrix, and over dy of one over columns, the matrix times the factors.
//
// Code that runs once costs as much as the bytes: its instructions have left their cache since the last launch. Loops that are
// not the main one stay loops.
//
// One warp of a block feeds a ring of shared memory with steps of sixteen rows by bulk copies. Each of the others takes 64
// columns of a step: as they lie there they are the left operand of a product over columns, transposed on their way to the
// registers the right operand of a product over rows.
//
// Where the adapters' input is a layer norm of x, dh^T norm(x) = (((dh rstd)^T x) - (dh rstd)^T mean) gamma + (dh^T 1) beta:
// the left values are scaled, and each block corrects its part of dA, of few rows, before it stores it. Dropout takes another
// choice of rows out of each column's sums, so there a step is normalised where it lies.
#pragma once

#include "cuda/kernels/bulk.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/lora/parts.cuh"
#include "cuda/kernels/lora/passes.h"
#include "cuda/kernels/reduce.cuh"

namespace pnb::cuda::lora {

constexpr int kSets = 2;                // of 32 columns: four lanes' runs
constexpr int kWarpColumns = kSets * 4 * kRun;
constexpr int kStepRows = 16;
constexpr int kMostRows = 128;          // of a block: what the rows of a list are a multiple of
constexpr int kMostSteps = kMostRows / kStepRows;
constexpr int kMostPasses = 4;          // in one launch: what a kernel's parameters hold

struct Rank {
  const float* left;  // the sum of `chunks` of these, each [m] with a stride
  int64_t left_row, left_chunk;
  int chunks;
  const float* factor;
  int64_t factor_column;
};

struct Pass {
  const __nv_bfloat16* x;
  DropoutParams dropout;
  Columns blocks;
  int64_t columns, width, x_stride;
  int r;
  float left_scale;
  Norm norm;
  float* partial;  // [ranges, kRanks, columns]
  float* low;      // [column blocks, m, kRanks], or NULL: no product over columns
  Rank ranks[kStreamRanks];
};

struct Args {
  int64_t m;
  int rows;  // of a block
  Pass passes[kMostPasses];
};
static_assert(sizeof(Args) <= 4096);

// Steps of a block's rows on their way, 130 KB of them. Rows start sixteen bytes further each, so that the same columns of
// eight of them lie in different banks.
template <int kWarps>
struct Ring {
  static constexpr int kSlots = 64 / kWarps;
  static constexpr int kColumns = kWarps * kWarpColumns;
  static constexpr int kPitch = kColumns * static_cast<int>(sizeof(__nv_bfloat16)) + 16;
  static constexpr int kSlotBytes = kStepRows * kPitch;
  static constexpr int kBytes = kSlots * kSlotBytes;

  char* memory;
  Barrier *full, *empty;  // [kSlots] each

  __device__ char* row(int step, int i) const { return memory + step % kSlots * kSlotBytes + i * kPitch; }

  // By one warp, before any other call; the others have to wait for it.
  __device__ void init() const {
    if (threadIdx.x % kWarp == 0) {
      for (int i = 0; i < kSlots; ++i) full[i].init(1), empty[i].init(kWarps);
      fence_barrier_init();
    }
    __syncwarp();
  }

  // By the same warp: asks for a step of `count` rows of so many bytes; for the rows that are missing, for the last one again:
  // numbers as good as any, which their left values of zero take out.
  __device__ void fill(int step, const __nv_bfloat16* from, int64_t stride, int count, uint32_t bytes) const {
    int slot = step % kSlots, lane = threadIdx.x % kWarp;
    if (step >= kSlots) empty[slot].wait((step / kSlots - 1) % 2);
    if (lane == 0) full[slot].arrive_and_expect(kStepRows * bytes);
    __syncwarp();
    if (lane < kStepRows) copy_bulk(row(step, lane), from + min(lane, count - 1) * stride, bytes, full[slot]);
  }

  __device__ void wait(int step) const { full[step % kSlots].wait(step / kSlots % 2); }
  // By one thread of a warp, when all have read the step.
  __device__ void release(int step) const { empty[step % kSlots].arrive(); }
};

template <int kRanks, int kWarps, bool kLow, bool kDrops>
__global__ void __launch_bounds__((kWarps + 1) * kWarp, 1) stream_gradients_kernel(const __grid_constant__ Args args) {
  using Form = Parts<kRanks>;
  using Rows = Ring<kWarps>;
  constexpr int kConsumers = kWarps * kWarp;
  constexpr int kThreads = kConsumers + kWarp;
  extern __shared__ __align__(128) char memory[];
  __shared__ uint4 lefts[kMostSteps][Form::kLefts][kWarp];
  __shared__ float2 corrections[kMostSteps][kRanks];  // for each rank, sums over a step of left * mean and of dh
  __shared__ Barrier barriers[2 * Rows::kSlots];
  auto* low_found = reinterpret_cast<float*>(memory + Rows::kBytes);  // [kWarps][rows][kRanks]
  // The pass over x reads x and its lists without waiting: they were there before the first pass, which lets this one begin only
  // when it has waited for what came before it.
  if constexpr (kLow) after_previous();
  let_next_begin();
  const Pass& p = args.passes[blockIdx.z];
  int64_t first_column = static_cast<int64_t>(blockIdx.y) * Rows::kColumns;
  if (first_column >= p.columns) return;
  int warp = threadIdx.x / kWarp;
  int lane = threadIdx.x % kWarp;
  int64_t first_row = static_cast<int64_t>(blockIdx.x) * args.rows;
  int64_t end_row = min(args.m, first_row + args.rows);
  int steps = static_cast<int>(ceil_div(end_row - first_row, kStepRows));
  int64_t list = p.blocks.list_of(first_row);
  int64_t columns = p.blocks.active(list, p.columns);
  int here = static_cast<int>(max(static_cast<int64_t>(0), min(columns - first_column, static_cast<int64_t>(Rows::kColumns))));
  bool any = here > 0;  // a list may end before this block's columns
  Rows rows{memory, barriers, barriers + Rows::kSlots};
  if (warp == kWarps) {
    rows.init();
    if (any) asm volatile("bar.arrive 1, %0;" ::"n"(kThreads) : "memory");
#pragma unroll 1
    for (int step = 0; any && step < steps; ++step) {
      int64_t row = first_row + step * kStepRows;
      int count = static_cast<int>(min(static_cast<int64_t>(kStepRows), end_row - row));
      rows.fill(step, p.x + row * p.x_stride + first_column, p.x_stride, count,
                static_cast<uint32_t>(here * sizeof(__nv_bfloat16)));
    }
    return;
  }
  if (!any) {
    // Even where all lists are empty, this launch may not end before the first pass has.
    if constexpr (!kLow) after_previous();
    for (int64_t i = first_row * kRanks + threadIdx.x; kLow && i < end_row * kRanks; i += kConsumers) {
      p.low[blockIdx.y * args.m * kRanks + i] = 0.0f;
    }
    return;
  }
  // What no copy fills may not be a number, whatever it is multiplied with.
  int rest = (Rows::kColumns - here) / kRun;
#pragma unroll 1
  for (int i = threadIdx.x; i < rest * kStepRows * Rows::kSlots; i += kConsumers) {
    int line = i / rest;
    *reinterpret_cast<uint4*>(rows.row(line / kStepRows, line % kStepRows) + (here + i % rest * kRun) * sizeof(__nv_bfloat16)) =
        uint4{};
  }

  // In a set of 32 columns a lane has two neighbours of each eight.
  int set_column = warp * kWarpColumns + lane % 4 * 2;  // in the block
  uint32_t factor[kLow ? kSets : 1][2][Form::kFactors][2];
  if constexpr (kLow) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      int from = warp * kWarpColumns + set * 32;
      int64_t neuron = from < here ? p.blocks.neuron(list, first_column + from) + lane % 4 * 2 : 0;
      Form::load_factor(
          p.ranks, p.r,
          [&](const Rank& rank, float(&v)[kRun]) {
            const float* factors = rank.factor + neuron * rank.factor_column;
#pragma unroll
            for (int i = 0; i < kRun; ++i) {
              if (from + i / 2 * 8 < here) v[i] = factors[(i / 2 * 8 + i % 2) * rank.factor_column];
            }
          },
          factor[set]);
    }
  }
  // What corrects a norm's part was there before, too; it comes from far.
  const bool corrects = !kLow && !kDrops && p.norm.present();
  int64_t step_row = first_row + warp * kStepRows;  // of the step whose left values this warp makes
  float2 statistics[kLow ? 1 : 4], gamma[kLow ? 1 : kSets][4], beta[kLow ? 1 : kSets][4];
  if constexpr (!kLow) {
    if (corrects) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int64_t row = step_row + token_of(i);
        statistics[i] = row < end_row ? make_float2(p.norm.mean[row], p.norm.rstd[row]) : make_float2(0.0f, 0.0f);
      }
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int64_t at = set_column + set * 32 + i * 8;
          gamma[set][i] = beta[set][i] = make_float2(0.0f, 0.0f);
          if (at >= here) continue;
          gamma[set][i] = *reinterpret_cast<const float2*>(p.norm.gamma + first_column + at);
          beta[set][i] = *reinterpret_cast<const float2*>(p.norm.beta + first_column + at);
        }
      }
    }
    after_previous();  // which made the left values
  }
  static_assert(kWarps >= kMostSteps);
  if (warp < steps) {
    uint4 left[Form::kLefts];
    float2 correction[Form::kTiles] = {};
    Form::make_left(
        [&](int i, int rank, int tile) {
          int64_t row = step_row + token_of(i);
          if (rank >= p.r || row >= end_row) return 0.0f;
          const Rank& of = p.ranks[rank];
          const float* at = of.left + row * of.left_row;
          float sum = 0.0f;
#pragma unroll 1
          for (int chunk = 0; chunk < of.chunks; ++chunk) sum += at[chunk * of.left_chunk];
          sum *= p.left_scale;
          if constexpr (!kLow) {
            if (corrects) {
              correction[tile].y += sum;
              sum *= statistics[i].y;
              correction[tile].x += sum * statistics[i].x;
            }
          }
          return sum;
        },
        left);
#pragma unroll
    for (int k = 0; k < Form::kLefts; ++k) lefts[warp][k][lane] = left[k];
    if (corrects) {
#pragma unroll
      for (int tile = 0; tile < Form::kTiles; ++tile) {  // the tokens of a rank are four neighbours'
        float2 sum = correction[tile] + shuffle_xor(correction[tile], 1);
        sum = sum + shuffle_xor(sum, 2);
        int rank = 8 * tile + lane / 4;
        if (lane % 4 == 0 && rank < kRanks) corrections[warp][rank] = sum;
      }
    }
  }
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");

  // The matrix whose row this lane gives: the lower or the upper eight rows, of the first or the second eight columns.
  int own_row = lane / 8 % 2 * 8 + lane % 8;
  int own_column = warp * kWarpColumns + lane / 16 * 8;
  int64_t dropped_neuron = 0;
  float run_gamma[kRun] = {}, run_beta[kRun] = {};
  if constexpr (kDrops) {
    int at = warp * kWarpColumns + lane % 8 * kRun;
    dropped_neuron = at < here ? p.blocks.neuron(list, first_column + at) : 0;
    for (int i = 0; p.norm.present() && at < here && i < kRun; ++i) {
      run_gamma[i] = p.norm.gamma[first_column + at + i], run_beta[i] = p.norm.beta[first_column + at + i];
    }
  }
  float sums[kSets][4][4] = {};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    rows.wait(step);
    if constexpr (kDrops) {
      bool drops = p.dropout.active();  // of the passes of one launch, some may drop and others not
      if (drops || p.norm.present()) {
#pragma unroll
        for (int i = lane / 8; i < kStepRows; i += 4) {
          auto* first = reinterpret_cast<__nv_bfloat16*>(rows.row(step, i)) + warp * kWarpColumns;
          auto* run = reinterpret_cast<Pack<__nv_bfloat16, kRun>*>(first + lane % 8 * kRun);
          int64_t row = first_row + step * kStepRows + i;
          if (p.norm.present()) p.norm.apply(*run, min(row, end_row - 1), run_gamma, run_beta);
          if (drops) drop(*run, DropoutMask(p.dropout), static_cast<uint64_t>(row * p.width + dropped_neuron));
        }
        __syncwarp();
      }
    }
    uint32_t address = shared_address(rows.row(step, own_row)) + own_column * sizeof(__nv_bfloat16);
    if constexpr (kLow) {
      float low[Form::kTiles][4] = {};
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
#pragma unroll
        for (int product = 0; product < 2; ++product) {
          uint32_t words[4];
          load_matrices<false>(address + (set * 32 + product * 16) * sizeof(__nv_bfloat16), words);
          Form::project(words, factor[set][product], low);
        }
      }
      Form::store_low(low, low_found + (warp * args.rows + step * kStepRows) * kRanks);
    }
    uint4 left[Form::kLefts];
#pragma unroll
    for (int k = 0; k < Form::kLefts; ++k) left[k] = lefts[step][k][lane];
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
#pragma unroll
      for (int product = 0; product < 2; ++product) {
        uint32_t words[4];
        load_matrices<true>(address + (set * 32 + product * 16) * sizeof(__nv_bfloat16), words);
        Form::accumulate(words[0], words[1], left, sums[set][2 * product]);
        Form::accumulate(words[2], words[3], left, sums[set][2 * product + 1]);
      }
    }
    if constexpr (kDrops) fence_async_proxy();
    __syncwarp();
    if (lane == 0) rows.release(step);
  }
  float2 correction[Form::kTiles] = {};
#pragma unroll
  for (int tile = 0; corrects && tile < Form::kTiles; ++tile) {
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      correction[tile] = correction[tile] + corrections[step][(8 * tile + lane / 4) % kRanks];
    }
  }
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int at = set_column + set * 32 + i * 8;
      Form::results(sums[set][i], [&](int rank, float2 v) {
        if (at >= here || rank >= p.r) return;
        if constexpr (!kLow) {
          if (corrects) {
            float2 c = correction[rank < 8 ? 0 : Form::kTiles - 1], g = gamma[set][i], b = beta[set][i];
            v = make_float2((v.x - c.x) * g.x + c.y * b.x, (v.y - c.x) * g.y + c.y * b.y);
          }
        }
        *reinterpret_cast<float2*>(p.partial + (static_cast<int64_t>(blockIdx.x) * kRanks + rank) * p.columns + first_column + at) =
            v;
      });
    }
  }

  if constexpr (kLow) {
    asm volatile("bar.sync 2, %0;" ::"n"(kConsumers) : "memory");
    int count = static_cast<int>(end_row - first_row) * kRanks;
    float* to = p.low + (blockIdx.y * args.m + first_row) * kRanks;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kConsumers) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < kWarps; ++k) sum += low_found[k * args.rows * kRanks + i];
      to[i] = sum;
    }
  }
}

}  // namespace pnb::cuda::lora
