#include "capi/attention_checks.h"
#include "capi/entry.h"

using pnb::Backend;
using pnb::check::Checker;
using pnb::check::Place;

namespace pnb::check {

void query_form(const Checker& check, const pnb_tensor& q) {
  check.tensor(q, "q", 3, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
  check.rows_contiguous(q, "q");
  check.that(q.shape[1] > 0 && q.shape[2] > 0 && q.shape[2] <= 256, "expected heads of size 1 to 256, found %s",
             shape_text(q).c_str());
}

void heads_like(const Checker& check, const pnb_tensor& t, const char* name, const pnb_tensor& q, int64_t tokens) {
  check.tensor(t, name, 3, {q.dtype});
  check.shape(t, name, {tokens, q.shape[1], q.shape[2]});
  check.rows_contiguous(t, name);
}

void borders(const Checker& check, const pnb_tensor& t, const char* name) {
  check.tensor(t, name, 1, {PNB_DTYPE_I32});
  check.contiguous(t, name);
  check.that(t.shape[0] >= 1, "expected %s with samples + 1 entries, found none", name);
}

void max_seqlen(const Checker& check, int64_t longest) {
  check.that(longest >= 0 && longest <= INT32_MAX, "expected max_seqlen of 0 to %d, as borders may be apart, found %lld", INT32_MAX,
             static_cast<long long>(longest));
}

void attention_block_size(const Checker& check, int32_t size) {
  check.that(size == 64 || size == 128, "expected blocks of 64 or 128 rows, found %d", size);
}

namespace {

void by_slot(const Checker& check, const pnb_tensor& t, const char* name, int32_t dtype, int64_t heads, int64_t tokens,
             const pnb_tensor& cu_seqlens, int64_t longest, int32_t size) {
  check.tensor(t, name, 3, {dtype});
  int64_t least = (longest + size - 1) / size;
  check.that(t.shape[2] >= least, "expected %s with room for %lld blocks in dimension 2, found %s", name,
             static_cast<long long>(least), shape_text(t).c_str());
  check.shape(t, name, {heads, tokens / size + cu_seqlens.shape[0] - 1, t.shape[2]});
  check.contiguous(t, name);
}

}  // namespace

void block_matrix(const Checker& check, const pnb_tensor& t, const char* name, int64_t heads, int64_t tokens,
                  const pnb_tensor& cu_seqlens, int64_t longest, int32_t size) {
  by_slot(check, t, name, PNB_DTYPE_F32, heads, tokens, cu_seqlens, longest, size);
}

void attention_lists(const Checker& check, const pnb_attention_blocks& blocks, AttentionLists lists, int64_t heads, int64_t tokens,
                     const pnb_tensor& cu_seqlens, int64_t longest) {
  attention_block_size(check, blocks.size);
  auto indices = [&](const pnb_tensor& t, const char* name) {
    by_slot(check, t, name, PNB_DTYPE_I32, heads, tokens, cu_seqlens, longest, blocks.size);
  };
  indices(blocks.indices, "blocks.indices");
  int64_t slots = blocks.indices.shape[1];
  auto counts = [&](const pnb_tensor& t, const char* name) {
    check.tensor(t, name, 2, {PNB_DTYPE_I32});
    check.shape(t, name, {heads, slots});
    check.contiguous(t, name);
  };
  counts(blocks.counts, "blocks.counts");
  if (lists == kAllLists) {
    indices(blocks.t_indices, "blocks.t_indices");
    check.dim(blocks.t_indices, "blocks.t_indices", 2, blocks.indices.shape[2]);
    counts(blocks.t_counts, "blocks.t_counts");
  }
  check.tensor(blocks.order, "blocks.order", 2, {PNB_DTYPE_I32});
  check.shape(blocks.order, "blocks.order", {2, heads * slots});
  check.contiguous(blocks.order, "blocks.order");
}

}  // namespace pnb::check

namespace {

using namespace pnb::check;

void check_forward(const Checker& check, const pnb_attention_forward_params& p) {
  query_form(check, p.q);
  check.tensor(p.k, "k", 3, {p.q.dtype});
  heads_like(check, p.k, "k", p.q, p.k.shape[0]);
  heads_like(check, p.v, "v", p.q, p.k.shape[0]);
  heads_like(check, p.o, "o", p.q, p.q.shape[0]);
  if (check.optional(p.lse, "lse", 2, {PNB_DTYPE_F32})) {
    check.shape(p.lse, "lse", {p.q.shape[1], p.q.shape[0]});
    check.rows_contiguous(p.lse, "lse");
  }
  borders(check, p.cu_seqlens_q, "cu_seqlens_q");
  borders(check, p.cu_seqlens_k, "cu_seqlens_k");
  check.shape(p.cu_seqlens_k, "cu_seqlens_k", {p.cu_seqlens_q.shape[0]});
  max_seqlen(check, p.max_seqlen);
  if (check.optional(p.blocks.indices, "blocks.indices", 3, {PNB_DTYPE_I32})) {
    check.that(p.k.shape[0] == p.q.shape[0], "expected as many queries as keys with blocks, found %lld and %lld",
               static_cast<long long>(p.q.shape[0]), static_cast<long long>(p.k.shape[0]));
    attention_lists(check, p.blocks, kForwardLists, p.q.shape[1], p.q.shape[0], p.cu_seqlens_q, p.max_seqlen);
  }
}

void check_backward(const Checker& check, const pnb_attention_backward_params& p) {
  query_form(check, p.q);
  int64_t tokens = p.q.shape[0];
  const struct {
    const pnb_tensor& t;
    const char* name;
  } like_q[] = {{p.k, "k"}, {p.v, "v"}, {p.o, "o"}, {p.d_o, "d_o"}, {p.dq, "dq"}, {p.dv, "dv"}};
  for (const auto& operand : like_q) heads_like(check, operand.t, operand.name, p.q, tokens);
  if (check.optional(p.dk, "dk", 3, {p.q.dtype})) heads_like(check, p.dk, "dk", p.q, tokens);
  check.tensor(p.lse, "lse", 2, {PNB_DTYPE_F32});
  check.shape(p.lse, "lse", {p.q.shape[1], tokens});
  check.rows_contiguous(p.lse, "lse");
  borders(check, p.cu_seqlens, "cu_seqlens");
  max_seqlen(check, p.max_seqlen);
  if (check.optional(p.blocks.indices, "blocks.indices", 3, {PNB_DTYPE_I32})) {
    attention_lists(check, p.blocks, kAllLists, p.q.shape[1], tokens, p.cu_seqlens, p.max_seqlen);
  }
}

}  // namespace

extern "C" {

pnb_status pnb_attention_forward(pnb_context* context, const pnb_attention_forward_params* params) {
  return pnb::entry("attention_forward", context, params, [&](Backend& backend) {
    check_forward(Checker("attention_forward"), *params);
    backend.attention_forward(*params);
  });
}

pnb_status pnb_attention_backward(pnb_context* context, const pnb_attention_backward_params* params) {
  return pnb::entry("attention_backward", context, params, [&](Backend& backend) {
    check_backward(Checker("attention_backward"), *params);
    Checker("attention_backward").workspace(params->workspace, backend.attention_backward_workspace(*params));
    backend.attention_backward(*params);
  });
}

pnb_status pnb_attention_backward_workspace(pnb_context* context, const pnb_attention_backward_params* params, uint64_t* bytes) {
  return pnb::query("attention_backward", context, params, bytes, [&](Backend& backend) {
    check_backward(Checker("attention_backward", pnb::check::kShapeOnly), *params);
    return backend.attention_backward_workspace(*params);
  });
}

}  // extern "C"
