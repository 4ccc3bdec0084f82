/* Sparsity of an MLP's neurons: lists of active blocks, and what they are chosen by. */
#ifndef PENUMBRA_SPARSE_H
#define PENUMBRA_SPARSE_H

#include "penumbra/blocks.h"
#include "penumbra/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How much each block of neurons, and each neuron, is used by rows [0, valid_rows):
     value(i, j) = norms[j] * max(0, x[i, j]), or norms[j] where bit j of row i of relu_mask is set
     block_mass[l, b] = the sum of value over list l's rows and block b's neurons
     neuron_mass[j] += the sum of value over all rows
     neuron_fired[j] += the number of rows in which x is above 0 or the bit is set
   With norms[j] = ||fc2[:, j]|| the first is the first-order size of what dropping a block changes in an MLP's output, with
   ||fc1[j, :]|| * ||fc2[:, j]|| and the bits of what it changes in its input's gradient. Sums have a fixed order. */
typedef struct pnb_activation_mass_params {
  uint32_t struct_size;
  int32_t block_size; /* 32, 64 or 128; n is a multiple of it */
  void* stream;
  pnb_tensor x;            /* [m, n], rows contiguous; f32 or bf16; absent with relu_mask */
  pnb_tensor relu_mask;    /* u8 [m, n / 8], as pnb_gemm writes it; absent with x */
  pnb_tensor norms;        /* f32 [n]; absent: all 1 */
  pnb_tensor valid_rows;   /* i32 [1] on the device, or absent: all m */
  int64_t rows_per_list;   /* as in pnb_block_list; lists = ceil(m / rows_per_list) */
  pnb_tensor block_mass;   /* f32 [lists, n / block_size]: =, or absent */
  pnb_tensor neuron_mass;  /* f32 [n]: +=, or absent */
  pnb_tensor neuron_fired; /* f32 [n]: +=, or absent */
  pnb_workspace workspace;
} pnb_activation_mass_params;

PNB_API pnb_status pnb_activation_mass(pnb_context* context, const pnb_activation_mass_params* params);
PNB_API pnb_status pnb_activation_mass_workspace(pnb_context* context, const pnb_activation_mass_params* params, uint64_t* bytes);

/* What a low-rank predictor expects of each block, from rows pooled along the sequence:
     unit(p, j) = norms[j] * max(0, sum over r of z[p, r] * b[j, r] + bias[j]),  z = pooled * a^T
     scores[l, k] = the sum of unit over the pooled rows of list l and units [k * units_per_score, (k + 1) * units_per_score)
   A unit is a block (units_per_score 1), or a neuron whose fc1 row is approximated (units_per_score = block size).
   a, b, bias and norms may be read while operations that were enqueued before still run: they are written by copies, which are
   waited for, or by what the caller has waited for. */
typedef struct pnb_predict_mass_params {
  uint32_t struct_size;
  int32_t units_per_score;
  void* stream;
  pnb_tensor pooled;       /* f32 [p, h], rows contiguous */
  pnb_tensor a;            /* f32 [r, h], contiguous; r at most 128 */
  pnb_tensor b;            /* f32 [units, r], contiguous */
  pnb_tensor bias;         /* f32 [units], or absent: 0 */
  pnb_tensor norms;        /* f32 [units], or absent: 1 */
  int64_t pooled_per_list; /* pooled row i belongs to list i / pooled_per_list */
  pnb_tensor scores;       /* f32 [lists, units / units_per_score]: = */
  pnb_workspace workspace;
} pnb_predict_mass_params;

PNB_API pnb_status pnb_predict_mass(pnb_context* context, const pnb_predict_mass_params* params);
PNB_API pnb_status pnb_predict_mass_workspace(pnb_context* context, const pnb_predict_mass_params* params, uint64_t* bytes);

/* The seed paper's rule on neurons' masses: scores[b] = the sum of block b's masses, or 0 where at least `share` of its
   neurons lie below `threshold` times the block's own largest. */
typedef struct pnb_relative_mass_params {
  uint32_t struct_size;
  int32_t block_size;
  float threshold; /* Long Exposure: 0.05 */
  float share;     /* Long Exposure: 0.9 */
  void* stream;
  pnb_tensor neuron_mass; /* f32 [n], contiguous, from pnb_activation_mass */
  pnb_tensor scores;      /* f32 [1, n / block_size]: = */
} pnb_relative_mass_params;

PNB_API pnb_status pnb_relative_mass(pnb_context* context, const pnb_relative_mass_params* params);

/* What a selection tells of itself: summary[PNB_SUMMARY_*]. */
enum {
  PNB_SUMMARY_KEPT = 0,    /* blocks chosen, as a part of all, over all lists */
  PNB_SUMMARY_COVERED = 1, /* their part of the scores' sum; 1 where that is 0 */
  PNB_SUMMARY_CUT = 2,     /* part of the lists that wanted more blocks than fit */
  PNB_SUMMARY_SIZE = 3
};

/* Chooses each list's blocks: by falling score (of equal ones the lower index first), as many as it takes until their sum
   reaches coverage times the sum of all, at most the lists' capacity. Scores that are 0, negative or not numbers count as 0
   and are never chosen. Lists come out ascending. */
typedef struct pnb_select_blocks_params {
  uint32_t struct_size;
  float coverage; /* above 0, at most 1: every block that has a score, while there is room */
  void* stream;
  pnb_tensor scores;     /* f32 [lists, blocks], rows contiguous; at most 4096 blocks */
  pnb_block_list blocks; /* indices [lists, capacity] and counts [lists]: = ; size and rows_per_list are not read */
  pnb_tensor summary;    /* f32 [PNB_SUMMARY_SIZE]: =, or absent */
} pnb_select_blocks_params;

PNB_API pnb_status pnb_select_blocks(pnb_context* context, const pnb_select_blocks_params* params);

#ifdef __cplusplus
}
#endif

#endif
