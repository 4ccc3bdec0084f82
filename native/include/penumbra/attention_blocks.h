/* Which blocks of keys each block of queries attends to, head by head. */
#ifndef PENUMBRA_ATTENTION_BLOCKS_H
#define PENUMBRA_ATTENTION_BLOCKS_H

#include "penumbra/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Lists of blocks, on the device: kernels read them, the host does not. A block is `size` neighbouring rows of one sample,
   counted from the sample's first row; a sample's last block may be shorter. Block j of sample s has the slot
   cu_seqlens[s] / size + s + j, which no other block has; slots = tokens / size + samples, and some of them hold no block.

   Head h's query block in a slot attends to key blocks indices[h, slot, 0 .. counts[h, slot]) of its sample: ascending, each
   once, none after its own block, of which a query sees what lies before it and itself; every other block is seen whole. What
   follows in that row is not read. The transposed lists say the same the other way: the query blocks that attend to a slot's
   key block, ascending. width >= ceil(max_seqlen / size).

   order[0] holds every slot of every head that has a block once, as h * slots + slot, then -1; order[1] the same of the
   transposed lists. By falling count kernels begin with what takes longest. Of more lists than the device has multiprocessors,
   and at most 16384, an order may instead hold shares of at most 1024 entries, one for each multiprocessor, one after another:
   2^30 is added to each entry then, and to entry i < multiprocessors 2^14 * (where share i begins). pnb_select_attention makes
   shares of long lists on GPUs, where loads would be uneven, else orders by falling count (equal ones in a fixed order). Results
   depend on none of it. */
typedef struct pnb_attention_blocks {
  pnb_tensor indices;   /* i32 [heads, slots, width], contiguous; absent: no lists */
  pnb_tensor counts;    /* i32 [heads, slots], contiguous; 0 in slots of no block */
  pnb_tensor t_indices; /* i32 [heads, slots, width], contiguous */
  pnb_tensor t_counts;  /* i32 [heads, slots], contiguous */
  pnb_tensor order;     /* i32 [2, heads * slots], contiguous */
  int32_t size;         /* 64 or 128 */
  int32_t reserved;
} pnb_attention_blocks;

#ifdef __cplusplus
}
#endif

#endif
