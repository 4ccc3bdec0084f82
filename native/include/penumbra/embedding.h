/* Token embedding and learned positions. */
#ifndef PENUMBRA_EMBEDDING_H
#define PENUMBRA_EMBEDDING_H

#include "penumbra/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* d[t] = table[tokens[t]] + position_table[positions[t] + position_offset] + residual[t]; each term may be absent.
   An index outside its table is an error on the CPU, found before anything is written; on a GPU its row becomes NaN. */
typedef struct pnb_embedding_params {
  uint32_t struct_size;
  int32_t position_offset;   /* OPT: 2 */
  void* stream;
  pnb_tensor tokens;         /* i32 [m], with table */
  pnb_tensor table;          /* [vocab, h]; f32, bf16 or f16 */
  pnb_tensor positions;      /* i32 [m], with position_table */
  pnb_tensor position_table; /* [positions, h]; f32, bf16 or f16 */
  pnb_tensor residual;       /* [m, h], dtype of d */
  pnb_tensor d;              /* [m, h], rows contiguous; f32 or bf16: = */
} pnb_embedding_params;

PNB_API pnb_status pnb_embedding(pnb_context* context, const pnb_embedding_params* params);

#ifdef __cplusplus
}
#endif

#endif
