#include <algorithm>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/lora/gradient_pass.cuh"
#include "cuda/kernels/lora/passes.h"

// Three launches for a whole chain. Two are passes: the first reads every adapter's dy once, and each block makes its part of
// dh = dy B, a sum over columns, and of dB = dy^T h, a sum over rows; the second reads x once and makes parts of dA for all
// adapters. The third adds up the parts, in the order of rows and columns, and is the only one that writes results: nothing
// depends on which block comes first.

namespace pnb::cuda::lora {

namespace {

// d[rank, neuron] += scale * the parts of all ranges that have the neuron.
struct Sum {
  const float* partial;
  float* d;
  Columns blocks;
  int64_t columns, neurons, lists, d_rank, d_column;
  int ranges, ranges_per_list, pitch, r;  // pitch: ranks of a partial
  float scale;
};

// dh[row, rank] = scale * the parts of all blocks of columns.
struct LowSum {
  const float* low;
  float* dh;
  int64_t dh_row, dh_rank;
  int chunks, pitch, r;
};

constexpr int kFinished = 4;  // adapters of a launch
struct FinishArgs {
  Sum sums[2 * kFinished];
  LowSum lows[kFinished];
  int64_t m;
  int adapters;
  float scaling;
};
static_assert(sizeof(FinishArgs) <= 4096);

constexpr int kFinishThreads = 128;

__device__ float add_ranges(const float* from, int64_t stride, int count) {
  float sum = 0.0f;
#pragma unroll 16
  for (int i = 0; i < count; ++i) sum += from[i * stride];
  return sum;
}

// Where a list has a block, or -1; for a warp whose lanes all ask for the same.
__device__ int place_of(const Columns& blocks, int64_t list, int block) {
  int count = blocks.counts[list], found = -1;
  const int32_t* indices = blocks.indices + list * blocks.list_stride;
#pragma unroll 4
  for (int i = threadIdx.x % kWarp; i < count; i += kWarp) found = indices[i] == block ? i : found;
  return __reduce_max_sync(~0u, found);
}

__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const __grid_constant__ FinishArgs args) {
  let_next_begin();
  after_previous();
  uint32_t thread = blockIdx.x * kFinishThreads + threadIdx.x;  // divisions of 64 bits take a hundred instructions
  int sums = 2 * args.adapters;
  if (static_cast<int>(blockIdx.y) >= sums) {
    const LowSum& p = args.lows[blockIdx.y - sums];
    if (thread >= args.m * p.r) return;
    int64_t row = thread / static_cast<uint32_t>(p.r), rank = thread % static_cast<uint32_t>(p.r);
    float sum = 0.0f;
    for (int i = 0; i < p.chunks; ++i) sum += p.low[(i * args.m + row) * p.pitch + rank];
    p.dh[row * p.dh_row + rank * p.dh_rank] = args.scaling * sum;
    return;
  }
  const Sum& p = args.sums[blockIdx.y];
  auto padded = static_cast<uint32_t>(round_up(p.neurons, kWarp));  // a warp stays within a rank
  int64_t neuron = thread % padded, rank = thread / padded;
  if (rank >= p.r) return;
  int64_t range = p.pitch * p.columns;
  float sum = 0.0f;
  if (!p.blocks.listed()) {
    if (neuron >= p.neurons) return;
    sum = add_ranges(p.partial + rank * p.columns + neuron, range, p.ranges);
  } else {
    int block = static_cast<int>(neuron / p.blocks.size);
    bool any = false;
    for (int64_t list = 0; list < p.lists; ++list) {
      int place = place_of(p.blocks, list, block);
      if (place < 0) continue;
      any = true;
      int64_t first = list * p.ranges_per_list;
      int count = static_cast<int>(min(static_cast<int64_t>(p.ranges_per_list), p.ranges - first));
      sum += add_ranges(p.partial + first * range + rank * p.columns + place * p.blocks.size + neuron % p.blocks.size, range,
                        count);
    }
    if (!any) return;
  }
  float* d = p.d + rank * p.d_rank + neuron * p.d_column;
  *d += p.scale * sum;
}

// Ranks that a kernel computes with.
int kernel_ranks(int64_t r) { return r <= 4 ? 4 : r <= 8 ? 8 : 16; }

// How passes over matrices of `columns` columns each are shared out.
struct Grid {
  int warps = 0, rows = 0;

  int64_t column_blocks(int64_t columns) const { return ceil_div(columns, static_cast<int64_t>(warps) * kWarpColumns); }
  int64_t ranges(int64_t m) const { return ceil_div(m, rows); }
};

constexpr Grid kGrids[] = {{16, 128}, {8, 128}, {8, 64}, {8, 32}};

// Rows up to which a grid leaves much of the device idle.
int64_t most_idle_rows(const Device& device, const Grid& grid, const int64_t* columns, int count) {
  int64_t blocks = 0;  // of a range
  for (int i = 0; i < count; ++i) blocks += grid.column_blocks(columns[i]);
  return blocks == 0 ? INT64_MAX : (3 * device.multiprocessors - 1) / (4 * blocks) * grid.rows;
}

// The largest blocks that keep most of the device busy: large ones leave fewer parts to add up.
Grid choose_grid(const Device& device, int64_t m, const int64_t* columns, int count, int ranks) {
  Grid grid;
  for (const Grid& choice : kGrids) {
    if (choice.warps == 16 && ranks == 16) continue;  // the parts of its factors fill the registers
    grid = choice;
    if (m > most_idle_rows(device, choice, columns, count)) break;
  }
  return grid;
}

// Up to kFinished neighbours of a chain, where their parts lie in the workspace, and how the passes are shared out.
struct Plan {
  const pnb_lora_gradients_params* adapters[kFinished];
  int count = 0;
  const pnb_lora_gradients_params* rest = nullptr;  // of the chain
  bool together = true;                             // one pass over x serves all
  int out_ranks = 0, in_ranks = 0;                  // of a partial
  int first_rank[kFinished];                        // in the common pass
  int64_t outs[kFinished], ins[kFinished];          // columns of each one's dy and x
  Grid out_grid, in_grid;
  uint64_t low[kFinished], out_partial[kFinished], in_partial[kFinished];  // in floats
  uint64_t floats = 0;

  int in_passes() const { return together ? 1 : count; }

  uint64_t take(int64_t size) {
    uint64_t at = floats;
    floats += static_cast<uint64_t>(round_up(size, 64));
    return at;
  }
};

// For m rows.
Plan make_plan(const Device& device, const pnb_lora_gradients_params& first, int64_t m) {
  Plan plan;
  int64_t in = first.x.shape[1], total = 0, widest = 0;
  const auto* one = &first;
  for (; one != nullptr && plan.count < kFinished; one = one->next) {
    int i = plan.count++;
    plan.adapters[i] = one;
    plan.first_rank[i] = static_cast<int>(total);
    plan.outs[i] = one->dy.shape[1];
    plan.ins[i] = in;
    total += one->a.shape[0];
    widest = std::max(widest, one->a.shape[0]);
    // Dropout makes x another one for each adapter.
    plan.together = plan.together && (one->dropout.p == 0.0f || (i == 0 && one->next == nullptr));
  }
  plan.rest = one;
  plan.together = plan.together && total <= kStreamRanks;
  plan.out_ranks = kernel_ranks(widest);
  plan.in_ranks = kernel_ranks(plan.together ? total : widest);
  plan.out_grid = choose_grid(device, m, plan.outs, plan.count, plan.out_ranks);
  plan.in_grid = choose_grid(device, m, plan.ins, plan.in_passes(), plan.in_ranks);
  for (int i = 0; i < plan.count; ++i) {
    plan.low[i] = plan.take(plan.out_grid.column_blocks(plan.outs[i]) * m * plan.out_ranks);
    plan.out_partial[i] = plan.take(plan.out_grid.ranges(m) * plan.out_ranks * plan.outs[i]);
    plan.in_partial[i] = plan.together && i > 0 ? plan.in_partial[0] : plan.take(plan.in_grid.ranges(m) * plan.in_ranks * in);
  }
  return plan;
}

template <int kRanks, int kWarps, bool kLow, bool kDrops>
void launch_pass(const Args& args, dim3 grid, cudaStream_t stream) {
  auto kernel = stream_gradients_kernel<kRanks, kWarps, kLow, kDrops>;
  size_t low = kLow ? static_cast<size_t>(kWarps) * static_cast<size_t>(args.rows) * kRanks * sizeof(float) : 0;
  size_t shared = Ring<kWarps>::kBytes + low;
  allow_shared_memory(kernel, shared, "lora_gradients");
  launch(kernel, {grid, (kWarps + 1) * kWarp, shared, stream, 1, true}, kLow ? "lora: dy B and dB" : "lora: dA", args);
}

template <bool kLow, bool kDrops>
void launch_ranks(const Args& args, const Grid& shape, int ranks, dim3 grid, cudaStream_t stream) {
  if (ranks == 16) launch_pass<16, 8, kLow, kDrops>(args, grid, stream);
  else if (ranks == 8 && shape.warps == 8) launch_pass<8, 8, kLow, kDrops>(args, grid, stream);
  else if (ranks == 8) launch_pass<8, 16, kLow, kDrops>(args, grid, stream);
  else if (shape.warps == 8) launch_pass<4, 8, kLow, kDrops>(args, grid, stream);
  else launch_pass<4, 16, kLow, kDrops>(args, grid, stream);
}

void launch_passes(Args& args, int passes, const Grid& shape, int ranks, bool low, cudaStream_t stream) {
  int64_t blocks = 0;
  bool drops = false;
  for (int i = 0; i < passes; ++i) {
    blocks = std::max(blocks, shape.column_blocks(args.passes[i].columns));
    drops = drops || args.passes[i].dropout.active();
  }
  if (blocks == 0) return;
  args.rows = shape.rows;
  dim3 grid(static_cast<unsigned>(shape.ranges(args.m)), static_cast<unsigned>(blocks), static_cast<unsigned>(passes));
  if (low) launch_ranks<true, false>(args, shape, ranks, grid, stream);
  else if (drops) launch_ranks<false, true>(args, shape, ranks, grid, stream);
  else launch_ranks<false, false>(args, shape, ranks, grid, stream);
}

Pass pass_over(const pnb_tensor& x, const pnb_block_list& blocks, int64_t width) {
  Pass pass{};
  pass.x = static_cast<const __nv_bfloat16*>(x.data);
  pass.blocks = Columns(blocks);
  pass.columns = x.shape[1];
  pass.width = width;
  pass.x_stride = x.stride[0];
  return pass;
}

Sum sum_of(const Pass& pass, const Grid& grid, int64_t m, int pitch, int first_rank, int64_t r, const pnb_tensor& d, int rank_dim,
           float scale) {
  Sum sum{};
  sum.partial = pass.partial + first_rank * pass.columns;
  sum.d = static_cast<float*>(d.data);
  sum.blocks = pass.blocks;
  sum.columns = pass.columns;
  sum.neurons = pass.width;
  sum.lists = pass.blocks.listed() ? ceil_div(m, pass.blocks.rows_per_list) : 1;
  sum.d_rank = d.stride[rank_dim];
  sum.d_column = d.stride[1 - rank_dim];
  sum.ranges = static_cast<int>(grid.ranges(m));
  sum.ranges_per_list = sum.lists > 1 ? static_cast<int>(pass.blocks.rows_per_list / grid.rows) : sum.ranges;
  sum.pitch = pitch;
  sum.r = static_cast<int>(r);
  sum.scale = scale;
  return sum;
}

void run(const Plan& plan, const pnb_lora_gradients_params& first, cudaStream_t stream) {
  auto* space = static_cast<float*>(first.workspace.data);
  int64_t m = first.x.shape[0];
  Args out{}, in{};
  FinishArgs finish{};
  out.m = in.m = finish.m = m;
  finish.adapters = plan.count;
  finish.scaling = first.scaling;
  int64_t most = 0;  // threads of one part of the last launch
  for (int i = 0; i < plan.count; ++i) {
    const auto& one = *plan.adapters[i];
    int64_t r = one.a.shape[0];
    Pass& pass = out.passes[i] = pass_over(one.dy, one.dy_blocks, one.b.shape[0]);
    pass.left_scale = 1.0f;
    pass.r = static_cast<int>(r);
    pass.partial = space + plan.out_partial[i];
    pass.low = space + plan.low[i];
    for (int64_t k = 0; k < r; ++k) {
      pass.ranks[k] = {static_cast<const float*>(one.h.data) + k * one.h.stride[1], one.h.stride[0], 0, 1,
                       static_cast<const float*>(one.b.data) + k * one.b.stride[1], one.b.stride[0]};
    }
    int chunks = static_cast<int>(plan.out_grid.column_blocks(pass.columns));
    finish.lows[i] = {pass.low, static_cast<float*>(one.dh.data), one.dh.stride[0], one.dh.stride[1], chunks, plan.out_ranks,
                      static_cast<int>(r)};
    finish.sums[2 * i] = sum_of(pass, plan.out_grid, m, plan.out_ranks, 0, r, one.db, 1, one.scaling);

    Pass& over_x = in.passes[plan.together ? 0 : i];
    int first_rank = plan.together ? plan.first_rank[i] : 0;
    if (first_rank == 0) {
      over_x = pass_over(one.x, one.x_blocks, one.a.shape[1]);
      over_x.dropout = DropoutParams(one.dropout);
      over_x.left_scale = one.scaling;
      over_x.norm = Norm(one.norm);
      over_x.partial = space + plan.in_partial[i];
    }
    for (int64_t k = 0; k < r; ++k) {
      over_x.ranks[first_rank + k] = {pass.low + k, plan.out_ranks, m * plan.out_ranks, chunks, nullptr, 0};
    }
    over_x.r += static_cast<int>(r);
    finish.sums[2 * i + 1] = sum_of(over_x, plan.in_grid, m, plan.in_ranks, first_rank, r, one.da, 0, over_x.dropout.keep);
    most = std::max({most, m * r, r * round_up(pass.width, kWarp), r * round_up(over_x.width, kWarp)});
  }
  launch_passes(out, plan.count, plan.out_grid, plan.out_ranks, true, stream);
  launch_passes(in, plan.in_passes(), plan.in_grid, plan.in_ranks, false, stream);
  dim3 grid(static_cast<unsigned>(ceil_div(most, kFinishThreads)), static_cast<unsigned>(3 * plan.count));
  launch(finish_kernel, {grid, kFinishThreads, 0, stream, 1, true}, "lora_gradients: sums of the parts", finish);
}

}  // namespace

bool streams(const pnb_lora_gradients_params& p) {
  bool fits = streams(p.x);
  for (const auto* one = &p; one != nullptr; one = one->next) {
    fits = fits && streams(one->dy) && Norm(one->norm).pairs_aligned() && one->a.shape[0] >= 1 && one->a.shape[0] <= kStreamRanks;
  }
  return fits;
}

// Enough for every smaller batch, too: who asks for the largest one's has that. Fewer rows are shared out in smaller blocks, and
// may leave more parts; most of them just before larger blocks are taken.
uint64_t stream_gradients_workspace(const Device& device, const pnb_lora_gradients_params& p) {
  uint64_t floats = 0;
  int64_t m = p.x.shape[0];
  for (const auto* first = &p; first != nullptr;) {
    Plan plan = make_plan(device, *first, m);
    floats = std::max(floats, plan.floats);
    for (const Grid& grid : kGrids) {
      for (int64_t rows : {most_idle_rows(device, grid, plan.outs, plan.count),
                           most_idle_rows(device, grid, plan.ins, plan.in_passes())}) {
        if (rows < m) floats = std::max(floats, make_plan(device, *first, rows).floats);
      }
    }
    first = plan.rest;
  }
  return floats * sizeof(float);
}

void stream_gradients(const Device& device, const pnb_lora_gradients_params& p) {
  if (p.x.shape[0] == 0) return;
  for (const auto* first = &p; first != nullptr;) {
    Plan plan = make_plan(device, *first, p.x.shape[0]);
    pnb_lora_gradients_params head = *first;
    head.workspace = p.workspace;
    run(plan, head, stream_of(p.stream));
    first = plan.rest;
  }
}

}  // namespace pnb::cuda::lora
