#include "cuda/kernels/attention/plain.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "cuda/kernels/attention/lists.cuh"

// A block owns one row of one head: a query row for o and dq, a key row for dk and dv. Its warps take the partner rows in
// turn, lanes split the head's dimensions, and the warps' shares are added in a fixed order: equal inputs give equal bits.

namespace pnb::cuda::attention {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kUnroll = 4;  // partner rows in flight in a warp: hides the reduction's latency

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(float* to, float x) { *to = x; }
__device__ inline void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16(x); }

// A row spread over a warp: lane l holds dimensions l, l + 32, ...
template <int kPerLane>
struct LaneRow {
  float x[kPerLane];

  __device__ static LaneRow zero() {
    LaneRow r;
#pragma unroll
    for (float& value : r.x) value = 0.0f;
    return r;
  }

  template <typename T>
  __device__ static LaneRow load(const T* row, int dim) {
    LaneRow r;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      int d = static_cast<int>(threadIdx.x % 32) + 32 * i;
      r.x[i] = d < dim ? widen(row[d]) : 0.0f;
    }
    return r;
  }

  __device__ void add(float factor, const LaneRow& other) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) x[i] = fmaf(factor, other.x[i], x[i]);
  }

  __device__ void multiply(float factor) {
#pragma unroll
    for (float& value : x) value *= factor;
  }
};

template <int kPerLane>
__device__ float lane_dot(const LaneRow<kPerLane>& a, const LaneRow<kPerLane>& b) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sum = fmaf(a.x[i], b.x[i], sum);
  return sum;
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffff, x, offset);
  return x;
}

template <int kPerLane>
__device__ float dot(const LaneRow<kPerLane>& a, const LaneRow<kPerLane>& b) {
  return warp_sum(lane_dot(a, b));
}

// Each warp's row, weighted, summed and written by the whole block.
template <typename T, int kPerLane>
__device__ void store_sum(const LaneRow<kPerLane>& share, const float* weights, T* row, int dim) {
  __shared__ float shares[kWarps][32 * kPerLane];
  int warp = threadIdx.x / 32;
  __syncthreads();  // a second use of the shares waits for the first
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) shares[warp][threadIdx.x % 32 + 32 * i] = share.x[i];
  __syncthreads();
  for (int d = threadIdx.x; d < dim; d += kThreads) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += (weights == nullptr ? 1.0f : weights[w]) * shares[w][d];
    store(row + d, sum);
  }
}

template <typename T>
__device__ void store_zero(T* row, int dim) {
  for (int d = threadIdx.x; d < dim; d += kThreads) store(row + d, 0.0f);
}

// The rows that a row works with: all of its sample's from the first on, or those of its list's blocks, as if they lay one after
// another. Ones that it does not see, or that lie past the sample, are among them.
struct Partners {
  const int32_t* list;  // NULL: no list
  int size, count;      // of the list's blocks; without one, rows

  __device__ Partners(const Lists& lists, const Borders& rows, int sample, int head, int row, int without)
      : list(nullptr), size(1), count(without) {
    if (!lists.present()) return;
    int slot = first_slot(rows, sample, lists.size) + (row - rows.at[sample]) / lists.size;
    int64_t number = static_cast<int64_t>(head) * lists.slots + slot;
    list = lists.indices + number * lists.width;
    size = lists.size;
    count = lists.counts[number] * size;
  }

  // Counted in the sample.
  __device__ int at(int i) const { return list == nullptr ? i : list[i / size] * size + i % size; }
};

template <typename T>
struct ForwardArgs {
  Heads<const T> q, k, v;
  Heads<T> o;
  float* lse;  // may be null
  int64_t lse_stride;
  Borders queries, keys;
  Lists lists;
  int dim;
  float scale;
};

template <typename T, int kPerLane>
__global__ void __launch_bounds__(kThreads) forward_kernel(ForwardArgs<T> a) {
  using Row = LaneRow<kPerLane>;
  int row = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / 32;
  int sample = a.queries.sample_of(row);
  if (sample == a.queries.samples) return store_zero(a.o.row(row, head), a.dim);
  int first_key = a.keys.at[sample];
  int seen = row + 1 - a.queries.at[sample + 1] + a.keys.at[sample + 1] - first_key;
  Partners partners(a.lists, a.queries, sample, head, row, seen);

  Row q = Row::load(a.q.row(row, head), a.dim);
  q.multiply(a.scale);
  Row o = Row::zero();
  float maximum = -INFINITY, sum = 0.0f;
  for (int i = warp * kUnroll; i < partners.count; i += kWarps * kUnroll) {
    int key[kUnroll];
    float score[kUnroll];
    float highest = maximum;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      key[u] = i + u < partners.count ? partners.at(i + u) : seen;
      score[u] = key[u] < seen ? dot(q, Row::load(a.k.row(first_key + key[u], head), a.dim)) : -INFINITY;
      highest = fmaxf(highest, score[u]);
    }
    if (key[0] >= seen) break;  // the rest of the row's own block
    float correction = expf(maximum - highest);
    maximum = highest;
    sum *= correction;
    o.multiply(correction);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (key[u] >= seen) break;
      float weight = expf(score[u] - highest);
      sum += weight;
      o.add(weight, Row::load(a.v.row(first_key + key[u], head), a.dim));
    }
  }

  __shared__ float maxima[kWarps], sums[kWarps], weights[kWarps];
  if (threadIdx.x % 32 == 0) {
    maxima[warp] = maximum;
    sums[warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float highest = -INFINITY, total = 0.0f;
    for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, maxima[w]);
    for (int w = 0; w < kWarps; ++w) {
      weights[w] = sums[w] == 0.0f ? 0.0f : expf(maxima[w] - highest);
      total += weights[w] * sums[w];
    }
    for (int w = 0; w < kWarps; ++w) weights[w] = total == 0.0f ? 0.0f : weights[w] / total;
    if (a.lse != nullptr) a.lse[head * a.lse_stride + row] = total > 0.0f ? highest + logf(total) : 0.0f;
  }
  store_sum(o, weights, a.o.row(row, head), a.dim);
}

template <typename T>
struct BackwardArgs {
  Heads<const T> q, k, v, o, d_o;
  Heads<T> dq, dk, dv;
  const float* lse;
  int64_t lse_stride;
  float* delta;  // [heads, tokens]
  int64_t tokens;
  Borders borders;
  Lists of_queries, of_keys;
  int dim;
  float scale;
};

// dq of one query row, and delta = sum of o * d_o for the next kernel.
template <typename T, int kPerLane>
__global__ void __launch_bounds__(kThreads) query_gradient_kernel(BackwardArgs<T> a) {
  using Row = LaneRow<kPerLane>;
  int row = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / 32;
  int sample = a.borders.sample_of(row);
  if (sample == a.borders.samples) return store_zero(a.dq.row(row, head), a.dim);

  Row q = Row::load(a.q.row(row, head), a.dim);
  Row d_o = Row::load(a.d_o.row(row, head), a.dim);
  float delta = dot(d_o, Row::load(a.o.row(row, head), a.dim));
  if (threadIdx.x == 0) a.delta[head * a.tokens + row] = delta;
  float lse = a.lse[head * a.lse_stride + row];
  Row dq = Row::zero();
  int first = a.borders.at[sample];
  Partners partners(a.of_queries, a.borders, sample, head, row, row + 1 - first);
  for (int i = warp; i < partners.count; i += kWarps) {
    int key = first + partners.at(i);
    if (key > row) break;
    Row k = Row::load(a.k.row(key, head), a.dim);
    float probability = expf(a.scale * dot(q, k) - lse);
    float d_probability = dot(d_o, Row::load(a.v.row(key, head), a.dim));
    dq.add(a.scale * probability * (d_probability - delta), k);
  }
  store_sum(dq, nullptr, a.dq.row(row, head), a.dim);
}

// dk and dv of one key row.
template <typename T, int kPerLane>
__global__ void __launch_bounds__(kThreads) key_gradient_kernel(BackwardArgs<T> a) {
  using Row = LaneRow<kPerLane>;
  int key = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / 32;
  int sample = a.borders.sample_of(key);
  if (sample == a.borders.samples) {
    if (a.dk.present()) store_zero(a.dk.row(key, head), a.dim);
    return store_zero(a.dv.row(key, head), a.dim);
  }
  Row k = Row::load(a.k.row(key, head), a.dim);
  Row v = Row::load(a.v.row(key, head), a.dim);
  Row dk = Row::zero(), dv = Row::zero();
  int first = a.borders.at[sample], end = a.borders.at[sample + 1];
  Partners partners(a.of_keys, a.borders, sample, head, key, end - first);
  for (int i = (partners.list == nullptr ? key - first : 0) + warp; i < partners.count; i += kWarps) {
    int row = first + partners.at(i);
    if (row < key) continue;
    if (row >= end) break;
    Row q = Row::load(a.q.row(row, head), a.dim);
    Row d_o = Row::load(a.d_o.row(row, head), a.dim);
    float probability = expf(a.scale * dot(q, k) - a.lse[head * a.lse_stride + row]);
    dv.add(probability, d_o);
    dk.add(a.scale * probability * (dot(d_o, v) - a.delta[head * a.tokens + row]), q);
  }
  if (a.dk.present()) store_sum(dk, nullptr, a.dk.row(key, head), a.dim);
  store_sum(dv, nullptr, a.dv.row(key, head), a.dim);
}

template <typename T, int kPerLane>
void launch_forward(const pnb_attention_forward_params& p) {
  ForwardArgs<T> a{Heads<const T>(p.q), Heads<const T>(p.k), Heads<const T>(p.v), Heads<T>(p.o), static_cast<float*>(p.lse.data),
                   p.lse.stride[0], Borders(p.cu_seqlens_q), Borders(p.cu_seqlens_k), Lists::of_queries(p.blocks),
                   static_cast<int>(p.q.shape[2]), p.scale};
  dim3 grid(static_cast<unsigned>(p.q.shape[0]), static_cast<unsigned>(p.q.shape[1]));
  forward_kernel<T, kPerLane><<<grid, kThreads, 0, stream_of(p.stream)>>>(a);
  check_launch("attention_forward");
}

template <typename T, int kPerLane>
void launch_backward(const pnb_attention_backward_params& p) {
  BackwardArgs<T> a{Heads<const T>(p.q), Heads<const T>(p.k), Heads<const T>(p.v), Heads<const T>(p.o), Heads<const T>(p.d_o),
                    Heads<T>(p.dq), Heads<T>(p.dk), Heads<T>(p.dv), static_cast<const float*>(p.lse.data), p.lse.stride[0],
                    static_cast<float*>(p.workspace.data), p.q.shape[0], Borders(p.cu_seqlens), Lists::of_queries(p.blocks),
                    Lists::of_keys(p.blocks), static_cast<int>(p.q.shape[2]), p.scale};
  dim3 grid(static_cast<unsigned>(p.q.shape[0]), static_cast<unsigned>(p.q.shape[1]));
  query_gradient_kernel<T, kPerLane><<<grid, kThreads, 0, stream_of(p.stream)>>>(a);
  check_launch("attention_backward");
  key_gradient_kernel<T, kPerLane><<<grid, kThreads, 0, stream_of(p.stream)>>>(a);
  check_launch("attention_backward");
}

// Calls launch.operator()<T, kPerLane>() for the dtype and the head size.
template <typename T, typename Launch>
void with_lanes(int64_t dim, Launch&& launch) {
  if (dim <= 32) launch(T{}, std::integral_constant<int, 1>{});
  else if (dim <= 64) launch(T{}, std::integral_constant<int, 2>{});
  else if (dim <= 128) launch(T{}, std::integral_constant<int, 4>{});
  else launch(T{}, std::integral_constant<int, 8>{});
}

template <typename Launch>
void with_types(const pnb_tensor& q, Launch&& launch) {
  if (q.dtype == PNB_DTYPE_F32) with_lanes<float>(q.shape[2], launch);
  else with_lanes<__nv_bfloat16>(q.shape[2], launch);
}

}  // namespace

void plain_forward(const pnb_attention_forward_params& p) {
  with_types(p.q, [&](auto type, auto lanes) { launch_forward<decltype(type), decltype(lanes)::value>(p); });
}

void plain_backward(const pnb_attention_backward_params& p) {
  with_types(p.q, [&](auto type, auto lanes) { launch_backward<decltype(type), decltype(lanes)::value>(p); });
}

}  // namespace pnb::cuda::attention
