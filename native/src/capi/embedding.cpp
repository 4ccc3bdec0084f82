#include "capi/check.h"
#include "capi/entry.h"

using pnb::Backend;
using pnb::present;
using pnb::check::Checker;

namespace {

void lookup(const Checker& check, const pnb_tensor& indices, const char* indices_name, const pnb_tensor& table,
            const char* table_name, const pnb_tensor& d) {
  check.that(present(indices) == present(table), "expected %s and %s together, found one of them", indices_name, table_name);
  if (!present(table)) return;
  check.tensor(indices, indices_name, 1, {PNB_DTYPE_I32});
  check.shape(indices, indices_name, {d.shape[0]});
  check.contiguous(indices, indices_name);
  check.tensor(table, table_name, 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16, PNB_DTYPE_F16});
  check.dim(table, table_name, 1, d.shape[1]);
  check.rows_contiguous(table, table_name);
}

}  // namespace

extern "C" pnb_status pnb_embedding(pnb_context* context, const pnb_embedding_params* params) {
  return pnb::entry("embedding", context, params, [&](Backend& backend) {
    Checker check("embedding");
    const pnb_embedding_params& p = *params;
    check.tensor(p.d, "d", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
    check.rows_contiguous(p.d, "d");
    lookup(check, p.tokens, "tokens", p.table, "table", p.d);
    lookup(check, p.positions, "positions", p.position_table, "position_table", p.d);
    if (check.optional(p.residual, "residual", 2, {p.d.dtype})) {
      check.shape(p.residual, "residual", {p.d.shape[0], p.d.shape[1]});
      check.rows_contiguous(p.residual, "residual");
    }
    backend.embedding(p);
  });
}
