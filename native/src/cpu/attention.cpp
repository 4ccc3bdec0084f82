#include "cpu/attention.h"

#include <omp.h>

#include "core/error.h"
#include "core/tensor.h"
#include "cpu/attention_head.h"
#include "cpu/attention_lists.h"
#include "cpu/isa.h"
#include "cpu/shares.h"

// One task is one head of one sample. No two tasks write the same element, so the order in which threads take tasks does not
// show in the result. A thread's samples are neighbours, whose rows it has in the products before and after, too.

namespace pnb::cpu {

namespace {

constexpr uint64_t kAlignment = 64;

// What buffers are made for: a caller may only know that samples are not longer than some large number.
int64_t longest_of(int64_t max_seqlen, int64_t tokens) { return std::min(max_seqlen, tokens); }

// A thread's share of a buffer.
uint64_t share(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The same for o, d_o and the gradients: capi holds them to the dtype of q.
const HeadKernels& kernels_for(const pnb_tensor& q) {
  return q.dtype == PNB_DTYPE_BF16 && has_avx512_bf16() ? bf16_heads() : f32_heads();
}

// Lists of one head in one sample; none where there are none.
HeadLists lists_of(const pnb_attention_blocks& blocks, const pnb_tensor& indices, const pnb_tensor& counts, int64_t head,
                   const SampleBlocks& sample) {
  if (!present(blocks.indices)) return {};
  int64_t slot = head * indices.shape[1] + sample.first_slot, width = indices.shape[2];
  return {static_cast<const int32_t*>(indices.data) + slot * width, static_cast<const int32_t*>(counts.data) + slot, width,
          blocks.size};
}

int64_t block_rows(const pnb_attention_blocks& blocks) { return present(blocks.indices) ? blocks.size : kTile; }

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
  if (present(p.blocks.indices)) {
    for (int64_t s = 1; s <= samples; ++s) {
      if (cu_q[s] != cu_k[s]) {
        fail(PNB_ERROR_INVALID_ARGUMENT,
             "attention_forward: expected equal borders of queries and keys with blocks, found %d and %d at %lld", cu_q[s], cu_k[s],
             static_cast<long long>(s));
      }
    }
    check_lists("attention_forward", p.blocks, false, cu_q, samples);
  }
  const HeadKernels& kernels = kernels_for(p.q);
  int64_t longest = longest_of(p.max_seqlen, p.k.shape[0]);
  uint64_t bytes = share(kernels.forward_bytes(longest, p.q.shape[2]));
  char* buffers = static_cast<char*>(scratch.bytes(bytes * threads));
  Shares tasks(samples * heads, threads);
#pragma omp parallel num_threads(threads)
  for (int64_t task; (task = tasks.take(omp_get_thread_num())) >= 0;) {
    int64_t sample = task / heads;
    int64_t head = task % heads;
    HeadSizes sizes{cu_q[sample + 1] - cu_q[sample], cu_k[sample + 1] - cu_k[sample], p.q.shape[2]};
    if (sizes.queries == 0) continue;
    float* lse = present(p.lse) ? static_cast<float*>(p.lse.data) + head * p.lse.stride[0] + cu_q[sample] : nullptr;
    ForwardHead operands{Head(p.q, cu_q[sample], head), Head(p.k, cu_k[sample], head), Head(p.v, cu_k[sample], head),
                         Head(p.o, cu_q[sample], head), lse};
    HeadLists lists = lists_of(p.blocks, p.blocks.indices, p.blocks.counts, head, SampleBlocks(cu_q, sample, block_rows(p.blocks)));
    kernels.forward(operands, sizes, lists, p.scale, longest, buffers + omp_get_thread_num() * bytes);
  }
  zero_rows(p.o, cu_q[samples]);
}

uint64_t attention_backward_workspace(const pnb_attention_backward_params& p, int threads) {
  return share(kernels_for(p.q).backward_bytes(longest_of(p.max_seqlen, p.q.shape[0]), p.q.shape[2])) * threads;
}

void attention_backward(const pnb_attention_backward_params& p, int threads) {
  int64_t heads = p.q.shape[1];
  int64_t samples = p.cu_seqlens.shape[0] - 1;
  const int32_t* cu = borders("attention_backward", "cu_seqlens", p.cu_seqlens, p.q.shape[0], p.max_seqlen);
  const HeadKernels& kernels = kernels_for(p.q);
  bool by_queries = kernels.backward_by_queries;
  if (present(p.blocks.indices)) check_lists("attention_backward", p.blocks, !by_queries, cu, samples);
  int64_t longest = longest_of(p.max_seqlen, p.q.shape[0]);
  uint64_t bytes = share(kernels.backward_bytes(longest, p.q.shape[2]));
  Shares tasks(samples * heads, threads);
#pragma omp parallel num_threads(threads)
  for (int64_t task; (task = tasks.take(omp_get_thread_num())) >= 0;) {
    int64_t sample = task / heads;
    int64_t head = task % heads;
    int64_t first = cu[sample];
    int64_t length = cu[sample + 1] - first;
    if (length == 0) continue;
    BackwardHead operands{Head(p.q, first, head),   Head(p.k, first, head),  Head(p.v, first, head),  Head(p.o, first, head),
                          Head(p.d_o, first, head), Head(p.dq, first, head), Head::optional(p.dk, first, head), Head(p.dv, first, head),
                          static_cast<const float*>(p.lse.data) + head * p.lse.stride[0] + first};
    HeadLists lists = lists_of(p.blocks, by_queries ? p.blocks.indices : p.blocks.t_indices,
                               by_queries ? p.blocks.counts : p.blocks.t_counts, head,
                               SampleBlocks(cu, sample, block_rows(p.blocks)));
    kernels.backward(operands, HeadSizes{length, length, p.q.shape[2]}, lists, p.scale, longest,
                     static_cast<char*>(p.workspace.data) + omp_get_thread_num() * bytes);
  }
  zero_rows(p.dq, cu[samples]);
  if (present(p.dk)) zero_rows(p.dk, cu[samples]);
  zero_rows(p.dv, cu[samples]);
}

void attention_mass(const pnb_attention_mass_params& p, int threads, Scratch& scratch) {
  int64_t heads = p.q.shape[1];
  int64_t samples = p.cu_seqlens.shape[0] - 1;
  const int32_t* cu = borders("attention_mass", "cu_seqlens", p.cu_seqlens, p.q.shape[0], p.max_seqlen);
  float* mass = static_cast<float*>(p.mass.data);
  std::fill_n(mass, element_count(p.mass), 0.0f);
  const HeadKernels& kernels = kernels_for(p.q);
  int64_t longest = longest_of(p.max_seqlen, p.q.shape[0]);
  uint64_t bytes = share(kernels.mass_bytes(longest, p.q.shape[2]));
  char* buffers = static_cast<char*>(scratch.bytes(bytes * threads));
  Shares tasks(samples * heads, threads);
#pragma omp parallel num_threads(threads)
  for (int64_t task; (task = tasks.take(omp_get_thread_num())) >= 0;) {
    int64_t sample = task / heads;
    int64_t head = task % heads;
    int64_t first = cu[sample];
    int64_t length = cu[sample + 1] - first;
    if (length == 0) continue;
    int64_t slot = head * p.mass.shape[1] + SampleBlocks(cu, sample, p.size).first_slot;
    MassHead operands{Head(p.q, first, head),
                      Head(p.k, first, head),
                      static_cast<const float*>(p.lse.data) + head * p.lse.stride[0] + first,
                      mass + slot * p.mass.shape[2],
                      p.mass.shape[2],
                      p.size,
                      p.query_stride};
    kernels.mass(operands, HeadSizes{length, length, p.q.shape[2]}, p.scale, longest, buffers + omp_get_thread_num() * bytes);
  }
}

}  // namespace pnb::cpu
