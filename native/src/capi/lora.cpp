#include "capi/check.h"
#include "capi/entry.h"
#include "capi/shared_checks.h"

using pnb::Backend;
using pnb::check::Checker;
using pnb::check::Place;

namespace {

void check_gradients(const pnb_lora_gradients_params& p, Place place) {
  Checker check("lora_gradients", place);
  check.tensor(p.x, "x", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
  check.tensor(p.dy, "dy", 2, {p.x.dtype});
  check.tensor(p.a, "a", 2, {PNB_DTYPE_F32});
  int64_t m = p.x.shape[0];
  int64_t in = p.x.shape[1];
  int64_t out = p.dy.shape[1];
  int64_t r = p.a.shape[0];
  check.dim(p.dy, "dy", 0, m);
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
}

}  // namespace

extern "C" {

pnb_status pnb_lora_project(pnb_context* context, const pnb_lora_project_params* params) {
  return pnb::entry("lora_project", context, params, [&](Backend& backend) {
    Checker check("lora_project");
    check.tensor(params->x, "x", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
    check.rows_contiguous(params->x, "x");
    check.tensor(params->a, "a", 2, {PNB_DTYPE_F32});
    check.dim(params->a, "a", 1, params->x.shape[1]);
    check.tensor(params->h, "h", 2, {PNB_DTYPE_F32});
    check.shape(params->h, "h", {params->x.shape[0], params->a.shape[0]});
    pnb::check::dropout(check, params->dropout);
    backend.lora_project(*params);
  });
}

pnb_status pnb_lora_gradients(pnb_context* context, const pnb_lora_gradients_params* params) {
  return pnb::entry("lora_gradients", context, params, [&](Backend& backend) {
    check_gradients(*params, pnb::check::kNeeded);
    Checker("lora_gradients").workspace(params->workspace, backend.lora_gradients_workspace(*params));
    backend.lora_gradients(*params);
  });
}

pnb_status pnb_lora_gradients_workspace(pnb_context* context, const pnb_lora_gradients_params* params, uint64_t* bytes) {
  return pnb::query("lora_gradients", context, params, bytes, [&](Backend& backend) {
    check_gradients(*params, pnb::check::kShapeOnly);
    return backend.lora_gradients_workspace(*params);
  });
}

}  // extern "C"
