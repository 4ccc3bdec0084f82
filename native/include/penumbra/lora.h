/* Low-rank adaptation: y = x W^T + scaling * (dropout(x) A^T) B^T.
   The second product is a low-rank term of pnb_gemm; here are the streaming passes around it. */
#ifndef PENUMBRA_LORA_H
#define PENUMBRA_LORA_H

#include "penumbra/gemm.h"
#include "penumbra/norm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* h[m, r] = dropout(x)[m, in] * a[r, in]^T */
typedef struct pnb_lora_project_params {
  uint32_t struct_size;
  int32_t reserved;
  void* stream;
  pnb_tensor x; /* [m, in], rows contiguous; f32 or bf16 */
  pnb_tensor a; /* f32 [r, in], any strides */
  pnb_tensor h; /* f32 [m, r]: = */
  pnb_dropout dropout; /* elements counted row-major over x, as it is without a list */
  pnb_block_list x_blocks; /* x is compact, [m, capacity * size], and a [r, in] is not; without indices: neither is */
  const struct pnb_lora_project_params* next; /* another adapter of the same x, computed in the same pass; NULL: none */
} pnb_lora_project_params;

PNB_API pnb_status pnb_lora_project(pnb_context* context, const pnb_lora_project_params* params);

/* From dy: dh = scaling * dy * B;  dB += scaling * dy^T * h;  dA += dh^T * dropout(x), or dA += dh^T * dropout(norm(x)).
   What x's gradient gains, dropout(dh * A), is a low-rank term of the product that makes dx:
   {h = dh, b = A^T, scale = 1, dropout as here}. */
typedef struct pnb_lora_gradients_params {
  uint32_t struct_size;
  float scaling;
  void* stream;
  pnb_tensor dy; /* [m, out], rows contiguous (a column range of a wider tensor is fine); dtype of x, or on the CPU bf16 beside an
                    f32 x */
  pnb_tensor x;  /* [m, in], rows contiguous; f32 or bf16 */
  pnb_tensor h;  /* f32 [m, r], from pnb_lora_project */
  pnb_tensor a;  /* f32 [r, in] */
  pnb_tensor b;  /* f32 [out, r] */
  pnb_tensor dh; /* f32 [m, r]: = */
  pnb_tensor da; /* f32 [r, in]: += */
  pnb_tensor db; /* f32 [out, r]: += */
  pnb_dropout dropout; /* as in the forward pass */
  pnb_layer_norm norm; /* over x, which has no blocks then; without a mean: x itself is the adapters' input */
  pnb_block_list x_blocks;  /* x is compact, a and da are not; without indices: none is */
  pnb_block_list dy_blocks; /* dy is compact, b and db are not; without indices: none is */
  const struct pnb_lora_gradients_params* next; /* another adapter of the same x, norm and scaling, computed in the same passes;
                                                   its own workspace is not read; NULL: none */
  pnb_workspace workspace;
} pnb_lora_gradients_params;

PNB_API pnb_status pnb_lora_gradients(pnb_context* context, const pnb_lora_gradients_params* params);
PNB_API pnb_status pnb_lora_gradients_workspace(pnb_context* context, const pnb_lora_gradients_params* params, uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif
