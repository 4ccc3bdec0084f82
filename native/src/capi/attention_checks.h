// Checks of operands that the operations of attention share.
#pragma once

#include "capi/check.h"
#include "penumbra/attention.h"

namespace pnb::check {

// q: [tokens, heads, head_dim].
void query_form(const Checker& check, const pnb_tensor& q);
// Another tensor of `tokens` rows of q's heads.
void heads_like(const Checker& check, const pnb_tensor& t, const char* name, const pnb_tensor& q, int64_t tokens);
// samples + 1 borders.
void borders(const Checker& check, const pnb_tensor& t, const char* name);
void max_seqlen(const Checker& check, int64_t longest);

void attention_block_size(const Checker& check, int32_t size);
// f32 [heads, slots, width], whatever stands in it for each query block and key block.
void block_matrix(const Checker& check, const pnb_tensor& t, const char* name, int64_t heads, int64_t tokens,
                  const pnb_tensor& cu_seqlens, int64_t longest, int32_t size);

enum AttentionLists { kForwardLists, kAllLists };
// Lists that are there, for a batch.
void attention_lists(const Checker& check, const pnb_attention_blocks& blocks, AttentionLists lists, int64_t heads, int64_t tokens,
                     const pnb_tensor& cu_seqlens, int64_t longest);

}  // namespace pnb::check
