/* Which blocks of a frozen weight's neurons a product computes with. */
#ifndef PENUMBRA_BLOCKS_H
#define PENUMBRA_BLOCKS_H

#include "penumbra/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Lists of active blocks, on the device: kernels read them, the host does not. A block is `size` neighbouring neurons;
   neurons are the rows of a weight W [neurons, h] (an MLP's fc1, and its fc2 transposed). Rows [l * rows_per_list,
   (l + 1) * rows_per_list) of a batch use list l: its blocks are indices[l, 0 .. counts[l]), ascending, each once; what
   follows in that row is not read. Count 0 is a list like any other.

   A matrix over a list's neurons is compact: column c * size + j holds neuron indices[l, c] * size + j. It has room for
   capacity * size columns; those from counts[l] * size on are neither read nor written. */
typedef struct pnb_block_list {
  pnb_tensor indices; /* i32 [lists, capacity], rows contiguous; absent: no list, all neurons in their own places */
  pnb_tensor counts;  /* i32 [lists], contiguous */
  int32_t size;       /* 32, 64 or 128; the neurons are a multiple of it */
  int32_t reserved;
  int64_t rows_per_list; /* a multiple of 128, or at least as many as there are rows */
} pnb_block_list;

#ifdef __cplusplus
}
#endif

#endif
