#include "cuda/kernels/attention/schedule.cuh"
#include "cuda/kernels/attention/short_samples.cuh"
#include "cuda/kernels/attention/short_samples.h"
#include "cuda/kernels/launch.cuh"

// Scores are computed transposed, so that probabilities and their gradients come out of one product as the next one's left
// operand; only what dq is made of goes through shared memory.

namespace pnb::cuda::attention {

namespace {

constexpr int kQueries = 0, kGradients = 1, kKeys = 2, kValues = 3;  // of o: kGradients

struct Shared {
  alignas(1024) TwoTiles tiles[4];
  alignas(1024) char score_gradients[ShortTile::kBytes];  // a row a key
  alignas(16) float2 stats[2 * kShortRows];                // of a query: log-sum-exp to base 2, and the sum of o * d_o
  Barrier full[2];

  // The first block's queries have been read when the second block of keys has gradients of scores to keep.
  __device__ char* gradients_of(int block) { return block == 0 ? score_gradients : tiles[kQueries][0]; }
  // The first block's d_o has been read when there is a gradient to be stored.
  __device__ Stage<kShortDim>& stage() {
    static_assert(4 * sizeof(Stage<kShortDim>) <= ShortTile::kBytes, "a stage a warp");
    return reinterpret_cast<Stage<kShortDim>*>(tiles[kGradients][0])[threadIdx.x / 32];
  }
};
constexpr int kOfAMultiprocessor = 3;
static_assert(kOfAMultiprocessor * (sizeof(Shared) + 1024) <= 228 * 1024, "shared memory of a multiprocessor");

struct Args {
  HeadsMap maps[4];
  Heads<const __nv_bfloat16> o, d_o;
  const float* lse;
  int64_t lse_stride;
  Heads<__nv_bfloat16> dq, dk, dv;  // dk may be absent
  Borders borders;
  int64_t tokens;
  int heads;
  float scale;
};

// Eight threads a row. Rows behind the sample get zeros, of which probabilities and gradients without effect come.
__device__ __forceinline__ void find_stats(const Args& a, Shared& shared, const ShortSample& sample, int block) {
  constexpr int kTurns = kShortRows * 8 / kWarpgroup;
  uint4 x[kTurns], y[kTurns];
  float lse[kTurns];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    int row = block * kShortRows + i * (kWarpgroup / 8) + threadIdx.x / 8;
    x[i] = y[i] = uint4{0, 0, 0, 0};
    lse[i] = 0.0f;
    if (row >= sample.length) continue;
    x[i] = reinterpret_cast<const uint4*>(a.o.row(sample.first + row, sample.head))[threadIdx.x % 8];
    y[i] = reinterpret_cast<const uint4*>(a.d_o.row(sample.first + row, sample.head))[threadIdx.x % 8];
    lse[i] = a.lse[sample.head * a.lse_stride + sample.first + row];
  }
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    float sum = dot(x[i], y[i]);
#pragma unroll
    for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
    int row = block * kShortRows + i * (kWarpgroup / 8) + threadIdx.x / 8;
    if (threadIdx.x % 8 == 0) shared.stats[row] = {lse[i] * kLog2E, sum};
  }
}

// What a block of 64 keys has of dk and dv.
struct KeyGradients {
  float dk[kShortDim / 2], dv[kShortDim / 2];
};

// What kN queries of a block give the keys of a block; the keys' own block, kDiagonal, comes first and is not added to anything.
// Leaves the gradients of the scores in shared memory. The products are under way at its end.
template <int kN, bool kDiagonal>
__device__ __forceinline__ void add_pair(const Args& a, Shared& shared, int query_block, int key_block, KeyGradients& g) {
  using Query = Tile<kN, kShortDim>;
  const uint32_t queries = shared_address(shared.tiles[kQueries][query_block]);
  const uint32_t d_o = shared_address(shared.tiles[kGradients][query_block]);
  float s[kN / 2], dp[kN / 2];
  uint32_t p[kN / 4], ds[kN / 4];
  wgmma::fence(s);
  wgmma::begin();
  Query::template product_of_rows<kN, ShortTile>(s, shared_address(shared.tiles[kKeys][key_block]), 0, queries);
  wgmma::commit();
  wgmma::fence(dp);
  wgmma::begin();
  Query::template product_of_rows<kN, ShortTile>(dp, shared_address(shared.tiles[kValues][key_block]), 0, d_o);
  wgmma::commit();
  int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  // Of two queries side by side.
  const auto* stats = reinterpret_cast<const float4*>(shared.stats + query_block * kShortRows) + lane % 4;
  wgmma::wait<1>();
  wgmma::fence(s);
  float factor = a.scale * kLog2E;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    float4 two = stats[4 * j];
#pragma unroll
    for (int e = 0; e < 4; ++e) s[4 * j + e] = exp2_fast(fmaf(s[4 * j + e], factor, e % 2 == 0 ? -two.x : -two.z));
  }
  if constexpr (kDiagonal) {
    int key = warp_row + lane / 4 - 2 * (lane % 4);
#pragma unroll
    for (int j = 0; j < kN / 2; ++j) {
      if (j / 4 * 8 + j % 2 < key + j / 2 % 2 * 8) s[j] = 0.0f;
    }
  }
  wgmma::wait<0>();
  wgmma::fence(dp);
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    float4 two = stats[4 * j];
#pragma unroll
    for (int e = 0; e < 4; ++e) dp[4 * j + e] = s[4 * j + e] * (dp[4 * j + e] - (e % 2 == 0 ? two.y : two.w));
  }
  // Both at once: beside two whole sums there are no registers for scores, probabilities and their gradients.
  to_left_operand(s, p);
  to_left_operand(dp, ds);
  wgmma::fence(g.dv);
  wgmma::fence(g.dk);
  wgmma::begin();
  Query::add_product(g.dv, p, d_o, !kDiagonal);
  Query::add_product(g.dk, ds, queries, !kDiagonal);
  wgmma::commit();
  int row = warp_row + lane % 16;
  uint32_t to = shared_address(shared.gradients_of(key_block)) + row * 128;
#pragma unroll
  for (int j = 0; j < kN / 16; ++j) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     to + ((2 * j + lane / 16) ^ (row % 8)) * 16),
                 "r"(ds[4 * j]), "r"(ds[4 * j + 1]), "r"(ds[4 * j + 2]), "r"(ds[4 * j + 3])
                 : "memory");
  }
  fence_async_proxy();
}

__device__ __forceinline__ void finish(KeyGradients& g) {
  wgmma::wait<0>();
  wgmma::fence(g.dk);
  wgmma::fence(g.dv);
}

// dq of 64 queries += the gradients of their scores for kN keys, times the keys.
template <int kN>
__device__ __forceinline__ void add_query_gradient(Shared& shared, int key_block, float (&dq)[kShortDim / 2], bool add) {
  uint32_t gradients = shared_address(shared.gradients_of(key_block)), keys = shared_address(shared.tiles[kKeys][key_block]);
#pragma unroll
  for (int i = 0; i < kN / 16; ++i) {
    wgmma::transposed_step(dq, ShortTile::column_major(gradients, 0, i), ShortTile::column_major(keys, 0, i), add || i > 0);
  }
}

__device__ __forceinline__ void store(Shared& shared, const ShortSample& sample, int block, const Heads<__nv_bfloat16>& to,
                                      const float (&d)[kShortDim / 2], float factor) {
  int row = block * kShortRows + threadIdx.x / 32 * 16;
  store_rows<kShortDim>(shared.stage(), to.row(sample.first + row, sample.head), to.token_stride, d, factor, factor,
                        sample.length - row);
}

__device__ __forceinline__ void store(const Args& a, Shared& shared, const ShortSample& sample, int block, const KeyGradients& g) {
  if (a.dk.present()) store(shared, sample, block, a.dk, g.dk, a.scale);
  store(shared, sample, block, a.dv, g.dv, 1.0f);
}

// Waits for a block's rows, of which kN matter. Those behind the sample become zeros: zero gradients do not hide NaN.
template <int kN>
__device__ __forceinline__ void receive(Shared& shared, const ShortSample& sample, int block) {
  shared.full[block].wait(0);
  if (int left = sample.length - block * kShortRows; left < kN) {
    for (TwoTiles& tiles : shared.tiles) Tile<kN, kShortDim>::zero_rows(tiles[block], left, threadIdx.x);
  }
  fence_async_proxy();
  __syncthreads();
}

// The second block's queries, and its keys, both kN.
template <int kN>
__device__ __forceinline__ void second_block(const Args& a, Shared& shared, const ShortSample& sample, KeyGradients& g) {
  receive<kN>(shared, sample, 1);
  add_pair<kN, false>(a, shared, 1, 0, g);
  finish(g);
  store(a, shared, sample, 0, g);
  add_pair<kN, true>(a, shared, 1, 1, g);
  float dq[kShortDim / 2];
  __syncthreads();
  wgmma::fence(dq);
  wgmma::begin();
  add_query_gradient<kShortRows>(shared, 0, dq, false);
  add_query_gradient<kN>(shared, 1, dq, true);
  wgmma::commit();
  finish(g);
  wgmma::fence(dq);
  store(shared, sample, 1, a.dq, dq, a.scale);
  store(a, shared, sample, 1, g);
}

__device__ __forceinline__ void all_blocks(const Args& a, Shared& shared, const ShortSample& sample) {
#pragma unroll 1
  for (int block = 0; block * kShortRows < sample.length; ++block) find_stats(a, shared, sample, block);
  KeyGradients g;
  receive<kShortRows>(shared, sample, 0);
  add_pair<kShortRows, true>(a, shared, 0, 0, g);
  float dq[kShortDim / 2];
  __syncthreads();
  wgmma::fence(dq);
  wgmma::begin();
  add_query_gradient<kShortRows>(shared, 0, dq, false);
  wgmma::commit();
  finish(g);
  wgmma::fence(dq);
  __syncthreads();  // everyone has read the first d_o
  store(shared, sample, 0, a.dq, dq, a.scale);
  if (sample.length > kShortRows + kFewRows) second_block<kShortRows>(a, shared, sample, g);
  else if (sample.is_two_blocks()) second_block<kFewRows>(a, shared, sample, g);
  else store(a, shared, sample, 0, g);
}

__global__ void __launch_bounds__(kWarpgroup, kOfAMultiprocessor) short_backward_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (const HeadsMap& map : a.maps) prefetch_map(map.wide);
    for (Barrier& barrier : shared.full) barrier.init(1);
    fence_barrier_init();
  }
  __syncthreads();
  after_previous();
  ShortSample sample(a.borders, a.heads);
  if (threadIdx.x < 32) copy_sample(a.maps, shared.tiles, shared.full, sample);
  if (sample.length > 0) all_blocks(a, shared, sample);
  for (const auto* gradient : {&a.dq, &a.dk, &a.dv}) {
    if (!gradient->present()) continue;
    zero_rows_of_no_sample<kShortDim>(*gradient, a.borders, a.tokens, a.heads, threadIdx.x, kWarpgroup);
  }
}

}  // namespace

bool has_short_samples(const pnb_attention_backward_params& p) { return are_short(p); }

void short_backward(const pnb_attention_backward_params& p) {
  static const char* op = "attention_backward";
  int64_t samples = p.cu_seqlens.shape[0] - 1, heads = p.q.shape[1];
  auto map = [](const pnb_tensor& t) { return make_heads_map(t, kBoxRows, op); };
  Args a{{map(p.q), map(p.d_o), map(p.k), map(p.v)},
         Heads<const __nv_bfloat16>(p.o),
         Heads<const __nv_bfloat16>(p.d_o),
         static_cast<const float*>(p.lse.data),
         p.lse.stride[0],
         Heads<__nv_bfloat16>(p.dq),
         Heads<__nv_bfloat16>(p.dk),
         Heads<__nv_bfloat16>(p.dv),
         Borders(p.cu_seqlens),
         p.q.shape[0],
         static_cast<int>(heads),
         p.scale};
  allow_shared_memory(short_backward_kernel, sizeof(Shared), op);
  dim3 grid(static_cast<unsigned>(samples * heads));
  launch(short_backward_kernel, {grid, kWarpgroup, sizeof(Shared), stream_of(p.stream), 1, true}, op, a);
}

}  // namespace pnb::cuda::attention
