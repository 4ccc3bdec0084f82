/* Filling, copying and checking memory. */
#ifndef PENUMBRA_MEMORY_H
#define PENUMBRA_MEMORY_H

#include "penumbra/context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pnb_fill_params {
  uint32_t struct_size;
  float value;
  void* stream;
  pnb_tensor d; /* any dtype, any strides: d = value */
} pnb_fill_params;

PNB_API pnb_status pnb_fill(pnb_context* context, const pnb_fill_params* params);

typedef struct pnb_convert_params {
  uint32_t struct_size;
  int32_t reserved;
  void* stream;
  pnb_tensor s; /* f32, bf16 or f16, any strides */
  pnb_tensor d; /* f32 or bf16, shape of s, any strides: d = s, rounded to nearest even */
} pnb_convert_params;

/* Copies with conversion, within the context's device. */
PNB_API pnb_status pnb_convert(pnb_context* context, const pnb_convert_params* params);

/* Finds the first element of a contiguous host tensor (f32, bf16, f16) that is not finite:
   its flat index, or -1. Waits for the answer. */
PNB_API pnb_status pnb_find_not_finite(pnb_context* context, const pnb_tensor* tensor, int64_t* index);

#ifdef __cplusplus
}
#endif

#endif
