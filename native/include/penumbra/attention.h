/* Causal attention over packed rows: samples lie one after another, and none sees another. */
#ifndef PENUMBRA_ATTENTION_H
#define PENUMBRA_ATTENTION_H

#include "penumbra/attention_blocks.h"
#include "penumbra/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* o = softmax(scale * q k^T, causal) v within each sample.
   Sample s holds query rows [cu_seqlens_q[s], cu_seqlens_q[s + 1]) and key rows [cu_seqlens_k[s], cu_seqlens_k[s + 1]);
   its last query sees all its keys, the one before all but the last, and so on (bottom-right aligned, as a key-value
   cache needs). Rows of no sample are written zero. The cost follows the sum of the samples' squared lengths.

   With blocks, whose borders are equal for queries and keys, a query sees the keys of its list's blocks alone, up to itself:
   the other scores are minus infinity, and the cost follows the number of listed blocks. A query that sees no key gets o = 0
   and lse = 0. */
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
  int64_t max_seqlen;      /* no sample is longer than this; at most 2^31 - 1 */
  pnb_attention_blocks blocks; /* without indices: all keys that a query may see; its transposed lists are not read */
} pnb_attention_forward_params;

PNB_API pnb_status pnb_attention_forward(pnb_context* context, const pnb_attention_forward_params* params);

/* Gradients of the above, for cu_seqlens_q equal to cu_seqlens_k. With blocks only the listed blocks' scores have gradients;
   lse and o may come from a forward pass without lists, or with longer ones: then this is the exact gradient's part that
   flows through the listed blocks, and a query's score gradients no longer add up to zero. To train, take both from a forward pass
   over the same lists. */
typedef struct pnb_attention_backward_params {
  uint32_t struct_size;
  float scale;
  void* stream;
  pnb_tensor q, k, v, o; /* as in the forward pass */
  pnb_tensor lse;        /* f32 [heads, tokens] */
  pnb_tensor d_o;        /* [tokens, heads, head_dim] */
  pnb_tensor dq;         /* [tokens, heads, head_dim]: =, zero in rows of no sample */
  pnb_tensor dk;         /* as dq, or absent: not computed where that saves time */
  pnb_tensor dv;
  pnb_tensor cu_seqlens; /* i32 [samples + 1] */
  int64_t max_seqlen;
  pnb_attention_blocks blocks; /* without indices: all */
  pnb_workspace workspace;
} pnb_attention_backward_params;

PNB_API pnb_status pnb_attention_backward(pnb_context* context, const pnb_attention_backward_params* params);
PNB_API pnb_status pnb_attention_backward_workspace(pnb_context* context, const pnb_attention_backward_params* params,
                                                    uint64_t* bytes);

/* How much each block of keys weighs with each block of queries: mass[h, slot of query block i, j] is the sum over block i's
   sampled queries and block j's keys of exp(scale * q k - lse), 0 for j > i and in slots of no block. Sampled are queries r,
   counted in their sample, with (r + 1) mod query_stride = 0, and the sample's last: with 1, which is all, a full block's
   masses add up to size. */
typedef struct pnb_attention_mass_params {
  uint32_t struct_size;
  float scale;
  void* stream;
  pnb_tensor q;          /* [tokens, heads, head_dim], head_dim contiguous; f32 or bf16 */
  pnb_tensor k;          /* [tokens, heads, head_dim] */
  pnb_tensor lse;        /* f32 [heads, tokens], of a forward pass without lists */
  pnb_tensor cu_seqlens; /* i32 [samples + 1] */
  int64_t max_seqlen;
  int32_t size;         /* rows of a block, as in pnb_attention_blocks */
  int32_t query_stride; /* 1 or more */
  pnb_tensor mass;      /* f32 [heads, slots, width], contiguous: = */
} pnb_attention_mass_params;

PNB_API pnb_status pnb_attention_mass(pnb_context* context, const pnb_attention_mass_params* params);

/* What a low-rank predictor expects of the above, from rows pooled along the batch. Pooled row g belongs to the sample that
   holds row g * pool_rows + pool_rows / 2, its middle, and to that row's block; a middle of no sample belongs to none.
     zq = pooled a[0, h]^T + bias[0, h], zk = pooled a[1, h]^T + bias[1, h]
     e(g, g') = zq[g] zk[g'] + distance[h, block of g - block of g'], for g' <= g of one sample
     mass[h, slot of i, j] = pool_rows * the sum over g of block i and g' of block j of softmax(e(g, .))(g')
   A block without pooled rows, which is shorter than pool_rows, takes the nearest before it in its sample as a query, and
   has no mass as a key. Slots of no block, and blocks without any pooled row before them, are 0. */
typedef struct pnb_predict_attention_params {
  uint32_t struct_size;
  int32_t pool_rows; /* divides size */
  void* stream;
  pnb_tensor pooled;     /* f32 [ceil(tokens / pool_rows), hidden], rows contiguous */
  pnb_tensor a;          /* bf16 [2, heads, r, hidden], contiguous; r a multiple of 8, at most 64 */
  pnb_tensor bias;       /* f32 [2, heads, r], contiguous */
  pnb_tensor distance;   /* f32 [heads, width], contiguous */
  pnb_tensor cu_seqlens; /* i32 [samples + 1] */
  int64_t tokens;
  int64_t max_seqlen;
  int32_t size;
  int32_t reserved;
  pnb_tensor mass; /* f32 [heads, slots, width], contiguous: = */
  pnb_workspace workspace;
} pnb_predict_attention_params;

PNB_API pnb_status pnb_predict_attention(pnb_context* context, const pnb_predict_attention_params* params);
PNB_API pnb_status pnb_predict_attention_workspace(pnb_context* context, const pnb_predict_attention_params* params,
                                                   uint64_t* bytes);

/* Chooses blocks for each head of each sample. Of its n (n + 1) / 2 blocks on and below the diagonal, the diagonal ones and
   those of key block 0 are always kept; then by falling mass (of equal ones the lower query block, then the lower key block
   first) as many as it takes until the sum of what is kept reaches coverage times the sum of all, at most
   max(floor(budget * n (n + 1) / 2), those always kept). Masses that are 0, negative or not numbers count as 0 and are not
   chosen by them. Masses come from `mass`, or, the same for every sample, from `table`. */
typedef struct pnb_select_attention_params {
  uint32_t struct_size;
  float coverage; /* above 0, at most 1: every block that has a mass, while there is room */
  void* stream;
  pnb_tensor mass;       /* f32 [heads, slots, width], contiguous; absent with table */
  pnb_tensor table;      /* f32 [heads, width, width], contiguous: of query block i, key block j of any sample; or absent */
  pnb_tensor budgets;    /* f32 [heads], above 0, at most 1; absent: all 1 */
  pnb_tensor cu_seqlens; /* i32 [samples + 1] */
  int64_t tokens;
  int64_t max_seqlen;
  pnb_attention_blocks blocks; /* all its lists: = */
  pnb_tensor summary;          /* f32 [PNB_SUMMARY_SIZE], of blocks on and below the diagonal; lists: a head of a sample: =,
                                  or absent */
  pnb_workspace workspace;
} pnb_select_attention_params;

PNB_API pnb_status pnb_select_attention(pnb_context* context, const pnb_select_attention_params* params);
PNB_API pnb_status pnb_select_attention_workspace(pnb_context* context, const pnb_select_attention_params* params,
                                                  uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif
