#include "cpu/attention.h"

#include <omp.h>

#include "core/error.h"
#include "core/tensor.h"
#include "cpu/attention_head.h"
#include "cpu/isa.h"

// One task is one head of one sample. No two tasks write the same element, so the order in which threads take tasks does not
// show in the result.

namespace pnb::cpu {

namespace {

constexpr uint64_t kAlignment = 64;

// A thread's share of a buffer.
uint64_t share(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The same for o, d_o and the gradients: capi holds them to the dtype of q.
const HeadKernels& kernels_for(const pnb_tensor& q) {
  return q.dtype == PNB_DTYPE_BF16 && has_avx512_bf16() ? bf16_heads() : f32_heads();
}

// Borders are data, so they are looked at here: ascending, from 0, within the tokens.
const int32_t* borders(const char* op, const char* name, const pnb_tensor& t, int64_t tokens, int64_t longest) {
  const int32_t* cu = static_cast<const int32_t*>(t.data);
  for (int64_t s = 0; s < t.shape[0]; ++s) {
    int64_t before = s == 0 ? 0 : cu[s - 1];
    if (cu[s] < before || cu[s] > tokens || (s == 0 && cu[0] != 0) || cu[s] - before > longest) {
      fail(PNB_ERROR_INVALID_ARGUMENT,
           "%s: expected %s ascending from 0 to at most %lld in steps of at most %lld, found %d after %lld at %lld", op, name,
           static_cast<long long>(tokens), static_cast<long long>(longest), cu[s], static_cast<long long>(before),
           static_cast<long long>(s));
    }
  }
  return cu;
}

void zero_rows(const pnb_tensor& t, int64_t from) {
  size_t bytes = t.shape[2] * dtype_size(t.dtype);
  for (int64_t row = from; row < t.shape[0]; ++row) {
    for (int64_t head = 0; head < t.shape[1]; ++head) std::memset(Head(t, row, head).data, 0, bytes);
  }
}

}  // namespace

void attention_forward(const pnb_attention_forward_params& p, int threads, Scratch& scratch) {
  int64_t heads = p.q.shape[1];
  int64_t samples = p.cu_seqlens_q.shape[0] - 1;
  const int32_t* cu_q = borders("attention_forward", "cu_seqlens_q", p.cu_seqlens_q, p.q.shape[0], p.max_seqlen);
  const int32_t* cu_k = borders("attention_forward", "cu_seqlens_k", p.cu_seqlens_k, p.k.shape[0], p.max_seqlen);
  for (int64_t s = 0; s < samples; ++s) {
    if (cu_q[s + 1] - cu_q[s] > cu_k[s + 1] - cu_k[s]) {
      fail(PNB_ERROR_INVALID_ARGUMENT, "attention_forward: expected no more queries than keys, found %d and %d in sample %lld",
           cu_q[s + 1] - cu_q[s], cu_k[s + 1] - cu_k[s], static_cast<long long>(s));
    }
  }
  const HeadKernels& kernels = kernels_for(p.q);
  uint64_t bytes = share(kernels.forward_bytes(p.max_seqlen, p.q.shape[2]));
  char* buffers = static_cast<char*>(scratch.bytes(bytes * threads));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < samples * heads; ++task) {
    int64_t sample = task / heads;
    int64_t head = task % heads;
    HeadSizes sizes{cu_q[sample + 1] - cu_q[sample], cu_k[sample + 1] - cu_k[sample], p.q.shape[2]};
    if (sizes.queries == 0) continue;
    float* lse = present(p.lse) ? static_cast<float*>(p.lse.data) + head * p.lse.stride[0] + cu_q[sample] : nullptr;
    ForwardHead operands{Head(p.q, cu_q[sample], head), Head(p.k, cu_k[sample], head), Head(p.v, cu_k[sample], head),
                         Head(p.o, cu_q[sample], head), lse};
    kernels.forward(operands, sizes, p.scale, p.max_seqlen, buffers + omp_get_thread_num() * bytes);
  }
  zero_rows(p.o, cu_q[samples]);
}

uint64_t attention_backward_workspace(const pnb_attention_backward_params& p, int threads) {
  return share(kernels_for(p.q).backward_bytes(p.max_seqlen, p.q.shape[2])) * threads;
}

void attention_backward(const pnb_attention_backward_params& p, int threads) {
  int64_t heads = p.q.shape[1];
  int64_t samples = p.cu_seqlens.shape[0] - 1;
  const int32_t* cu = borders("attention_backward", "cu_seqlens", p.cu_seqlens, p.q.shape[0], p.max_seqlen);
  const HeadKernels& kernels = kernels_for(p.q);
  uint64_t bytes = share(kernels.backward_bytes(p.max_seqlen, p.q.shape[2]));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < samples * heads; ++task) {
    int64_t first = cu[task / heads];
    int64_t head = task % heads;
    int64_t length = cu[task / heads + 1] - first;
    if (length == 0) continue;
    BackwardHead operands{Head(p.q, first, head),   Head(p.k, first, head),  Head(p.v, first, head),  Head(p.o, first, head),
                          Head(p.d_o, first, head), Head(p.dq, first, head), Head(p.dk, first, head), Head(p.dv, first, head),
                          static_cast<const float*>(p.lse.data) + head * p.lse.stride[0] + first};
    kernels.backward(operands, HeadSizes{length, length, p.q.shape[2]}, p.scale, p.max_seqlen,
                     static_cast<char*>(p.workspace.data) + omp_get_thread_num() * bytes);
  }
  zero_rows(p.dq, cu[samples]);
  zero_rows(p.dk, cu[samples]);
  zero_rows(p.dv, cu[samples]);
}

}  // namespace pnb::cpu
