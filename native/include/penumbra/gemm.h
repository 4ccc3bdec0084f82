/* Matrix products: packed frozen weights, low-rank terms, fused epilogues. */
#ifndef PENUMBRA_GEMM_H
#define PENUMBRA_GEMM_H

#include "penumbra/blocks.h"
#include "penumbra/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A frozen weight W [out, in], packed once in the layout that the backend's kernels read. */
typedef struct pnb_weight pnb_weight;

/* The products a weight is packed for; a bit set. */
enum {
  PNB_WEIGHT_FORWARD = 1, /* x[m, in] * W^T -> [m, out] */
  PNB_WEIGHT_BACKWARD = 2 /* dy[m, out] * W -> [m, in] */
};

typedef struct pnb_weight_params {
  uint32_t struct_size;
  int32_t dtype;     /* what products are computed in: PNB_DTYPE_F32 or PNB_DTYPE_BF16 */
  int32_t uses;      /* PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD */
  int32_t part_count;
  const pnb_tensor* parts; /* host tensors [out_i, in], f32, bf16 or f16, stacked along out: W = [parts[0]; parts[1]; ...] */
  void* storage;           /* device memory for the packed weight; the caller keeps it alive as long as the weight. NULL
                              describes a weight without packing one: workspace queries take it, operations refuse it */
  uint64_t storage_bytes;
  void* stream;
} pnb_weight_params;

/* Bytes of storage that pnb_weight_create needs. Reads dtype, uses and the parts' shapes only. */
PNB_API pnb_status pnb_weight_storage(pnb_context* context, const pnb_weight_params* params, uint64_t* bytes);

/* Packs. The parts may be unmapped when this returns. Without storage only the parts' shapes are read. */
PNB_API pnb_status pnb_weight_create(pnb_context* context, const pnb_weight_params* params, pnb_weight** weight);

/* NULL is allowed. The storage stays the caller's. */
PNB_API void pnb_weight_destroy(pnb_weight* weight);

/* Dropout that can be drawn again: element e of a stream is dropped when word (e mod 4) of
   Philox4x32-10(counter = {e / 4 (64 bits, low word first), offset (64 bits, low word first)},
                 key = seed xor (stream * 0x9E3779B97F4A7C15))
   as an unsigned number is below round(p * 2^32); what stays is divided by (1 - p). */
typedef struct pnb_dropout {
  float p;         /* 0: no dropout, and the rest is not read */
  uint32_t stream; /* tells one use from another */
  pnb_tensor state; /* u64[2] on the device: seed, offset; read when the operation runs */
} pnb_dropout;

/* scale * dropout(h * b^T), added to columns [column, column + b.shape[0]) of a product. */
typedef struct pnb_low_rank {
  pnb_tensor h; /* f32 [m, r] */
  pnb_tensor b; /* f32 [n_t, r], any strides */
  int64_t column;
  float scale;
  int32_t reserved;
  pnb_dropout dropout; /* elements counted row-major over [m, n_t] */
} pnb_low_rank;

/* What happens to a product before the residual is added. */
enum {
  PNB_EPILOGUE_NONE = 0,
  PNB_EPILOGUE_RELU = 1,  /* max(0, v); writes relu_mask when it is present */
  PNB_EPILOGUE_DRELU = 2  /* v where relu_mask is set, else 0 */
};

#define PNB_MAX_LOW_RANK 4

/* d = epilogue(a * B + sum of low-rank terms + bias) + residual, accumulated in f32, rounded once when d is bf16.

   With blocks, of a weight's rows (its neurons) only the listed ones are used:
     FORWARD  (SDD) d = a * W[listed]^T is compact: [m, capacity * size], and its columns past the list are not written.
              bias and the low-rank terms' columns stay where they are without a list: [neurons] and so on. relu_mask's bits do
              too where it is [m, neurons / 8]; where it is [m, capacity * size / 8] and that is less, they lie as d's columns
              do. Only the listed blocks' bits are read or written. There is no residual.
     BACKWARD (DSD) a is compact: [m, capacity * size]; d = a * W[listed], as if the other neurons' columns were 0. */
typedef struct pnb_gemm_params {
  uint32_t struct_size;
  int32_t epilogue; /* PNB_EPILOGUE_* */
  void* stream;
  pnb_tensor a;             /* [m, k], any strides; f32 or bf16 */
  pnb_tensor b;             /* B = b [k, n], any strides, dtype of a; absent when weight is given */
  const pnb_weight* weight; /* B = W^T or W; NULL when b is given */
  int32_t weight_use;       /* PNB_WEIGHT_FORWARD or PNB_WEIGHT_BACKWARD */
  int32_t low_rank_count;   /* 0 .. PNB_MAX_LOW_RANK */
  const pnb_low_rank* low_rank;
  pnb_tensor bias;      /* f32 [n], or absent */
  pnb_tensor residual;  /* [m, n], dtype of d, or absent; may be d itself: d += */
  pnb_tensor relu_mask; /* u8 [m, (n + 7) / 8]: bit (j mod 8) of byte j / 8 says that element j is above 0; or absent. Of
                           FORWARD with blocks [m, neurons / 8] or [m, capacity * size / 8] */
  pnb_tensor d;         /* [m, n], rows contiguous; f32, or the dtype of a */
  pnb_block_list blocks; /* of weight's rows; without indices: all */
  pnb_workspace workspace;
} pnb_gemm_params;

PNB_API pnb_status pnb_gemm(pnb_context* context, const pnb_gemm_params* params);

/* Bytes of workspace for these shapes; pointers are not read. */
PNB_API pnb_status pnb_gemm_workspace(pnb_context* context, const pnb_gemm_params* params, uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif
