#include <algorithm>

#include "cuda/kernels/attention/attention.h"
#include "cuda/kernels/attention/schedule.cuh"
#include "cuda/kernels/attention/softmax.cuh"
#include "cuda/kernels/attention/tile.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/reduce.cuh"

// A block of threads takes 128 sampled queries of one head and sample, which are those of `query_stride` neighbouring blocks, and
// a few blocks of keys: what it costs falls with the stride. Each warp adds eight rows up at a time, and the sums of a block's
// rows are added in a fixed order. Every element of mass is written by one thread.

namespace pnb::cuda {

namespace attention {

namespace {

constexpr int kSize = 128;  // rows of a block
constexpr int kThreads = 2 * kWarpgroup;
constexpr int kGroups = kSize / 8;  // of eight rows
constexpr int kBlocks = 8;          // of keys, that a block of threads takes

// Two blocks of threads fit on a multiprocessor.
template <int kDim>
constexpr int kSlots = kDim == 128 ? 2 : 3;

template <int kDim>
struct Shared {
  using Query = Tile<kSize, kDim>;
  using Key = Tile<kSize, kDim>;

  alignas(1024) char queries[Query::kBytes];
  alignas(1024) char keys[kSlots<kDim>][Key::kBytes];
  float sums[kBlocks][kGroups];
  Barrier full[kSlots<kDim>];
};

struct Args {
  HeadsMap k;
  Heads<const __nv_bfloat16> q;
  const float* lse;
  int64_t lse_stride;
  Borders borders;
  float* mass;  // [heads, slots, width]
  int slots, width, stride, spans;
  float scale;
};

// Of the k-th sampled row of a sample: the last row is one too.
__device__ inline int sampled_row(int k, int stride, int length) { return min((k + 1) * stride, length) - 1; }

// Writes zeros to the slots of no block.
__device__ void zero_unused_slots(const Borders& borders, int size, float* mass, int slots, int width, int head, int part,
                                  int parts) {
  for (int slot = part; slot < slots; slot += parts) {
    if (borders.samples > 0) {
      SlotBlock at(borders, slot, size);
      if (at.block * size < borders.at[at.sample + 1] - borders.at[at.sample]) continue;
    }
    float* row = mass + (static_cast<int64_t>(head) * slots + slot) * width;
    for (int j = threadIdx.x; j < width; j += blockDim.x) row[j] = 0.0f;
  }
}

// Sampled rows [first, first + 128) of the sample as a swizzled tile; ones past its end are zeros.
template <int kDim>
__device__ void gather_queries(const Args& a, char* tile, int sample_first, int length, int first, int head) {
  using Query = Tile<kSize, kDim>;
  constexpr int kChunks = kDim / 8;
  for (int i = threadIdx.x; i < kSize * kChunks; i += kThreads) {
    int row = i / kChunks, chunk = i % kChunks;
    uint4 value{0, 0, 0, 0};
    if ((first + row) * a.stride < length) {
      int token = sample_first + sampled_row(first + row, a.stride, length);
      value = reinterpret_cast<const uint4*>(a.q.row(token, head))[chunk];
    }
    char* to = chunk < 8 * Query::kPanels
                   ? tile + chunk / 8 * Query::kPanelBytes + row * 128 + (chunk % 8 ^ row % 8) * 16
                   : tile + Query::kRestStart + row * 32 + (chunk % 2 ^ row / 4 % 2) * 16;
    *reinterpret_cast<uint4*>(to) = value;
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, 2) mass_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(memory);
  int head = blockIdx.y, first_key_block = static_cast<int>(blockIdx.z) * kBlocks;
  if (static_cast<int>(blockIdx.x) == a.spans) {
    return zero_unused_slots(a.borders, kSize, a.mass, a.slots, a.width, head, blockIdx.z, gridDim.z);
  }
  if (a.borders.samples == 0) return;
  // Spans of so many rows are to this what blocks are to lists.
  int span = kSize * a.stride;
  SlotBlock at(a.borders, blockIdx.x, span);
  int sample_first = a.borders.at[at.sample], length = a.borders.at[at.sample + 1] - sample_first;
  if (at.block * span >= length) return;
  int first_block = at.block * a.stride;
  int blocks = min(a.stride, (length + kSize - 1) / kSize - first_block);
  int slot = first_slot(a.borders, at.sample, kSize) + first_block;
  // Of the key blocks, the first so many are seen at all.
  int present = max(0, min(kBlocks, first_block + blocks - first_key_block));

  if (threadIdx.x == 0) {
    prefetch_map(a.k.wide);
    for (int i = 0; i < kSlots<kDim>; ++i) shared.full[i].init(1);
    fence_barrier_init();
  }
  gather_queries<kDim>(a, shared.queries, sample_first, length, at.block * kSize, head);
  fence_async_proxy();
  __syncthreads();
  auto copy = [&](int i) {
    Barrier& full = shared.full[i % kSlots<kDim>];
    full.arrive_and_expect(Shared<kDim>::Key::kBytes);
    Shared<kDim>::Key::copy(shared.keys[i % kSlots<kDim>], a.k, full, head, sample_first + (first_key_block + i) * kSize);
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < min(present, kSlots<kDim>); ++i) copy(i);
  }

  int warpgroup = uniform(threadIdx.x / kWarpgroup), warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  int group = 8 * warpgroup + 2 * warp;  // of this thread's upper row
  float factor = a.scale * kLog2E;
  int rows[2], own[2];
  float base[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int k = at.block * kSize + (group + i) * 8 + lane / 4;
    bool inside = k * a.stride < length;
    rows[i] = inside ? sampled_row(k, a.stride, length) : 0;
    // An infinite base makes zeros of a row that is not there.
    base[i] = inside ? a.lse[head * a.lse_stride + sample_first + rows[i]] * kLog2E : INFINITY;
    // Rows of a group are of one block, and a warp knows which.
    own[i] = first_block + (group + i) * a.stride / kGroups;
  }
  float s[kSize / 2];
  for (int i = 0; i < present; ++i) {
    int block = first_key_block + i;
    shared.full[i % kSlots<kDim>].wait(i / kSlots<kDim> % 2);
    wgmma::fence(s);
    wgmma::begin();
    using Key = typename Shared<kDim>::Key;
    Key::template product_of_rows<kSize, typename Shared<kDim>::Query>(s, shared_address(shared.queries), 64 * warpgroup,
                                                                       shared_address(shared.keys[i % kSlots<kDim>]));
    wgmma::commit();
    wgmma::wait<0>();
    wgmma::fence(s);
    __syncthreads();
    if (threadIdx.x == 0 && i + kSlots<kDim> < present) copy(i + kSlots<kDim>);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = 0.0f;
      if (block < own[h]) {
        float more = 0.0f;
#pragma unroll
        for (int j = 0; j < kSize / 8; ++j) {
          sum += exp2_fast(fmaf(s[4 * j + 2 * h], factor, -base[h]));
          more += exp2_fast(fmaf(s[4 * j + 2 * h + 1], factor, -base[h]));
        }
        sum += more;
      } else if (block == own[h]) {
        int seen = rows[h] + 1 - block * kSize - 2 * (lane % 4);
#pragma unroll
        for (int j = 0; j < kSize / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float x = exp2_fast(fmaf(s[4 * j + 2 * h + e], factor, -base[h]));
            if (8 * j + e < seen) sum += x;
          }
        }
      }
      sum = warp_combine(sum, [](float x, float y) { return x + y; });
      if (lane == 0) shared.sums[i][group + h] = sum;
    }
  }
  __syncthreads();
  int groups = kGroups / a.stride;  // of a block
  for (int i = threadIdx.x; i < blocks * kBlocks; i += kThreads) {
    int row = i / kBlocks, column = i % kBlocks;
    if (first_key_block + column >= a.width) continue;
    float sum = 0.0f;
    if (column < present) {
      for (int j = 0; j < groups; ++j) sum += shared.sums[column][row * groups + j];
    }
    a.mass[(static_cast<int64_t>(head) * a.slots + slot + row) * a.width + first_key_block + column] = sum;
  }
}

template <int kDim>
void launch(const pnb_attention_mass_params& p) {
  static const char* op = "attention_mass";
  int64_t tokens = p.q.shape[0], samples = p.cu_seqlens.shape[0] - 1;
  int spans = static_cast<int>(unit_slots(tokens, samples, kSize * p.query_stride));
  Args a{make_heads_map(p.k, kSize, op),
         Heads<const __nv_bfloat16>(p.q),
         static_cast<const float*>(p.lse.data),
         p.lse.stride[0],
         Borders(p.cu_seqlens),
         static_cast<float*>(p.mass.data),
         static_cast<int>(p.mass.shape[1]),
         static_cast<int>(p.mass.shape[2]),
         p.query_stride,
         spans,
         p.scale};
  allow_shared_memory(mass_kernel<kDim>, sizeof(Shared<kDim>), op);
  dim3 grid(static_cast<unsigned>(spans + 1), static_cast<unsigned>(p.q.shape[1]),
            static_cast<unsigned>(ceil_div(a.width, kBlocks)));
  mass_kernel<kDim><<<grid, kThreads, sizeof(Shared<kDim>), stream_of(p.stream)>>>(a);
  check_launch(op);
}

// Any dtype, head size, block size and stride: a block of threads takes one block of queries of one head.
struct PlainArgs {
  const void *q, *k;
  int64_t q_token, q_head, k_token, k_head;  // strides
  const float* lse;
  int64_t lse_stride;
  Borders borders;
  float* mass;
  int slots, width, size, stride, dim;
  float scale;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) plain_kernel(PlainArgs a) {
  __shared__ float sums[32];
  int slot = blockIdx.x, head = blockIdx.y;
  float* mass = a.mass + (static_cast<int64_t>(head) * a.slots + slot) * a.width;
  int block = 0, first = 0, length = 0;
  if (a.borders.samples > 0) {
    SlotBlock at(a.borders, slot, a.size);
    first = a.borders.at[at.sample];
    length = a.borders.at[at.sample + 1] - first;
    block = at.block;
  }
  int from = block * a.size, to = min(from + a.size, length);
  for (int j = 0; j < a.width; ++j) {
    float sum = 0.0f;
    int keys = j > block ? 0 : min(a.size, length - j * a.size);
    for (int i = threadIdx.x; from < to && i < (to - from) * keys; i += kThreads) {
      int row = from + i / keys, key = j * a.size + i % keys;
      if (key > row || ((row + 1) % a.stride != 0 && row + 1 != length)) continue;
      const T* q = static_cast<const T*>(a.q) + (first + row) * a.q_token + head * a.q_head;
      const T* k = static_cast<const T*>(a.k) + (first + key) * a.k_token + head * a.k_head;
      float score = 0.0f;
      for (int d = 0; d < a.dim; ++d) score = fmaf(to_float(q[d]), to_float(k[d]), score);
      sum += expf(score * a.scale - a.lse[head * a.lse_stride + first + row]);
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) mass[j] = sum;
  }
}

void launch_plain(const pnb_attention_mass_params& p) {
  PlainArgs a{p.q.data,
              p.k.data,
              p.q.stride[0],
              p.q.stride[1],
              p.k.stride[0],
              p.k.stride[1],
              static_cast<const float*>(p.lse.data),
              p.lse.stride[0],
              Borders(p.cu_seqlens),
              static_cast<float*>(p.mass.data),
              static_cast<int>(p.mass.shape[1]),
              static_cast<int>(p.mass.shape[2]),
              p.size,
              p.query_stride,
              static_cast<int>(p.q.shape[2]),
              p.scale};
  dim3 grid(static_cast<unsigned>(a.slots), static_cast<unsigned>(p.q.shape[1]));
  with_type(p.q.dtype, [&](auto type) { plain_kernel<decltype(type)><<<grid, kThreads, 0, stream_of(p.stream)>>>(a); });
  check_launch("attention_mass");
}

// Whether groups of eight rows are of one block.
bool takes_fast_stride(int stride) { return stride >= 1 && stride <= kGroups && kGroups % stride == 0; }

}  // namespace

}  // namespace attention

void attention_mass(const pnb_attention_mass_params& p) {
  using namespace attention;
  int64_t dim = p.q.shape[2];
  if (element_count(p.mass) == 0) return;
  bool fast = p.q.dtype == PNB_DTYPE_BF16 && p.size == kSize && takes_fast_stride(p.query_stride) && is_mappable(p.q) &&
              is_mappable(p.k) && p.q.shape[0] > 0;
  if (fast && dim == 64) launch<64>(p);
  else if (fast && dim == 80) launch<80>(p);
  else if (fast && dim == 128) launch<128>(p);
  else launch_plain(p);
}

}  // namespace pnb::cuda
