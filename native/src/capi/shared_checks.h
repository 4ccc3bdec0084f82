// Checks of operands that several operations take.
#pragma once

#include "capi/check.h"
#include "penumbra/gemm.h"
#include "penumbra/lora.h"
#include "penumbra/sparse.h"

namespace pnb::check {

void dropout(const Checker& check, const pnb_dropout& d);
// A contiguous f32 vector that is there.
void vector_of(const Checker& check, const pnb_tensor& t, const char* name, int64_t size);
// A matrix that is there, with x's dtype or bf16 beside an f32 x.
void matrix_beside(const Checker& check, const pnb_tensor& t, const char* name, const pnb_tensor& x);
// A chain of adapters that project the same x.
void projections(const Checker& check, const pnb_lora_project_params& first);
// A weight that is there, packed where the operation computes with it.
void weight(const Checker& check, Place place, const pnb_weight* weight);
// Whether there are lists; where there are, that they fit a batch of m rows and so many neurons.
bool blocks(const Checker& check, const pnb_block_list& blocks, const char* name, int64_t m, int64_t neurons);
// Indices and counts alone: `lists` of them.
void block_lists(const Checker& check, const pnb_block_list& blocks, const char* name, int64_t lists);
void block_size(const Checker& check, int64_t size, int64_t neurons);
void rows_per_list(const Checker& check, int64_t rows, int64_t m);
// How many groups of so many rows, as lists or pools have, m rows fall into.
int64_t list_count(int64_t m, int64_t rows_per_list);

}  // namespace pnb::check
