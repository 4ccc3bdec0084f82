#include "capi/check.h"
#include "capi/entry.h"
#include "capi/shared_checks.h"

using pnb::Backend;
using pnb::check::Checker;
using pnb::check::Place;

namespace {

void check_loss(const pnb_linear_cross_entropy_params& p, Place place) {
  Checker check("linear_cross_entropy", place);
  pnb::check::weight(check, place, p.weight);
  check.tensor(p.x, "x", 2, {p.weight->dtype});
  check.rows_contiguous(p.x, "x");
  check.dim(p.x, "x", 1, p.weight->in);
  check.that((p.weight->uses & PNB_WEIGHT_FORWARD) != 0, "expected a weight packed for FORWARD");
  check.tensor(p.rows, "rows", 1, {PNB_DTYPE_I32});
  check.contiguous(p.rows, "rows");
  check.tensor(p.targets, "targets", 1, {PNB_DTYPE_I32});
  check.shape(p.targets, "targets", {p.rows.shape[0]});
  check.contiguous(p.targets, "targets");
  check.tensor(p.loss, "loss", 1, {PNB_DTYPE_F32});
  check.shape(p.loss, "loss", {1});
  if (check.optional(p.dx, "dx", 2, {p.x.dtype})) {
    check.shape(p.dx, "dx", {p.x.shape[0], p.x.shape[1]});
    check.rows_contiguous(p.dx, "dx");
    check.that((p.weight->uses & PNB_WEIGHT_BACKWARD) != 0, "expected a weight packed for BACKWARD: dx is wanted");
    check.tensor(p.grad_scale, "grad_scale", 1, {PNB_DTYPE_F32});
    check.shape(p.grad_scale, "grad_scale", {1});
  }
}

}  // namespace

extern "C" {

pnb_status pnb_linear_cross_entropy(pnb_context* context, const pnb_linear_cross_entropy_params* params) {
  return pnb::entry("linear_cross_entropy", context, params, [&](Backend& backend) {
    check_loss(*params, pnb::check::kNeeded);
    Checker("linear_cross_entropy").workspace(params->workspace, backend.linear_cross_entropy_workspace(*params));
    backend.linear_cross_entropy(*params);
  });
}

pnb_status pnb_linear_cross_entropy_workspace(pnb_context* context, const pnb_linear_cross_entropy_params* params,
                                              uint64_t* bytes) {
  return pnb::query("linear_cross_entropy", context, params, bytes, [&](Backend& backend) {
    check_loss(*params, pnb::check::kShapeOnly);
    return backend.linear_cross_entropy_workspace(*params);
  });
}

}  // extern "C"
