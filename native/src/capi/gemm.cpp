#include <memory>

#include "capi/check.h"
#include "capi/entry.h"
#include "capi/shared_checks.h"

using pnb::Backend;
using pnb::present;
using pnb::check::Checker;
using pnb::check::Place;

namespace pnb::check {

void dropout(const Checker& check, const pnb_dropout& d) {
  check.that(d.p >= 0.0f && d.p < 1.0f, "expected a dropout probability in [0, 1), found %g", static_cast<double>(d.p));
  if (d.p == 0.0f) return;
  check.tensor(d.state, "dropout.state", 1, {PNB_DTYPE_U64});
  check.shape(d.state, "dropout.state", {2});
  check.contiguous(d.state, "dropout.state");
}

void weight(const Checker& check, Place place, const pnb_weight* weight) {
  check.that(weight != nullptr, "expected a weight, found NULL");
  check.that(place == kShapeOnly || !weight->described, "expected a packed weight, found the description of one");
}

bool blocks(const Checker& check, const pnb_block_list& blocks, const char* name, int64_t m, int64_t neurons) {
  if (!check.optional(blocks.indices, name, 2, {PNB_DTYPE_I32})) return false;
  block_size(check, blocks.size, neurons);
  rows_per_list(check, blocks.rows_per_list, m);
  block_lists(check, blocks, name, list_count(m, blocks.rows_per_list));
  check.that(blocks.indices.shape[1] <= neurons / blocks.size, "expected lists of at most %lld blocks, found room for %lld",
             static_cast<long long>(neurons / blocks.size), static_cast<long long>(blocks.indices.shape[1]));
  return true;
}

void block_lists(const Checker& check, const pnb_block_list& blocks, const char* name, int64_t lists) {
  check.tensor(blocks.indices, name, 2, {PNB_DTYPE_I32});
  check.rows_contiguous(blocks.indices, name);
  check.dim(blocks.indices, name, 0, lists);
  check.tensor(blocks.counts, "a block list's counts", 1, {PNB_DTYPE_I32});
  check.shape(blocks.counts, "a block list's counts", {lists});
  check.contiguous(blocks.counts, "a block list's counts");
}

void block_size(const Checker& check, int64_t size, int64_t neurons) {
  check.that(size == 32 || size == 64 || size == 128, "expected blocks of 32, 64 or 128, found %lld", static_cast<long long>(size));
  check.that(neurons % size == 0, "expected a multiple of %lld neurons, found %lld", static_cast<long long>(size),
             static_cast<long long>(neurons));
}

void rows_per_list(const Checker& check, int64_t rows, int64_t m) {
  check.that(rows > 0 && (rows >= m || rows % 128 == 0),
             "expected rows_per_list to be a multiple of 128 or at least %lld, found %lld", static_cast<long long>(m),
             static_cast<long long>(rows));
}

int64_t list_count(int64_t m, int64_t rows_per_list) { return m / rows_per_list + (m % rows_per_list > 0 ? 1 : 0); }

}  // namespace pnb::check

namespace {

void check_weight(const Checker& check, const pnb_weight_params& p, bool with_data) {
  check.that(p.dtype == PNB_DTYPE_F32 || p.dtype == PNB_DTYPE_BF16, "expected dtype f32 or bf16 to compute in, found %s",
             pnb::dtype_name(p.dtype));
  check.that((p.uses & ~(PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD)) == 0 && p.uses != 0,
             "expected uses to be FORWARD, BACKWARD or both, found %d", p.uses);
  check.that(p.part_count >= 1 && p.parts != nullptr, "expected one part or more, found %d", p.part_count);
  for (int i = 0; i < p.part_count; ++i) {
    const pnb_tensor& part = p.parts[i];
    if (with_data) {
      check.tensor(part, "a part", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16, PNB_DTYPE_F16});
    } else {
      check.that(part.rank == 2, "expected parts of rank 2, found %d", part.rank);
    }
    check.that(part.shape[0] > 0 && part.shape[1] > 0, "expected a part with rows and columns, found %s",
               pnb::shape_text(part).c_str());
    check.dim(part, "every part", 1, p.parts[0].shape[1]);
  }
}

std::unique_ptr<pnb_weight> described(const pnb_weight_params& p) {
  auto weight = std::make_unique<pnb_weight>();
  for (int i = 0; i < p.part_count; ++i) weight->out += p.parts[i].shape[0];
  weight->in = p.parts[0].shape[1];
  weight->dtype = p.dtype;
  weight->uses = p.uses;
  weight->described = true;
  return weight;
}

// `by_neuron` and `by_column` are bytes of a row; where d is compact, the latter may be less.
void mask_shape(const Checker& check, const pnb_tensor& mask, int64_t m, int64_t by_neuron, int64_t by_column) {
  if (by_column == by_neuron) return check.shape(mask, "relu_mask", {m, by_neuron});
  check.dim(mask, "relu_mask", 0, m);
  check.that(mask.shape[1] == by_neuron || mask.shape[1] == by_column,
             "expected relu_mask with %lld bytes a row by neuron, or %lld by d's columns, found %lld",
             static_cast<long long>(by_neuron), static_cast<long long>(by_column), static_cast<long long>(mask.shape[1]));
}

void check_gemm(const pnb_gemm_params& p, Place place) {
  Checker check("gemm", place);
  check.tensor(p.a, "a", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
  check.tensor(p.d, "d", 2, {PNB_DTYPE_F32, p.a.dtype});
  check.rows_contiguous(p.d, "d");
  int64_t m = p.d.shape[0];
  int64_t n = p.d.shape[1];
  int64_t k = p.a.shape[1];
  check.dim(p.a, "a", 0, m);
  int64_t neurons_of_d = n;  // what columns of bias and terms are counted in: more than n where d is compact
  check.that(k > 0 || present(p.blocks.indices) || p.blocks.indices.rank != 0, "expected a with one column or more, found none");
  check.that(m <= 1 || p.d.stride[0] >= n, "expected d with rows %lld apart or more, found %lld", static_cast<long long>(n),
             static_cast<long long>(p.d.stride[0]));
  if (p.weight != nullptr) {
    check.that(!present(p.b), "expected b or a weight, found both");
    pnb::check::weight(check, place, p.weight);
    check.that(p.weight_use == PNB_WEIGHT_FORWARD || p.weight_use == PNB_WEIGHT_BACKWARD,
               "expected weight_use FORWARD or BACKWARD, found %d", p.weight_use);
    check.that((p.weight->uses & p.weight_use) != 0, "expected a weight packed for use %d, found one packed for %d", p.weight_use,
               p.weight->uses);
    bool forward = p.weight_use == PNB_WEIGHT_FORWARD;
    int64_t neurons = p.weight->out;
    if (pnb::check::blocks(check, p.blocks, "blocks", m, p.weight->out)) {
      neurons = p.blocks.indices.shape[1] * p.blocks.size;
      check.that(!forward || (!present(p.residual) && p.residual.rank == 0), "expected no residual of a compact d, found one");
    }
    int64_t inner = forward ? p.weight->in : neurons;
    int64_t outer = forward ? neurons : p.weight->in;
    if (forward) neurons_of_d = p.weight->out;
    check.that(k == inner, "expected a with %lld columns for this weight, found %lld", static_cast<long long>(inner),
               static_cast<long long>(k));
    check.that(n == outer, "expected d with %lld columns for this weight, found %lld", static_cast<long long>(outer),
               static_cast<long long>(n));
    check.dtype(p.a, "a", p.weight->dtype);
  } else {
    check.tensor(p.b, "b", 2, {p.a.dtype});
    check.shape(p.b, "b", {k, n});
    check.that(!present(p.blocks.indices) && p.blocks.indices.rank == 0, "expected blocks with a weight only, found them with b");
  }
  n = neurons_of_d;
  check.that(p.low_rank_count >= 0 && p.low_rank_count <= PNB_MAX_LOW_RANK, "expected 0 to %d low-rank terms, found %d",
             PNB_MAX_LOW_RANK, p.low_rank_count);
  check.that(p.low_rank_count == 0 || p.low_rank != nullptr, "expected low-rank terms, found NULL");
  for (int i = 0; i < p.low_rank_count; ++i) {
    const pnb_low_rank& term = p.low_rank[i];
    check.tensor(term.h, "low_rank.h", 2, {PNB_DTYPE_F32});
    check.tensor(term.b, "low_rank.b", 2, {PNB_DTYPE_F32});
    check.dim(term.h, "low_rank.h", 0, m);
    check.rows_contiguous(term.h, "low_rank.h");
    check.dim(term.b, "low_rank.b", 1, term.h.shape[1]);
    check.that(term.column >= 0 && term.column <= n && term.b.shape[0] <= n - term.column,
               "expected low-rank columns within [0, %lld), found %lld from %lld on", static_cast<long long>(n),
               static_cast<long long>(term.b.shape[0]), static_cast<long long>(term.column));
    pnb::check::dropout(check, term.dropout);
  }
  if (check.optional(p.bias, "bias", 1, {PNB_DTYPE_F32})) {
    check.shape(p.bias, "bias", {n});
    check.contiguous(p.bias, "bias");
  }
  if (check.optional(p.residual, "residual", 2, {p.d.dtype})) {
    check.shape(p.residual, "residual", {m, p.d.shape[1]});
    check.rows_contiguous(p.residual, "residual");
  }
  check.that(p.epilogue >= PNB_EPILOGUE_NONE && p.epilogue <= PNB_EPILOGUE_DRELU, "expected an epilogue of 0 to 2, found %d",
             p.epilogue);
  bool mask = check.optional(p.relu_mask, "relu_mask", 2, {PNB_DTYPE_U8});
  if (mask) {
    mask_shape(check, p.relu_mask, m, (n + 7) / 8, (p.d.shape[1] + 7) / 8);
    check.rows_contiguous(p.relu_mask, "relu_mask");
  }
  check.that(p.epilogue != PNB_EPILOGUE_DRELU || mask, "expected relu_mask with DRELU, found no data");
}

}  // namespace

extern "C" {

pnb_status pnb_weight_storage(pnb_context* context, const pnb_weight_params* params, uint64_t* bytes) {
  return pnb::query("weight", context, params, bytes, [&](Backend& backend) {
    check_weight(Checker("weight"), *params, false);
    return backend.weight_storage(*params);
  });
}

pnb_status pnb_weight_create(pnb_context* context, const pnb_weight_params* params, pnb_weight** weight) {
  return pnb::entry("weight", context, params, [&](Backend& backend) {
    Checker check("weight");
    check.that(weight != nullptr, "expected somewhere to write the weight, found NULL");
    if (params->storage == nullptr) {
      check_weight(check, *params, false);
      *weight = described(*params).release();
      return;
    }
    check_weight(check, *params, true);
    uint64_t needed = backend.weight_storage(*params);
    check.that(params->storage_bytes >= needed, "expected %llu bytes of storage, found %llu",
               static_cast<unsigned long long>(needed), static_cast<unsigned long long>(params->storage_bytes));
    *weight = backend.weight_create(*params).release();
  });
}

void pnb_weight_destroy(pnb_weight* weight) { delete weight; }

pnb_status pnb_gemm(pnb_context* context, const pnb_gemm_params* params) {
  return pnb::entry("gemm", context, params, [&](Backend& backend) {
    check_gemm(*params, pnb::check::kNeeded);
    Checker("gemm").workspace(params->workspace, backend.gemm_workspace(*params));
    backend.gemm(*params);
  });
}

pnb_status pnb_gemm_workspace(pnb_context* context, const pnb_gemm_params* params, uint64_t* bytes) {
  return pnb::query("gemm", context, params, bytes, [&](Backend& backend) {
    check_gemm(*params, pnb::check::kShapeOnly);
    return backend.gemm_workspace(*params);
  });
}

}  // extern "C"
