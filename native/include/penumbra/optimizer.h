/* AdamW over all adapters at once. */
#ifndef PENUMBRA_OPTIMIZER_H
#define PENUMBRA_OPTIMIZER_H

#include "penumbra/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Decoupled weight decay, as torch.optim.AdamW:
     grad_norm = ||grad||_2;  g = grad * min(1, max_norm / (grad_norm + 1e-6))   (max_norm 0: g = grad)
     param -= lr * weight_decay * param
     m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
     param -= lr / bias_correction1 * m / (sqrt(v / bias_correction2) + epsilon)
   When grad_norm is not finite, grad_norm is written and nothing else is. grad is not changed. */
typedef struct pnb_adamw_params {
  uint32_t struct_size;
  float beta1;
  float beta2;
  float epsilon;
  float weight_decay;
  float max_norm;
  void* stream;
  pnb_tensor param;     /* f32 [n] */
  pnb_tensor grad;      /* f32 [n] */
  pnb_tensor m;         /* f32 [n] */
  pnb_tensor v;         /* f32 [n] */
  pnb_tensor schedule;  /* f32 [3] on the device: lr, bias_correction1 = 1 - beta1^t, bias_correction2 = 1 - beta2^t */
  pnb_tensor grad_norm; /* f32 [1]: =, the norm before clipping */
  pnb_workspace workspace;
} pnb_adamw_params;

PNB_API pnb_status pnb_adamw(pnb_context* context, const pnb_adamw_params* params);
PNB_API pnb_status pnb_adamw_workspace(pnb_context* context, const pnb_adamw_params* params, uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif
