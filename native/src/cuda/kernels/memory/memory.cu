#include "cuda/kernels/memory/memory.h"

#include <algorithm>

#include "cuda/kernels/elements.cuh"

namespace pnb::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;  // 2048 threads: what a multiprocessor holds

// A strided view with neighbouring dimensions merged where one continues the other.
struct View {
  int rank;
  int64_t shape[PNB_MAX_RANK];
  int64_t stride[PNB_MAX_RANK];

  __device__ int64_t offset(int64_t index) const {
    int64_t result = 0;
    for (int i = rank - 1; i > 0; --i) {
      result += index % shape[i] * stride[i];
      index /= shape[i];
    }
    return result + index * stride[0];
  }

  bool contiguous() const { return rank == 1 && stride[0] == 1; }
};

// Views of the same shape, merged where all of them allow it, so that the last is the longest row they share.
template <int kCount>
void merge(const pnb_tensor* const (&tensors)[kCount], View (&views)[kCount]) {
  const pnb_tensor& first = *tensors[0];
  int rank = 0;
  for (int i = 0; i < first.rank; ++i) {
    if (first.shape[i] == 1) continue;
    bool continues = rank > 0;
    for (int k = 0; k < kCount && continues; ++k) continues = views[k].stride[rank - 1] == tensors[k]->stride[i] * first.shape[i];
    if (!continues) ++rank;
    for (int k = 0; k < kCount; ++k) {
      views[k].shape[rank - 1] = first.shape[i] * (continues ? views[k].shape[rank - 1] : 1);
      views[k].stride[rank - 1] = tensors[k]->stride[i];
    }
  }
  for (View& view : views) {
    view.rank = std::max(rank, 1);
    if (rank == 0) view.shape[0] = view.stride[0] = 1;
  }
}

int grid(const Device& device, int64_t work) {
  int64_t blocks = std::max<int64_t>(1, ceil_div(work, kThreads));
  return static_cast<int>(std::min<int64_t>(blocks, static_cast<int64_t>(device.multiprocessors) * kBlocksPerMultiprocessor));
}

// Vectors first, then what is left of the row.
template <typename Word>
__global__ void fill_contiguous(Word* d, int64_t count, int64_t vectors, Word value) {
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  Pack<Word, kVector<Word>> pack;
#pragma unroll
  for (Word& word : pack.v) word = value;
  for (int64_t i = thread; i < vectors; i += stride) pack.store(d + i * kVector<Word>);
  for (int64_t i = vectors * kVector<Word> + thread; i < count; i += stride) d[i] = value;
}

template <typename Word>
__global__ void fill_strided(Word* d, View view, int64_t count, Word value) {
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) d[view.offset(i)] = value;
}

template <typename Word>
void fill_words(const Device& device, const pnb_fill_params& p, Word value) {
  int64_t count = element_count(p.d);
  if (count == 0) return;
  View view[1];
  const pnb_tensor* const tensors[1] = {&p.d};
  merge(tensors, view);
  Word* d = static_cast<Word*>(p.d.data);
  cudaStream_t stream = stream_of(p.stream);
  if (view[0].contiguous()) {
    int64_t vectors = aligned(d) ? count / kVector<Word> : 0;
    fill_contiguous<<<grid(device, vectors > 0 ? vectors : count), kThreads, 0, stream>>>(d, count, vectors, value);
  } else {
    fill_strided<<<grid(device, count), kThreads, 0, stream>>>(d, view[0], count, value);
  }
  check_launch("fill");
}

// Eight elements a step: 16 bytes of the narrower types.
constexpr int kConverted = 8;

template <typename S, typename D>
__global__ void convert_contiguous(const S* s, D* d, int64_t count, int64_t vectors) {
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = thread; i < vectors; i += stride) {
    auto from = Pack<S, kConverted>::load(s + i * kConverted);
    Pack<D, kConverted> to;
#pragma unroll
    for (int j = 0; j < kConverted; ++j) to.v[j] = from_float<D>(to_float(from.v[j]));
    to.store(d + i * kConverted);
  }
  for (int64_t i = vectors * kConverted + thread; i < count; i += stride) d[i] = from_float<D>(to_float(s[i]));
}

template <typename S, typename D>
__global__ void convert_strided(const S* s, View s_view, D* d, View d_view, int64_t count) {
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    d[d_view.offset(i)] = from_float<D>(to_float(s[s_view.offset(i)]));
  }
}

template <typename S, typename D>
void convert_elements(const Device& device, const pnb_convert_params& p) {
  int64_t count = element_count(p.s);
  if (count == 0) return;
  View views[2];
  const pnb_tensor* const tensors[2] = {&p.s, &p.d};
  merge(tensors, views);
  const S* s = static_cast<const S*>(p.s.data);
  D* d = static_cast<D*>(p.d.data);
  cudaStream_t stream = stream_of(p.stream);
  if (views[0].contiguous() && views[1].contiguous()) {
    int64_t vectors = aligned(s) && aligned(d) ? count / kConverted : 0;
    convert_contiguous<<<grid(device, vectors > 0 ? vectors : count), kThreads, 0, stream>>>(s, d, count, vectors);
  } else {
    convert_strided<<<grid(device, count), kThreads, 0, stream>>>(s, views[0], d, views[1], count);
  }
  check_launch("convert");
}

template <typename S>
void convert_from(const Device& device, const pnb_convert_params& p) {
  with_type(p.d.dtype, [&](auto d) { convert_elements<S, decltype(d)>(device, p); });
}

}  // namespace

void fill(const Device& device, const pnb_fill_params& p) {
  switch (p.d.dtype) {
    case PNB_DTYPE_F32: fill_words(device, p, p.value); break;
    case PNB_DTYPE_BF16: fill_words(device, p, __float2bfloat16_rn(p.value)); break;
    case PNB_DTYPE_I32: fill_words(device, p, static_cast<int32_t>(p.value)); break;
    case PNB_DTYPE_U8: fill_words(device, p, static_cast<uint8_t>(p.value)); break;
    default: fill_words(device, p, static_cast<uint64_t>(p.value)); break;
  }
}

void convert(const Device& device, const pnb_convert_params& p) {
  switch (p.s.dtype) {
    case PNB_DTYPE_F32: convert_from<float>(device, p); break;
    case PNB_DTYPE_BF16: convert_from<__nv_bfloat16>(device, p); break;
    default: convert_from<__half>(device, p); break;
  }
}

}  // namespace pnb::cuda
