#include "capi/check.h"
#include "capi/entry.h"
#include "capi/shared_checks.h"

using pnb::Backend;
using pnb::check::Checker;
using pnb::check::Place;

namespace {

// Selection sorts a list's scores in a multiprocessor's shared memory.
constexpr int64_t kMostBlocks = 4096;
// A pooled row's projection stays in registers.
constexpr int64_t kMostRank = 128;

void optional_vector(const Checker& check, const pnb_tensor& t, const char* name, int64_t size) {
  if (!check.optional(t, name, 1, {PNB_DTYPE_F32})) return;
  check.shape(t, name, {size});
  check.contiguous(t, name);
}

void matrix(const Checker& check, const pnb_tensor& t, const char* name, int64_t rows, int64_t columns) {
  check.tensor(t, name, 2, {PNB_DTYPE_F32});
  check.shape(t, name, {rows, columns});
  check.contiguous(t, name);
}

void check_mass(const Checker& check, const pnb_activation_mass_params& p) {
  bool values = check.optional(p.x, "x", 2, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
  bool bits = check.optional(p.relu_mask, "relu_mask", 2, {PNB_DTYPE_U8});
  check.that(values != bits, "expected either x or relu_mask, found %s", values ? "both" : "none");
  const pnb_tensor& given = values ? p.x : p.relu_mask;
  check.rows_contiguous(given, values ? "x" : "relu_mask");
  int64_t m = given.shape[0];
  int64_t n = values ? given.shape[1] : given.shape[1] * 8;
  pnb::check::block_size(check, p.block_size, n);
  pnb::check::rows_per_list(check, p.rows_per_list, m);
  optional_vector(check, p.norms, "norms", n);
  if (check.optional(p.valid_rows, "valid_rows", 1, {PNB_DTYPE_I32})) check.shape(p.valid_rows, "valid_rows", {1});
  if (check.optional(p.block_mass, "block_mass", 2, {PNB_DTYPE_F32})) {
    matrix(check, p.block_mass, "block_mass", pnb::check::list_count(m, p.rows_per_list), n / p.block_size);
  }
  optional_vector(check, p.neuron_mass, "neuron_mass", n);
  optional_vector(check, p.neuron_fired, "neuron_fired", n);
}

void check_prediction(const Checker& check, const pnb_predict_mass_params& p) {
  check.tensor(p.pooled, "pooled", 2, {PNB_DTYPE_F32});
  check.rows_contiguous(p.pooled, "pooled");
  check.tensor(p.a, "a", 2, {PNB_DTYPE_F32});
  check.tensor(p.b, "b", 2, {PNB_DTYPE_F32});
  int64_t r = p.a.shape[0];
  int64_t units = p.b.shape[0];
  check.that(r >= 1 && r <= kMostRank, "expected a rank of 1 to %lld, found %lld", static_cast<long long>(kMostRank),
             static_cast<long long>(r));
  matrix(check, p.a, "a", r, p.pooled.shape[1]);
  matrix(check, p.b, "b", units, r);
  optional_vector(check, p.bias, "bias", units);
  optional_vector(check, p.norms, "norms", units);
  check.that(p.units_per_score >= 1 && units % p.units_per_score == 0, "expected a multiple of %d units, found %lld",
             p.units_per_score, static_cast<long long>(units));
  check.that(p.pooled_per_list >= 1, "expected pooled_per_list above 0, found %lld", static_cast<long long>(p.pooled_per_list));
  matrix(check, p.scores, "scores", pnb::check::list_count(p.pooled.shape[0], p.pooled_per_list), units / p.units_per_score);
}

void check_selection(const Checker& check, const pnb_select_blocks_params& p) {
  check.tensor(p.scores, "scores", 2, {PNB_DTYPE_F32});
  check.rows_contiguous(p.scores, "scores");
  check.that(p.scores.shape[1] <= kMostBlocks, "expected at most %lld blocks, found %lld", static_cast<long long>(kMostBlocks),
             static_cast<long long>(p.scores.shape[1]));
  check.that(p.coverage > 0 && p.coverage <= 1, "expected a coverage above 0, at most 1, found %g",
             static_cast<double>(p.coverage));
  pnb::check::block_lists(check, p.blocks, "blocks", p.scores.shape[0]);
  check.that(p.blocks.indices.shape[1] <= p.scores.shape[1], "expected room for at most %lld blocks, found %lld",
             static_cast<long long>(p.scores.shape[1]), static_cast<long long>(p.blocks.indices.shape[1]));
  optional_vector(check, p.summary, "summary", PNB_SUMMARY_SIZE);
}

}  // namespace

extern "C" {

pnb_status pnb_activation_mass(pnb_context* context, const pnb_activation_mass_params* params) {
  return pnb::entry("activation_mass", context, params, [&](Backend& backend) {
    check_mass(Checker("activation_mass"), *params);
    Checker("activation_mass").workspace(params->workspace, backend.activation_mass_workspace(*params));
    backend.activation_mass(*params);
  });
}

pnb_status pnb_activation_mass_workspace(pnb_context* context, const pnb_activation_mass_params* params, uint64_t* bytes) {
  return pnb::query("activation_mass", context, params, bytes, [&](Backend& backend) {
    check_mass(Checker("activation_mass", pnb::check::kShapeOnly), *params);
    return backend.activation_mass_workspace(*params);
  });
}

pnb_status pnb_predict_mass(pnb_context* context, const pnb_predict_mass_params* params) {
  return pnb::entry("predict_mass", context, params, [&](Backend& backend) {
    check_prediction(Checker("predict_mass"), *params);
    Checker("predict_mass").workspace(params->workspace, backend.predict_mass_workspace(*params));
    backend.predict_mass(*params);
  });
}

pnb_status pnb_predict_mass_workspace(pnb_context* context, const pnb_predict_mass_params* params, uint64_t* bytes) {
  return pnb::query("predict_mass", context, params, bytes, [&](Backend& backend) {
    check_prediction(Checker("predict_mass", pnb::check::kShapeOnly), *params);
    return backend.predict_mass_workspace(*params);
  });
}

pnb_status pnb_relative_mass(pnb_context* context, const pnb_relative_mass_params* params) {
  return pnb::entry("relative_mass", context, params, [&](Backend& backend) {
    Checker check("relative_mass");
    const pnb_relative_mass_params& p = *params;
    check.tensor(p.neuron_mass, "neuron_mass", 1, {PNB_DTYPE_F32});
    check.contiguous(p.neuron_mass, "neuron_mass");
    pnb::check::block_size(check, p.block_size, p.neuron_mass.shape[0]);
    check.that(p.threshold >= 0 && p.share > 0 && p.share <= 1,
               "expected a threshold of 0 or more and a share in (0, 1], found %g and %g", static_cast<double>(p.threshold),
               static_cast<double>(p.share));
    matrix(check, p.scores, "scores", 1, p.neuron_mass.shape[0] / p.block_size);
    backend.relative_mass(p);
  });
}

pnb_status pnb_select_blocks(pnb_context* context, const pnb_select_blocks_params* params) {
  return pnb::entry("select_blocks", context, params, [&](Backend& backend) {
    check_selection(Checker("select_blocks"), *params);
    backend.select_blocks(*params);
  });
}

}  // extern "C"
