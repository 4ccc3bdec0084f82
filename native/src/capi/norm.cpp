#include "capi/check.h"
#include "capi/entry.h"
#include "capi/shared_checks.h"

namespace pnb::check {

void matrix_beside(const Checker& check, const pnb_tensor& t, const char* name, const pnb_tensor& x) {
  if (x.dtype == PNB_DTYPE_F32) {
    check.tensor(t, name, 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
  } else {
    check.tensor(t, name, 2, {x.dtype});
  }
}

void vector_of(const Checker& check, const pnb_tensor& t, const char* name, int64_t size) {
  check.tensor(t, name, 1, {PNB_DTYPE_F32});
  check.shape(t, name, {size});
  check.contiguous(t, name);
}

}  // namespace pnb::check

using pnb::Backend;
using pnb::check::Checker;
using pnb::check::vector_of;

namespace {

void matrix_like(const Checker& check, const pnb_tensor& t, const char* name, const pnb_tensor& x) {
  pnb::check::matrix_beside(check, t, name, x);
  check.shape(t, name, {x.shape[0], x.shape[1]});
  check.rows_contiguous(t, name);
}

}  // namespace

extern "C" {

pnb_status pnb_layer_norm_forward(pnb_context* context, const pnb_layer_norm_forward_params* params) {
  return pnb::entry("layer_norm_forward", context, params, [&](Backend& backend) {
    Checker check("layer_norm_forward");
    const pnb_layer_norm_forward_params& p = *params;
    check.tensor(p.x, "x", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
    matrix_like(check, p.x, "x", p.x);
    matrix_like(check, p.y, "y", p.x);
    check.that(p.y.dtype == p.x.dtype || p.y.data != p.x.data, "expected y in another place than x, whose dtype it has not, found one");
    vector_of(check, p.gamma, "gamma", p.x.shape[1]);
    vector_of(check, p.beta, "beta", p.x.shape[1]);
    check.that(pnb::present(p.mean) == pnb::present(p.rstd), "expected mean and rstd together, found one of them");
    if (pnb::present(p.mean)) {
      vector_of(check, p.mean, "mean", p.x.shape[0]);
      vector_of(check, p.rstd, "rstd", p.x.shape[0]);
    }
    if (pnb::present(p.pooled)) {
      check.that(p.pool_rows > 0, "expected pool_rows above 0, found %lld", static_cast<long long>(p.pool_rows));
      check.tensor(p.pooled, "pooled", 2, {PNB_DTYPE_F32});
      check.shape(p.pooled, "pooled", {pnb::check::list_count(p.x.shape[0], p.pool_rows), p.x.shape[1]});
      check.contiguous(p.pooled, "pooled");
      if (pnb::present(p.valid_rows)) {
        check.tensor(p.valid_rows, "valid_rows", 1, {PNB_DTYPE_I32});
        check.shape(p.valid_rows, "valid_rows", {1});
      }
    }
    if (p.project != nullptr) {
      pnb::check::projections(check, *p.project);
      const pnb_tensor& x = p.project->x;
      check.that(
          x.data == p.y.data && x.stride[0] == p.y.stride[0] && x.dtype == p.y.dtype && !pnb::present(p.project->x_blocks.indices),
          "expected the projected adapters to read y, found another x");
      check.shape(x, "the projected adapters' x", {p.y.shape[0], p.y.shape[1]});
    }
    check.that(p.epsilon > 0, "expected an epsilon above 0, found %g", static_cast<double>(p.epsilon));
    backend.layer_norm_forward(p);
  });
}

pnb_status pnb_layer_norm_backward(pnb_context* context, const pnb_layer_norm_backward_params* params) {
  return pnb::entry("layer_norm_backward", context, params, [&](Backend& backend) {
    Checker check("layer_norm_backward");
    const pnb_layer_norm_backward_params& p = *params;
    check.tensor(p.x, "x", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
    matrix_like(check, p.x, "x", p.x);
    matrix_like(check, p.dy, "dy", p.x);
    matrix_like(check, p.dx, "dx", p.x);
    check.dtype(p.dx, "dx", p.dy.dtype);
    if (pnb::present(p.residual)) {
      matrix_like(check, p.residual, "residual", p.x);
      check.dtype(p.residual, "residual", p.dy.dtype);
    }
    vector_of(check, p.mean, "mean", p.x.shape[0]);
    vector_of(check, p.rstd, "rstd", p.x.shape[0]);
    vector_of(check, p.gamma, "gamma", p.x.shape[1]);
    backend.layer_norm_backward(p);
  });
}

}  // extern "C"
