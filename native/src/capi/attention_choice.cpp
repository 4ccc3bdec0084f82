#include "capi/attention_checks.h"
#include "capi/entry.h"
#include "penumbra/sparse.h"

using pnb::Backend;
using pnb::check::Checker;

namespace {

using namespace pnb::check;

// A pooled row's query and key fit a multiprocessor's registers, and its matrix units take eight dimensions at a time.
constexpr int64_t kMostRank = 64;
constexpr int64_t kRankStep = 8;

void contiguous(const Checker& check, const pnb_tensor& t, const char* name, int32_t dtype, std::initializer_list<int64_t> shape) {
  check.tensor(t, name, static_cast<int>(shape.size()), {dtype});
  check.shape(t, name, shape);
  check.contiguous(t, name);
}

void token_count(const Checker& check, int64_t tokens) {
  check.that(tokens >= 0 && tokens <= INT32_MAX, "expected tokens of 0 to %d, as borders may be, found %lld", INT32_MAX,
             static_cast<long long>(tokens));
}

void check_mass(const Checker& check, const pnb_attention_mass_params& p) {
  query_form(check, p.q);
  int64_t tokens = p.q.shape[0], heads = p.q.shape[1];
  heads_like(check, p.k, "k", p.q, tokens);
  check.tensor(p.lse, "lse", 2, {PNB_DTYPE_F32});
  check.shape(p.lse, "lse", {heads, tokens});
  check.rows_contiguous(p.lse, "lse");
  borders(check, p.cu_seqlens, "cu_seqlens");
  max_seqlen(check, p.max_seqlen);
  attention_block_size(check, p.size);
  check.that(p.query_stride >= 1, "expected query_stride of 1 or more, found %d", p.query_stride);
  block_matrix(check, p.mass, "mass", heads, tokens, p.cu_seqlens, p.max_seqlen, p.size);
}

void check_prediction(const Checker& check, const pnb_predict_attention_params& p) {
  token_count(check, p.tokens);
  max_seqlen(check, p.max_seqlen);
  attention_block_size(check, p.size);
  check.that(p.pool_rows >= 1 && p.size % p.pool_rows == 0, "expected pool_rows to divide blocks of %d rows, found %d", p.size,
             p.pool_rows);
  check.tensor(p.pooled, "pooled", 2, {PNB_DTYPE_F32});
  check.dim(p.pooled, "pooled", 0, (p.tokens + p.pool_rows - 1) / p.pool_rows);
  check.rows_contiguous(p.pooled, "pooled");
  check.tensor(p.a, "a", 4, {PNB_DTYPE_BF16});
  int64_t heads = p.a.shape[1], r = p.a.shape[2];
  check.that(r >= kRankStep && r <= kMostRank && r % kRankStep == 0,
             "expected a rank that is a multiple of %lld, at most %lld, found %lld", static_cast<long long>(kRankStep),
             static_cast<long long>(kMostRank), static_cast<long long>(r));
  contiguous(check, p.a, "a", PNB_DTYPE_BF16, {2, heads, r, p.pooled.shape[1]});
  contiguous(check, p.bias, "bias", PNB_DTYPE_F32, {2, heads, r});
  borders(check, p.cu_seqlens, "cu_seqlens");
  block_matrix(check, p.mass, "mass", heads, p.tokens, p.cu_seqlens, p.max_seqlen, p.size);
  contiguous(check, p.distance, "distance", PNB_DTYPE_F32, {heads, p.mass.shape[2]});
}

void check_selection(const Checker& check, const pnb_select_attention_params& p) {
  token_count(check, p.tokens);
  max_seqlen(check, p.max_seqlen);
  check.that(p.coverage > 0 && p.coverage <= 1, "expected a coverage above 0, at most 1, found %g",
             static_cast<double>(p.coverage));
  borders(check, p.cu_seqlens, "cu_seqlens");
  check.tensor(p.blocks.indices, "blocks.indices", 3, {PNB_DTYPE_I32});
  int64_t heads = p.blocks.indices.shape[0], width = p.blocks.indices.shape[2];
  attention_lists(check, p.blocks, kAllLists, heads, p.tokens, p.cu_seqlens, p.max_seqlen);
  bool by_sample = check.optional(p.mass, "mass", 3, {PNB_DTYPE_F32});
  bool by_table = check.optional(p.table, "table", 3, {PNB_DTYPE_F32});
  check.that(by_sample != by_table, "expected either mass or table, found %s", by_sample ? "both" : "none");
  if (by_sample) contiguous(check, p.mass, "mass", PNB_DTYPE_F32, {heads, p.blocks.indices.shape[1], width});
  if (by_table) contiguous(check, p.table, "table", PNB_DTYPE_F32, {heads, width, width});
  if (check.optional(p.budgets, "budgets", 1, {PNB_DTYPE_F32})) contiguous(check, p.budgets, "budgets", PNB_DTYPE_F32, {heads});
  if (check.optional(p.summary, "summary", 1, {PNB_DTYPE_F32})) {
    contiguous(check, p.summary, "summary", PNB_DTYPE_F32, {PNB_SUMMARY_SIZE});
  }
}

}  // namespace

extern "C" {

pnb_status pnb_attention_mass(pnb_context* context, const pnb_attention_mass_params* params) {
  return pnb::entry("attention_mass", context, params, [&](Backend& backend) {
    check_mass(Checker("attention_mass"), *params);
    backend.attention_mass(*params);
  });
}

pnb_status pnb_predict_attention(pnb_context* context, const pnb_predict_attention_params* params) {
  return pnb::entry("predict_attention", context, params, [&](Backend& backend) {
    check_prediction(Checker("predict_attention"), *params);
    Checker("predict_attention").workspace(params->workspace, backend.predict_attention_workspace(*params));
    backend.predict_attention(*params);
  });
}

pnb_status pnb_predict_attention_workspace(pnb_context* context, const pnb_predict_attention_params* params, uint64_t* bytes) {
  return pnb::query("predict_attention", context, params, bytes, [&](Backend& backend) {
    check_prediction(Checker("predict_attention", pnb::check::kShapeOnly), *params);
    return backend.predict_attention_workspace(*params);
  });
}

pnb_status pnb_select_attention(pnb_context* context, const pnb_select_attention_params* params) {
  return pnb::entry("select_attention", context, params, [&](Backend& backend) {
    check_selection(Checker("select_attention"), *params);
    Checker("select_attention").workspace(params->workspace, backend.select_attention_workspace(*params));
    backend.select_attention(*params);
  });
}

pnb_status pnb_select_attention_workspace(pnb_context* context, const pnb_select_attention_params* params, uint64_t* bytes) {
  return pnb::query("select_attention", context, params, bytes, [&](Backend& backend) {
    check_selection(Checker("select_attention", pnb::check::kShapeOnly), *params);
    return backend.select_attention_workspace(*params);
  });
}

}  // extern "C"
