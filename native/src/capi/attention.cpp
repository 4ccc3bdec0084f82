#include "capi/check.h"
#include "capi/entry.h"

using pnb::Backend;
using pnb::check::Checker;
using pnb::check::Place;

namespace {

void heads(const Checker& check, const pnb_tensor& t, const char* name, const pnb_tensor& like, int64_t tokens) {
  check.tensor(t, name, 3, {like.dtype});
  check.shape(t, name, {tokens, like.shape[1], like.shape[2]});
  check.rows_contiguous(t, name);
}

void query_form(const Checker& check, const pnb_tensor& q) {
  check.tensor(q, "q", 3, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
  check.rows_contiguous(q, "q");
  check.that(q.shape[1] > 0 && q.shape[2] > 0 && q.shape[2] <= 256, "expected heads of size 1 to 256, found %s",
             pnb::shape_text(q).c_str());
}

void borders(const Checker& check, const pnb_tensor& t, const char* name) {
  check.tensor(t, name, 1, {PNB_DTYPE_I32});
  check.contiguous(t, name);
  check.that(t.shape[0] >= 1, "expected %s with samples + 1 entries, found none", name);
}

void check_backward(const pnb_attention_backward_params& p, Place place) {
  Checker check("attention_backward", place);
  query_form(check, p.q);
  int64_t tokens = p.q.shape[0];
  const struct {
    const pnb_tensor& t;
    const char* name;
  } like_q[] = {{p.k, "k"}, {p.v, "v"}, {p.o, "o"}, {p.d_o, "d_o"}, {p.dq, "dq"}, {p.dk, "dk"}, {p.dv, "dv"}};
  for (const auto& operand : like_q) heads(check, operand.t, operand.name, p.q, tokens);
  check.tensor(p.lse, "lse", 2, {PNB_DTYPE_F32});
  check.shape(p.lse, "lse", {p.q.shape[1], tokens});
  check.rows_contiguous(p.lse, "lse");
  borders(check, p.cu_seqlens, "cu_seqlens");
  check.that(p.max_seqlen >= 0, "expected max_seqlen of 0 or more, found %lld", static_cast<long long>(p.max_seqlen));
}

}  // namespace

extern "C" {

pnb_status pnb_attention_forward(pnb_context* context, const pnb_attention_forward_params* params) {
  return pnb::entry("attention_forward", context, params, [&](Backend& backend) {
    Checker check("attention_forward");
    const pnb_attention_forward_params& p = *params;
    query_form(check, p.q);
    check.tensor(p.k, "k", 3, {p.q.dtype});
    heads(check, p.k, "k", p.q, p.k.shape[0]);
    heads(check, p.v, "v", p.q, p.k.shape[0]);
    heads(check, p.o, "o", p.q, p.q.shape[0]);
    if (check.optional(p.lse, "lse", 2, {PNB_DTYPE_F32})) {
      check.shape(p.lse, "lse", {p.q.shape[1], p.q.shape[0]});
      check.rows_contiguous(p.lse, "lse");
    }
    borders(check, p.cu_seqlens_q, "cu_seqlens_q");
    borders(check, p.cu_seqlens_k, "cu_seqlens_k");
    check.shape(p.cu_seqlens_k, "cu_seqlens_k", {p.cu_seqlens_q.shape[0]});
    check.that(p.max_seqlen >= 0, "expected max_seqlen of 0 or more, found %lld", static_cast<long long>(p.max_seqlen));
    backend.attention_forward(p);
  });
}

pnb_status pnb_attention_backward(pnb_context* context, const pnb_attention_backward_params* params) {
  return pnb::entry("attention_backward", context, params, [&](Backend& backend) {
    check_backward(*params, pnb::check::kNeeded);
    Checker("attention_backward").workspace(params->workspace, backend.attention_backward_workspace(*params));
    backend.attention_backward(*params);
  });
}

pnb_status pnb_attention_backward_workspace(pnb_context* context, const pnb_attention_backward_params* params, uint64_t* bytes) {
  return pnb::query("attention_backward", context, params, bytes, [&](Backend& backend) {
    check_backward(*params, pnb::check::kShapeOnly);
    return backend.attention_backward_workspace(*params);
  });
}

}  // extern "C"
