#include "cuda/kernels/attention/schedule.cuh"
#include "cuda/kernels/attention/short_samples.cuh"
#include "cuda/kernels/attention/short_samples.h"
#include "cuda/kernels/launch.cuh"

namespace pnb::cuda::attention {

namespace {

struct Shared {
  alignas(1024) TwoTiles tiles[3];  // queries, keys, values
  Barrier full[2];
};
constexpr int kOfAMultiprocessor = 4;
static_assert(kOfAMultiprocessor * (sizeof(Shared) + 1024) <= 228 * 1024, "shared memory of a multiprocessor");

struct Args {
  HeadsMap maps[3];
  Heads<__nv_bfloat16> o;
  float* lse;  // may be null
  int64_t lse_stride;
  Borders borders;
  int64_t tokens;
  int heads;
  float scale;
};

// The two rows of scores that a thread holds a part of, relative to their highest.
struct Rows {
  float factor;  // of scores, to base 2
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};

  template <int kCount>
  __device__ __forceinline__ void see(const float (&s)[kCount]) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) maximum[j / 2 % 2] = fmaxf(maximum[j / 2 % 2], s[j]);
  }
  __device__ __forceinline__ void seen_all() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      maximum[i] = fmaxf(maximum[i], __shfl_xor_sync(0xffffffff, maximum[i], 1));
      maximum[i] = fmaxf(maximum[i], __shfl_xor_sync(0xffffffff, maximum[i], 2));
    }
  }
  template <int kCount>
  __device__ __forceinline__ void probabilities(float (&s)[kCount], uint32_t (&p)[kCount / 2]) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      int i = j / 2 % 2;
      s[j] = exp2_fast(fmaf(s[j], factor, -maximum[i] * factor));
      sum[i] += s[j];
    }
    to_left_operand(s, p);
  }
  __device__ __forceinline__ void summed_all() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 1);
      sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 2);
    }
  }
};

// Scores of keys behind the query's own place in a block become minus infinity.
template <int kCount>
__device__ __forceinline__ void mask_diagonal(float (&s)[kCount]) {
  int row = threadIdx.x / 4 % 8 + threadIdx.x / 32 * 16 - 2 * (threadIdx.x % 4);
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (j / 4 * 8 + j % 2 > row + j / 2 % 2 * 8) s[j] = -INFINITY;
  }
}

__device__ __forceinline__ void store(const Args& a, Shared& shared, const ShortSample& sample, int block, Rows& rows,
                                      const float (&o)[kShortDim / 2]) {
  rows.summed_all();
  int lane = threadIdx.x % 32, row = block * kShortRows + threadIdx.x / 32 * 16;
  float inverse[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    inverse[i] = __fdividef(1.0f, rows.sum[i]);
    int own = row + lane / 4 + 8 * i;
    if (a.lse != nullptr && lane % 4 == 0 && own < sample.length) {
      a.lse[sample.head * a.lse_stride + sample.first + own] = rows.maximum[i] * a.scale + __logf(rows.sum[i]);
    }
  }
  // Through the first queries, whose scores have been computed.
  auto* stages = reinterpret_cast<Stage<kShortDim>*>(shared.tiles[0][0]);
  static_assert(4 * sizeof *stages <= ShortTile::kBytes, "a stage a warp");
  store_rows<kShortDim>(stages[threadIdx.x / 32], a.o.row(sample.first + row, sample.head), a.o.token_stride, o, inverse[0],
                        inverse[1], sample.length - row);
}

// The second block's queries, and kKeys keys of it beside those of the first.
template <int kKeys>
__device__ __forceinline__ void second_block(const Args& a, Shared& shared, const ShortSample& sample) {
  using Few = Tile<kKeys, kShortDim>;
  auto address = [&](int tensor, int block) PNB_INLINE { return shared_address(shared.tiles[tensor][block]); };
  float s[kShortRows / 2], t[kKeys / 2], o[kShortDim / 2];
  uint32_t p[kShortRows / 4], r[kKeys / 4];
  shared.full[1].wait(0);
  wgmma::fence(s);
  wgmma::fence(t);
  wgmma::begin();
  ShortTile::product_of_rows<kShortRows, ShortTile>(s, address(0, 1), 0, address(1, 0));
  Few::template product_of_rows<kKeys, ShortTile>(t, address(0, 1), 0, address(1, 1));
  wgmma::commit();
  if (int left = sample.length - kShortRows; left < kKeys) Few::zero_rows(shared.tiles[2][1], left, threadIdx.x);
  fence_async_proxy();
  wgmma::wait<0>();
  wgmma::fence(s);
  wgmma::fence(t);
  mask_diagonal(t);
  Rows rows{a.scale * kLog2E};
  rows.see(s);
  rows.see(t);
  rows.seen_all();
  rows.probabilities(s, p);
  rows.probabilities(t, r);
#pragma unroll
  for (float& x : o) x = 0.0f;
  __syncthreads();
  wgmma::fence(o);
  wgmma::begin();
  ShortTile::add_product(o, p, address(2, 0));
  Few::add_product(o, r, address(2, 1));
  wgmma::commit();
  wgmma::wait<0>();
  wgmma::fence(o);
  store(a, shared, sample, 1, rows, o);
}

__device__ __forceinline__ void first_block(const Args& a, Shared& shared, const ShortSample& sample) {
  auto address = [&](int tensor) PNB_INLINE { return shared_address(shared.tiles[tensor][0]); };
  float s[kShortRows / 2], o[kShortDim / 2];
  uint32_t p[kShortRows / 4];
  shared.full[0].wait(0);
  wgmma::fence(s);
  wgmma::begin();
  ShortTile::product_of_rows<kShortRows, ShortTile>(s, address(0), 0, address(1));
  wgmma::commit();
  // Zero probabilities do not hide the NaN of a row behind the sample.
  if (sample.length < kShortRows) ShortTile::zero_rows(shared.tiles[2][0], sample.length, threadIdx.x);
  fence_async_proxy();
  wgmma::wait<0>();
  wgmma::fence(s);
  mask_diagonal(s);
  Rows rows{a.scale * kLog2E};
  rows.see(s);
  rows.seen_all();
  rows.probabilities(s, p);
#pragma unroll
  for (float& x : o) x = 0.0f;
  __syncthreads();
  wgmma::fence(o);
  wgmma::begin();
  ShortTile::add_product(o, p, address(2));
  wgmma::commit();
  wgmma::wait<0>();
  wgmma::fence(o);
  store(a, shared, sample, 0, rows, o);
}

__global__ void __launch_bounds__(kWarpgroup, kOfAMultiprocessor) short_forward_kernel(const __grid_constant__ Args a) {
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
  if (sample.length > 0) first_block(a, shared, sample);
  if (sample.length > kShortRows + kFewRows) second_block<kShortRows>(a, shared, sample);
  else if (sample.is_two_blocks()) second_block<kFewRows>(a, shared, sample);
  zero_rows_of_no_sample<kShortDim>(a.o, a.borders, a.tokens, a.heads, threadIdx.x, kWarpgroup);
}

}  // namespace

bool has_short_samples(const pnb_attention_forward_params& p) {
  return are_short(p) && p.cu_seqlens_q.data == p.cu_seqlens_k.data;
}

void short_forward(const pnb_attention_forward_params& p) {
  static const char* op = "attention_forward";
  int64_t samples = p.cu_seqlens_q.shape[0] - 1, heads = p.q.shape[1];
  Args a{{make_heads_map(p.q, kBoxRows, op), make_heads_map(p.k, kBoxRows, op), make_heads_map(p.v, kBoxRows, op)},
         Heads<__nv_bfloat16>(p.o),
         static_cast<float*>(p.lse.data),
         p.lse.stride[0],
         Borders(p.cu_seqlens_q),
         p.q.shape[0],
         static_cast<int>(heads),
         p.scale};
  allow_shared_memory(short_forward_kernel, sizeof(Shared), op);
  dim3 grid(static_cast<unsigned>(samples * heads));
  launch(short_forward_kernel, {grid, kWarpgroup, sizeof(Shared), stream_of(p.stream), 1, true}, op, a);
}

}  // namespace pnb::cuda::attention
