#include "capi/check.h"
#include "capi/entry.h"
#include "capi/shared_checks.h"

using pnb::Backend;
using pnb::check::Checker;
using pnb::check::Place;

namespace {

// The width that a matrix of so many columns stands for: `full` where it is compact.
int64_t width(const Checker& check, const pnb_tensor& compact, const pnb_block_list& blocks, const char* name, int64_t full) {
  int64_t columns = compact.shape[1];
  if (!pnb::check::blocks(check, blocks, name, compact.shape[0], full)) return columns;
  int64_t room = blocks.indices.shape[1] * blocks.size;
  check.that(columns == room, "expected %lld compact columns for %s, found %lld", static_cast<long long>(room), name,
             static_cast<long long>(columns));
  return full;
}

void check_projection(const Checker& check, const pnb_lora_project_params& p) {
  check.tensor(p.x, "x", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
  check.rows_contiguous(p.x, "x");
  check.tensor(p.a, "a", 2, {PNB_DTYPE_F32});
  check.dim(p.a, "a", 1, width(check, p.x, p.x_blocks, "x_blocks", p.a.shape[1]));
  check.tensor(p.h, "h", 2, {PNB_DTYPE_F32});
  check.shape(p.h, "h", {p.x.shape[0], p.a.shape[0]});
  pnb::check::dropout(check, p.dropout);
}

void check_gradients(const Checker& check, const pnb_lora_gradients_params& p) {
  check.tensor(p.x, "x", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
  pnb::check::matrix_beside(check, p.dy, "dy", p.x);
  check.tensor(p.a, "a", 2, {PNB_DTYPE_F32});
  check.tensor(p.b, "b", 2, {PNB_DTYPE_F32});
  int64_t m = p.x.shape[0];
  check.dim(p.dy, "dy", 0, m);
  int64_t in = width(check, p.x, p.x_blocks, "x_blocks", p.a.shape[1]);
  int64_t out = width(check, p.dy, p.dy_blocks, "dy_blocks", p.b.shape[0]);
  int64_t r = p.a.shape[0];
  check.dim(p.a, "a", 1, in);
  check.rows_contiguous(p.x, "x");
  check.rows_contiguous(p.dy, "dy");
  const struct {
    const pnb_tensor& t;
    const char* name;
    int64_t rows, columns;
  } f32_matrices[] = {{p.h, "h", m, r}, {p.b, "b", out, r}, {p.dh, "dh", m, r}, {p.da, "da", r, in}, {p.db, "db", out, r}};
  for (const auto& matrix : f32_matrices) {
    check.tensor(matrix.t, matrix.name, 2, {PNB_DTYPE_F32});
    check.shape(matrix.t, matrix.name, {matrix.rows, matrix.columns});
  }
  pnb::check::dropout(check, p.dropout);
  if (check.optional(p.norm.mean, "norm.mean", 1, {PNB_DTYPE_F32})) {
    pnb::check::vector_of(check, p.norm.mean, "norm.mean", m);
    pnb::check::vector_of(check, p.norm.rstd, "norm.rstd", m);
    pnb::check::vector_of(check, p.norm.gamma, "norm.gamma", in);
    pnb::check::vector_of(check, p.norm.beta, "norm.beta", in);
    check.that(!check.optional(p.x_blocks.indices, "x_blocks", 2, {PNB_DTYPE_I32}),
               "expected a normed x without blocks, found some");
  }
}

// Every adapter of a chain, each over the first one's x.
template <typename Params, typename Check>
void check_chain(const Checker& check, const Params& first, Check&& one) {
  for (const Params* p = &first; p != nullptr; p = p->next) {
    pnb::check_params(check.op(), p);
    one(check, *p);
    check.that(p->x.data == first.x.data && p->x.stride[0] == first.x.stride[0] && p->x.dtype == first.x.dtype,
               "expected the next adapter to read the same x, found another");
    check.shape(p->x, "the next adapter's x", {first.x.shape[0], first.x.shape[1]});
    const pnb_block_list &lists = p->x_blocks, &same = first.x_blocks;
    bool listed = pnb::present(same.indices);
    check.that(lists.indices.data == same.indices.data &&
                   (!listed || (lists.indices.stride[0] == same.indices.stride[0] && lists.counts.data == same.counts.data &&
                                lists.size == same.size && lists.rows_per_list == same.rows_per_list)),
               "expected the next adapter to read x by the same lists, found others");
  }
}

void check_all_gradients(const Checker& check, const pnb_lora_gradients_params& first) {
  check_chain(check, first, check_gradients);
  for (const auto* p = first.next; p != nullptr; p = p->next) {
    check.that(p->scaling == first.scaling, "expected the next adapter to have the same scaling, found another");
    check.that(p->norm.mean.data == first.norm.mean.data && p->norm.rstd.data == first.norm.rstd.data &&
                   p->norm.gamma.data == first.norm.gamma.data && p->norm.beta.data == first.norm.beta.data,
               "expected the next adapter to have the same norm, found another");
  }
}

}  // namespace

void pnb::check::projections(const Checker& check, const pnb_lora_project_params& first) {
  check_chain(check, first, check_projection);
}

extern "C" {

pnb_status pnb_lora_project(pnb_context* context, const pnb_lora_project_params* params) {
  return pnb::entry("lora_project", context, params, [&](Backend& backend) {
    pnb::check::projections(Checker("lora_project"), *params);
    backend.lora_project(*params);
  });
}

pnb_status pnb_lora_gradients(pnb_context* context, const pnb_lora_gradients_params* params) {
  return pnb::entry("lora_gradients", context, params, [&](Backend& backend) {
    check_all_gradients(Checker("lora_gradients"), *params);
    Checker("lora_gradients").workspace(params->workspace, backend.lora_gradients_workspace(*params));
    backend.lora_gradients(*params);
  });
}

pnb_status pnb_lora_gradients_workspace(pnb_context* context, const pnb_lora_gradients_params* params, uint64_t* bytes) {
  return pnb::query("lora_gradients", context, params, bytes, [&](Backend& backend) {
    check_all_gradients(Checker("lora_gradients", pnb::check::kShapeOnly), *params);
    return backend.lora_gradients_workspace(*params);
  });
}

}  // extern "C"
