/* The language-model head and its cross-entropy in one operation: the logits of all rows never exist at once. */
#ifndef PENUMBRA_LOSS_H
#define PENUMBRA_LOSS_H

#include "penumbra/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For i < n: z = x[rows[i]] * W^T;  loss += logsumexp(z) - z[targets[i]];
   dx[rows[i]] = grad_scale * (softmax(z) - onehot(targets[i])) * W;  every other row of dx is written zero.
   A target outside the vocabulary is an error on the CPU, and gives a loss of NaN on a GPU. In bf16 a GPU takes no
   logit for more than 133 above the target's: a row's loss is exact up to there.
   The mean's gradient is grad_scale = 1 / (supervised tokens of the whole optimizer step). */
typedef struct pnb_linear_cross_entropy_params {
  uint32_t struct_size;
  int32_t reserved;
  void* stream;
  pnb_tensor x;             /* [m, h], rows contiguous; dtype of the weight */
  const pnb_weight* weight; /* W [vocab, h]; packed for FORWARD, and for BACKWARD when dx is present */
  pnb_tensor rows;          /* i32 [n]: the supervised rows, ascending, each once; -1 after the last: skipped with its target */
  pnb_tensor targets;       /* i32 [n]: the token that each should predict */
  pnb_tensor grad_scale;    /* f32 [1] on the device; needed with dx */
  pnb_tensor loss;          /* f32 [1]: += the sum over rows, not the mean */
  pnb_tensor dx;            /* [m, h], dtype of x: =; absent: the loss only */
  pnb_workspace workspace;
} pnb_linear_cross_entropy_params;

PNB_API pnb_status pnb_linear_cross_entropy(pnb_context* context, const pnb_linear_cross_entropy_params* params);
PNB_API pnb_status pnb_linear_cross_entropy_workspace(pnb_context* context, const pnb_linear_cross_entropy_params* params,
                                                      uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif
