#include <cmath>

#include "capi/check.h"
#include "capi/entry.h"

using pnb::Backend;
using pnb::check::Checker;
using pnb::check::Place;

namespace {

void check_adamw(const pnb_adamw_params& p, Place place) {
  Checker check("adamw", place);
  const struct {
    const pnb_tensor& t;
    const char* name;
  } operands[] = {{p.param, "param"}, {p.grad, "grad"}, {p.m, "m"}, {p.v, "v"}};
  for (const auto& operand : operands) {
    check.tensor(operand.t, operand.name, 1, {PNB_DTYPE_F32});
    check.dim(operand.t, operand.name, 0, p.param.shape[0]);
    check.contiguous(operand.t, operand.name);
  }
  check.tensor(p.schedule, "schedule", 1, {PNB_DTYPE_F32});
  check.shape(p.schedule, "schedule", {3});
  check.contiguous(p.schedule, "schedule");
  check.tensor(p.grad_norm, "grad_norm", 1, {PNB_DTYPE_F32});
  check.shape(p.grad_norm, "grad_norm", {1});
  check.that(p.beta1 >= 0 && p.beta1 < 1 && p.beta2 >= 0 && p.beta2 < 1, "expected betas in [0, 1), found %g and %g",
             static_cast<double>(p.beta1), static_cast<double>(p.beta2));
  check.that(p.epsilon > 0, "expected an epsilon above 0, found %g", static_cast<double>(p.epsilon));
  check.that(p.weight_decay >= 0 && std::isfinite(p.weight_decay), "expected a weight decay of 0 or more, found %g",
             static_cast<double>(p.weight_decay));
  check.that(p.max_norm >= 0 && std::isfinite(p.max_norm), "expected max_norm of 0 or more, found %g",
             static_cast<double>(p.max_norm));
}

}  // namespace

extern "C" {

pnb_status pnb_adamw(pnb_context* context, const pnb_adamw_params* params) {
  return pnb::entry("adamw", context, params, [&](Backend& backend) {
    check_adamw(*params, pnb::check::kNeeded);
    Checker("adamw").workspace(params->workspace, backend.adamw_workspace(*params));
    backend.adamw(*params);
  });
}

pnb_status pnb_adamw_workspace(pnb_context* context, const pnb_adamw_params* params, uint64_t* bytes) {
  return pnb::query("adamw", context, params, bytes, [&](Backend& backend) {
    check_adamw(*params, pnb::check::kShapeOnly);
    return backend.adamw_workspace(*params);
  });
}

}  // extern "C"
