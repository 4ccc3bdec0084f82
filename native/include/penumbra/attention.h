/* Causal attention over packed rows: samples lie one after another, and none sees another. */
#ifndef PENUMBRA_ATTENTION_H
#define PENUMBRA_ATTENTION_H

#include "penumbra/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* o = softmax(scale * q k^T, causal) v within each sample.
   Sample s holds query rows [cu_seqlens_q[s], cu_seqlens_q[s + 1]) and key rows [cu_seqlens_k[s], cu_seqlens_k[s + 1]);
   its last query sees all its keys, the one before all but the last, and so on (bottom-right aligned, as a key-value
   cache needs). Rows of no sample are written zero. The cost follows the sum of the samples' squared lengths. */
typedef struct pnb_attention_forward_params {
  uint32_t struct_size;
  float scale; /* usually 1 / sqrt(head_dim) */
  void* stream;
  pnb_tensor q;            /* [tokens_q, heads, head_dim], head_dim contiguous; f32 or bf16 */
  pnb_tensor k;            /* [tokens_k, heads, head_dim] */
  pnb_tensor v;            /* [tokens_k, heads, head_dim] */
  pnb_tensor o;            /* [tokens_q, heads, head_dim]: = */
  pnb_tensor lse;          /* f32 [heads, tokens_q]: log of the sum of exp(score); absent when no backward follows */
  pnb_tensor cu_seqlens_q; /* i32 [samples + 1] on the device, ascending from 0; equal neighbours are empty samples */
  pnb_tensor cu_seqlens_k; /* i32 [samples + 1] */
  int64_t max_seqlen;      /* no sample is longer than this */
} pnb_attention_forward_params;

PNB_API pnb_status pnb_attention_forward(pnb_context* context, const pnb_attention_forward_params* params);

/* Gradients of the above, for cu_seqlens_q equal to cu_seqlens_k. */
typedef struct pnb_attention_backward_params {
  uint32_t struct_size;
  float scale;
  void* stream;
  pnb_tensor q, k, v, o; /* as in the forward pass */
  pnb_tensor lse;        /* f32 [heads, tokens] */
  pnb_tensor d_o;        /* [tokens, heads, head_dim] */
  pnb_tensor dq;         /* [tokens, heads, head_dim]: =, zero in rows of no sample */
  pnb_tensor dk;
  pnb_tensor dv;
  pnb_tensor cu_seqlens; /* i32 [samples + 1] */
  int64_t max_seqlen;
  pnb_workspace workspace;
} pnb_attention_backward_params;

PNB_API pnb_status pnb_attention_backward(pnb_context* context, const pnb_attention_backward_params* params);
PNB_API pnb_status pnb_attention_backward_workspace(pnb_context* context, const pnb_attention_backward_params* params, uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif
