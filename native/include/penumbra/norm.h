/* Layer normalisation over the last dimension. */
#ifndef PENUMBRA_NORM_H
#define PENUMBRA_NORM_H

#include "penumbra/context.h"

#ifdef __cplusplus
extern "C" {
#endif

struct pnb_lora_project_params;

/* What a forward pass leaves to those that need its output again: y = (x - mean) * rstd * gamma + beta. */
typedef struct pnb_layer_norm {
  pnb_tensor mean;  /* f32 [m] */
  pnb_tensor rstd;  /* f32 [m] */
  pnb_tensor gamma; /* f32 [h] */
  pnb_tensor beta;  /* f32 [h] */
} pnb_layer_norm;

/* y = (x - mean) * rstd * gamma + beta, rstd = 1 / sqrt(var + epsilon), var the biased variance. */
typedef struct pnb_layer_norm_forward_params {
  uint32_t struct_size;
  float epsilon;
  void* stream;
  pnb_tensor x;     /* [m, h], rows contiguous; f32 or bf16 */
  pnb_tensor gamma; /* f32 [h] */
  pnb_tensor beta;  /* f32 [h] */
  pnb_tensor y;     /* [m, h], dtype of x, or on the CPU bf16 of an f32 x: =; may be x itself */
  pnb_tensor mean;  /* f32 [m]: =, or absent together with rstd */
  pnb_tensor rstd;  /* f32 [m]: = */
  pnb_tensor pooled;     /* f32 [ceil(m / pool_rows), h]: = the mean of y over each pool_rows rows before it is rounded;
                            absent: none */
  pnb_tensor valid_rows; /* i32 [1] on the device: rows from it on are no part of a mean, and a mean of none is 0; absent: m */
  int64_t pool_rows;     /* read with pooled */
  const struct pnb_lora_project_params* project; /* adapters of y, each with y as its x: pnb_lora_project in the same pass;
                                                    NULL: none */
} pnb_layer_norm_forward_params;

PNB_API pnb_status pnb_layer_norm_forward(pnb_context* context, const pnb_layer_norm_forward_params* params);

/* dx = residual + d(layer norm)/dx * dy. gamma and beta are frozen and get no gradient. Gradients (dy, residual and dx) have one
   dtype, that of x, or on the CPU bf16 beside an f32 x. */
typedef struct pnb_layer_norm_backward_params {
  uint32_t struct_size;
  int32_t reserved;
  void* stream;
  pnb_tensor dy;       /* [m, h] */
  pnb_tensor x;        /* [m, h], the forward pass's input */
  pnb_tensor mean;     /* f32 [m] */
  pnb_tensor rstd;     /* f32 [m] */
  pnb_tensor gamma;    /* f32 [h] */
  pnb_tensor residual; /* [m, h], or absent */
  pnb_tensor dx;       /* [m, h]: =; may be dy or residual itself */
} pnb_layer_norm_backward_params;

PNB_API pnb_status pnb_layer_norm_backward(pnb_context* context, const pnb_layer_norm_backward_params* params);

#ifdef __cplusplus
}
#endif

#endif
