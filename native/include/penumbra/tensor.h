/* Tensors, as descriptions of memory that somebody else owns. */
#ifndef PENUMBRA_TENSOR_H
#define PENUMBRA_TENSOR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PNB_MAX_RANK 4

/* Element types. */
enum {
  PNB_DTYPE_F32 = 1,
  PNB_DTYPE_BF16 = 2,
  PNB_DTYPE_F16 = 3, /* read from checkpoints; never computed in */
  PNB_DTYPE_I32 = 4,
  PNB_DTYPE_U8 = 5,
  PNB_DTYPE_U64 = 6
};

/* A strided view. data == NULL says "absent" wherever an operand is optional.
   Strides count elements and are not negative; a transpose is a view with two strides exchanged. */
typedef struct pnb_tensor {
  void* data;
  int32_t dtype; /* PNB_DTYPE_* */
  int32_t rank;  /* 1 .. PNB_MAX_RANK */
  int64_t shape[PNB_MAX_RANK];
  int64_t stride[PNB_MAX_RANK];
} pnb_tensor;

/* Scratch memory of one call, on the context's device, aligned to 256 bytes. Calls on one stream may share it. What a query
   answers is enough for the same call with fewer rows, tokens or samples, too. */
typedef struct pnb_workspace {
  void* data;
  uint64_t bytes;
} pnb_workspace;

#ifdef __cplusplus
}
#endif

#endif
