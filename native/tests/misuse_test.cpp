// Every function of the C ABI refuses what is wrong with a text that names the operation, and computes nothing.
// Each operation starts from arguments that work; then one thing at a time is broken.
#include <cstring>
#include <limits>
#include <utility>

#include "attention_tensors.h"
#include "block_tensors.h"

using namespace test;

namespace {

void refused(pnb_status status, const char* op, const std::string& what) {
  std::string text = pnb_last_error();
  expect(status == PNB_ERROR_INVALID_ARGUMENT, std::string(op) + ", " + what + ": expected a refusal, found status " +
                                                   std::to_string(status) + (status == PNB_OK ? "" : " " + text));
  if (status != PNB_OK) {
    expect(text.rfind(op, 0) == 0 && text.size() > std::strlen(op) + 10,
           std::string(op) + ", " + what + ": text is '" + text + "'");
  }
}

template <typename P>
struct Operand {
  const char* name;
  pnb_tensor P::*member;
  bool optional = false;
  unsigned free_dimensions = 0;  // bit i: dimension i may have any size
};

template <typename P>
void refuses(pnb_context* context, const char* op, pnb_status (*call)(pnb_context*, const P*), const P& valid,
             const std::vector<Operand<P>>& operands) {
  ok(call(context, &valid), std::string(op) + " with arguments that work");
  refused(call(nullptr, &valid), op, "no context");
  refused(call(context, nullptr), op, "no params");
  for (uint32_t size : {0u, static_cast<uint32_t>(sizeof(P)) - 4, static_cast<uint32_t>(sizeof(P)) + 8}) {
    P p = valid;
    p.struct_size = size;
    refused(call(context, &p), op, "struct_size " + std::to_string(size));
  }
  for (const Operand<P>& operand : operands) {
    auto broken = [&](const std::string& what, auto&& change) {
      P p = valid;
      change(p.*operand.member);
      refused(call(context, &p), op, std::string(operand.name) + " " + what);
    };
    if (!operand.optional) broken("absent", [](pnb_tensor& t) { t.data = nullptr; });
    broken("of an unknown dtype", [](pnb_tensor& t) { t.dtype = 99; });
    broken("of rank 0", [](pnb_tensor& t) { t.rank = 0; });
    broken("of rank 5", [](pnb_tensor& t) { t.rank = 5; });
    for (int i = 0; i < (valid.*operand.member).rank; ++i) {
      std::string dimension = "dimension " + std::to_string(i);
      broken("with a negative " + dimension, [&](pnb_tensor& t) { t.shape[i] = -1; });
      broken("with a negative stride in " + dimension, [&](pnb_tensor& t) { t.stride[i] = -1; });
      if (!(operand.free_dimensions >> i & 1)) broken("too large in " + dimension, [&](pnb_tensor& t) { t.shape[i] += 1; });
    }
  }
}

template <typename P>
void refuses_value(pnb_context* context, const char* op, pnb_status (*call)(pnb_context*, const P*), const P& valid,
                   const char* what, void (*change)(P&)) {
  P p = valid;
  change(p);
  refused(call(context, &p), op, what);
}

template <typename P>
void refuses_query(pnb_context* context, const char* op, pnb_status (*query)(pnb_context*, const P*, uint64_t*), const P& valid) {
  uint64_t bytes = 0;
  ok(query(context, &valid, &bytes), std::string(op) + " query");
  refused(query(nullptr, &valid, &bytes), op, "query without context");
  refused(query(context, nullptr, &bytes), op, "query without params");
  refused(query(context, &valid, nullptr), op, "query without an answer");
  P p = valid;
  p.struct_size = 1;
  refused(query(context, &p, &bytes), op, "query with a wrong struct_size");
}

struct Workspace {
  std::vector<char> bytes = std::vector<char>(1 << 22);
  pnb_workspace w{bytes.data() + (256 - reinterpret_cast<uintptr_t>(bytes.data()) % 256), (1 << 22) - 256};
};

const float kNaN = std::numeric_limits<float>::quiet_NaN();

void contexts(pnb_context* context) {
  pnb_context* created = nullptr;
  pnb_context_params p{};
  refused(pnb_context_create(nullptr, &created), "context", "no params");
  refused(pnb_context_create(&p, &created), "context", "struct_size 0");
  p.struct_size = sizeof p;
  refused(pnb_context_create(&p, nullptr), "context", "nowhere to write");
  p.device = 7;
  refused(pnb_context_create(&p, &created), "context", "an unknown device");
  p.device = PNB_DEVICE_CPU;
  p.threads = -1;
  refused(pnb_context_create(&p, &created), "context", "threads -1");
  p.threads = 1;
  p.device = PNB_DEVICE_CUDA;
  expect(pnb_context_create(&p, &created) == PNB_ERROR_UNAVAILABLE, "context: CUDA is unavailable");
  expect(std::strlen(pnb_last_error()) > 10, "context: the text says why CUDA is unavailable");
  expect(created == nullptr, "context: nothing was created");
  const char* text = nullptr;
  uint64_t bytes = 0;
  refused(pnb_context_describe(nullptr, &text), "context", "describe without context");
  refused(pnb_context_describe(context, nullptr), "context", "describe without answer");
  refused(pnb_context_memory(nullptr, &bytes), "context", "memory without context");
  refused(pnb_context_memory(context, nullptr), "context", "memory without answer");
  pnb_context_destroy(nullptr);
  pnb_weight_destroy(nullptr);
}

void memory(pnb_context* context) {
  Tensor x(PNB_DTYPE_F32, {4, 6}), y(PNB_DTYPE_BF16, {4, 6});
  auto fill = params<pnb_fill_params>();
  fill.d = x.t;
  refuses<pnb_fill_params>(context, "fill", pnb_fill, fill, {{"d", &pnb_fill_params::d, false, 3}});
  auto convert = params<pnb_convert_params>();
  convert.s = x.t, convert.d = y.t;
  refuses<pnb_convert_params>(context, "convert", pnb_convert, convert,
                              {{"s", &pnb_convert_params::s}, {"d", &pnb_convert_params::d}});
  int64_t index = 0;
  ok(pnb_find_not_finite(context, &x.t, &index), "find_not_finite");
  expect(index == -1, "find_not_finite: a filled tensor is finite");
  x.set(17, kNaN), x.set(23, INFINITY);
  ok(pnb_find_not_finite(context, &x.t, &index), "find_not_finite");
  expect(index == 17, "find_not_finite: the first is found, not " + std::to_string(index));
  refused(pnb_find_not_finite(nullptr, &x.t, &index), "find_not_finite", "no context");
  refused(pnb_find_not_finite(context, nullptr, &index), "find_not_finite", "no tensor");
  refused(pnb_find_not_finite(context, &x.t, nullptr), "find_not_finite", "no answer");
  pnb_tensor transposed = x.t;
  std::swap(transposed.shape[0], transposed.shape[1]), std::swap(transposed.stride[0], transposed.stride[1]);
  refused(pnb_find_not_finite(context, &transposed, &index), "find_not_finite", "a strided view");
}

void products(pnb_context* context, const pnb_workspace& workspace) {
  const int64_t m = 5, n = 12, k = 8, r = 3, vocab = 12;
  Tensor a(PNB_DTYPE_F32, {m, k}), b(PNB_DTYPE_F32, {k, n}), w(PNB_DTYPE_F32, {vocab, k}), d(PNB_DTYPE_F32, {m, n}),
      bias(PNB_DTYPE_F32, {n});
  Tensor residual(PNB_DTYPE_F32, {m, n}), mask(PNB_DTYPE_U8, {m, (n + 7) / 8}, 0.0), h(PNB_DTYPE_F32, {m, r}),
      right(PNB_DTYPE_F32, {n, r});

  auto wp = params<pnb_weight_params>();
  pnb_tensor part = w.t;
  wp.dtype = PNB_DTYPE_F32, wp.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD, wp.parts = &part, wp.part_count = 1;
  refuses_query(context, "weight", pnb_weight_storage, wp);
  ok(pnb_weight_storage(context, &wp, &wp.storage_bytes), "weight storage");
  std::vector<char> storage(wp.storage_bytes + 256);
  wp.storage = storage.data() + (256 - reinterpret_cast<uintptr_t>(storage.data()) % 256);
  pnb_weight* weight = nullptr;
  auto weight_refused = [&](const char* what, auto&& change) {
    auto p = wp;
    pnb_tensor changed = part;
    p.parts = &changed;
    change(p, changed);
    pnb_weight* none = nullptr;
    refused(pnb_weight_create(context, &p, &none), "weight", what);
    expect(none == nullptr, std::string("weight, ") + what + ": a weight was made");
  };
  weight_refused("f16 to compute in", [](auto& p, auto&) { p.dtype = PNB_DTYPE_F16; });
  weight_refused("no use", [](auto& p, auto&) { p.uses = 0; });
  weight_refused("an unknown use", [](auto& p, auto&) { p.uses = 4; });
  weight_refused("no parts", [](auto& p, auto&) { p.parts = nullptr; });
  weight_refused("part_count 0", [](auto& p, auto&) { p.part_count = 0; });
  weight_refused("no parts to describe", [](auto& p, auto&) { p.storage = nullptr, p.part_count = 0; });
  weight_refused("little storage", [](auto& p, auto&) { p.storage_bytes -= 1; });
  weight_refused("a part without data", [](auto&, auto& t) { t.data = nullptr; });
  weight_refused("a part of i32", [](auto&, auto& t) { t.dtype = PNB_DTYPE_I32; });
  weight_refused("a part of rank 1", [](auto&, auto& t) { t.rank = 1; });
  weight_refused("an empty part", [](auto&, auto& t) { t.shape[0] = 0; });
  refused(pnb_weight_create(context, &wp, nullptr), "weight", "nowhere to write");
  refused(pnb_weight_create(nullptr, &wp, &weight), "weight", "no context");
  refused(pnb_weight_create(context, nullptr, &weight), "weight", "no params");
  ok(pnb_weight_create(context, &wp, &weight), "weight");

  pnb_low_rank term{};
  term.h = h.t, term.b = right.t, term.scale = 1.0f;
  using G = pnb_gemm_params;
  auto g = params<G>();
  g.a = a.t, g.b = b.t, g.d = d.t, g.bias = bias.t, g.residual = residual.t, g.relu_mask = mask.t, g.epilogue = PNB_EPILOGUE_RELU;
  g.low_rank = &term, g.low_rank_count = 1, g.workspace = workspace;
  refuses<G>(context, "gemm", pnb_gemm, g,
             {{"a", &G::a}, {"b", &G::b}, {"bias", &G::bias, true}, {"residual", &G::residual, true},
              {"relu_mask", &G::relu_mask, true}, {"d", &G::d}});
  refuses_query(context, "gemm", pnb_gemm_workspace, g);
  refuses_value<G>(context, "gemm", pnb_gemm, g, "epilogue 3", [](G& p) { p.epilogue = 3; });
  refuses_value<G>(context, "gemm", pnb_gemm, g, "DRELU without mask",
                   [](G& p) { p.epilogue = PNB_EPILOGUE_DRELU, p.relu_mask.data = nullptr; });
  refuses_value<G>(context, "gemm", pnb_gemm, g, "5 terms", [](G& p) { p.low_rank_count = 5; });
  refuses_value<G>(context, "gemm", pnb_gemm, g, "terms without array", [](G& p) { p.low_rank = nullptr; });
  refuses_value<G>(context, "gemm", pnb_gemm, g, "d with strided rows", [](G& p) { p.d.stride[1] = 2; });
  refuses_value<G>(context, "gemm", pnb_gemm, g, "d with rows that overlap", [](G& p) { p.d.stride[0] = 1; });
  refuses_value<G>(context, "gemm", pnb_gemm, g, "f32 times bf16", [](G& p) { p.b.dtype = PNB_DTYPE_BF16; });
  auto term_refused = [&](const char* what, auto&& change) {
    pnb_low_rank changed = term;
    change(changed);
    G p = g;
    p.low_rank = &changed;
    refused(pnb_gemm(context, &p), "gemm", what);
  };
  term_refused("a term without h", [](auto& t) { t.h.data = nullptr; });
  term_refused("a term without b", [](auto& t) { t.b.data = nullptr; });
  term_refused("a term of other rank", [](auto& t) { t.b.shape[1] = 2; });
  term_refused("a term of other rows", [](auto& t) { t.h.shape[0] = 4; });
  term_refused("a term with strided h", [](auto& t) { t.h.stride[1] = 2; });
  term_refused("a term beyond d's columns", [](auto& t) { t.column = 1; });
  term_refused("a term before d's columns", [](auto& t) { t.column = -1; });
  term_refused("a term whose columns have no end", [](auto& t) { t.column = INT64_MAX; });
  term_refused("dropout of 1", [](auto& t) { t.dropout.p = 1.0f; });
  term_refused("dropout of NaN", [](auto& t) { t.dropout.p = kNaN; });
  term_refused("dropout without state", [](auto& t) { t.dropout.p = 0.5f; });
  G packed = g;
  packed.b = {};
  packed.weight = weight, packed.weight_use = PNB_WEIGHT_FORWARD;
  refuses<G>(context, "gemm", pnb_gemm, packed, {{"a", &G::a}, {"d", &G::d}});
  refuses_value<G>(context, "gemm", pnb_gemm, packed, "weight_use 3", [](G& p) { p.weight_use = 3; });
  refuses_value<G>(context, "gemm", pnb_gemm, packed, "a for the other use", [](G& p) { p.weight_use = PNB_WEIGHT_BACKWARD; });
  packed.b = b.t;
  refused(pnb_gemm(context, &packed), "gemm", "b and a weight");

  using L = pnb_linear_cross_entropy_params;
  Tensor loss(PNB_DTYPE_F32, {1}), scale(PNB_DTYPE_F32, {1}), dx(PNB_DTYPE_F32, {m, k});
  Tensor rows = ints({0, 2, 4}), targets = ints({1, 11, 0});
  auto l = params<L>();
  l.x = a.t, l.weight = weight, l.rows = rows.t, l.targets = targets.t, l.grad_scale = scale.t, l.loss = loss.t, l.dx = dx.t,
  l.workspace = workspace;
  refuses<L>(context, "linear_cross_entropy", pnb_linear_cross_entropy, l,
             {{"x", &L::x}, {"rows", &L::rows}, {"targets", &L::targets}, {"grad_scale", &L::grad_scale}, {"loss", &L::loss},
              {"dx", &L::dx, true}});
  refuses_query(context, "linear_cross_entropy", pnb_linear_cross_entropy_workspace, l);
  refuses_value<L>(context, "linear_cross_entropy", pnb_linear_cross_entropy, l, "no weight", [](L& p) { p.weight = nullptr; });
  refuses_value<L>(context, "linear_cross_entropy", pnb_linear_cross_entropy, l, "no workspace", [](L& p) { p.workspace = {}; });
  for (std::vector<int32_t> wrong : {std::vector<int32_t>{0, 2, 5}, {-1, 2, 4}, {2, 0, 4}, {0, 0, 4}}) {
    Tensor changed = ints(wrong);
    L p = l;
    p.rows = changed.t;
    refused(pnb_linear_cross_entropy(context, &p), "linear_cross_entropy", "rows out of range or order");
  }
  for (std::vector<int32_t> wrong : {std::vector<int32_t>{0, 12, 5}, {-1, 2, 4}}) {
    Tensor changed = ints(wrong);
    L p = l;
    p.targets = changed.t;
    refused(pnb_linear_cross_entropy(context, &p), "linear_cross_entropy", "targets out of range");
  }

  pnb_weight* description = nullptr;
  wp.storage = nullptr;
  ok(pnb_weight_create(context, &wp, &description), "a description");
  uint64_t packed_bytes = 0, described_bytes = 0;
  ok(pnb_linear_cross_entropy_workspace(context, &l, &packed_bytes), "workspace of a packed weight");
  l.weight = description;
  ok(pnb_linear_cross_entropy_workspace(context, &l, &described_bytes), "workspace of a described weight");
  expect(packed_bytes == described_bytes, "a description asks for another workspace than its weight");
  refused(pnb_linear_cross_entropy(context, &l), "linear_cross_entropy", "a described weight");
  packed.b = {}, packed.weight = description;
  refused(pnb_gemm(context, &packed), "gemm", "a described weight");
  pnb_weight_destroy(description);
  pnb_weight_destroy(weight);
}

void adapters(pnb_context* context, const pnb_workspace& workspace) {
  const int64_t m = 5, in = 8, out = 6, r = 2, n = 10;
  Tensor x(PNB_DTYPE_F32, {m, in}), a(PNB_DTYPE_F32, {r, in}), b(PNB_DTYPE_F32, {out, r}), h(PNB_DTYPE_F32, {m, r}),
      dy(PNB_DTYPE_F32, {m, out});
  Tensor dh(PNB_DTYPE_F32, {m, r}), da(PNB_DTYPE_F32, {r, in}), db(PNB_DTYPE_F32, {out, r});
  using P = pnb_lora_project_params;
  auto p = params<P>();
  p.x = x.t, p.a = a.t, p.h = h.t;
  refuses<P>(context, "lora_project", pnb_lora_project, p, {{"x", &P::x}, {"a", &P::a}, {"h", &P::h}});
  refuses_value<P>(context, "lora_project", pnb_lora_project, p, "dropout -1", [](P& q) { q.dropout.p = -1.0f; });
  using G = pnb_lora_gradients_params;
  auto g = params<G>();
  g.scaling = 2.0f, g.dy = dy.t, g.x = x.t, g.h = h.t, g.a = a.t, g.b = b.t, g.dh = dh.t, g.da = da.t, g.db = db.t,
  g.workspace = workspace;
  refuses<G>(context, "lora_gradients", pnb_lora_gradients, g,
             {{"dy", &G::dy}, {"x", &G::x}, {"h", &G::h}, {"a", &G::a}, {"b", &G::b}, {"dh", &G::dh}, {"da", &G::da},
              {"db", &G::db}});
  refuses_query(context, "lora_gradients", pnb_lora_gradients_workspace, g);
  Tensor rows(PNB_DTYPE_F32, {m}), columns(PNB_DTYPE_F32, {in});
  g.norm = {rows.t, rows.t, columns.t, columns.t};
  ok(pnb_lora_gradients(context, &g), "lora_gradients of a norm");
  refuses_value<G>(context, "lora_gradients", pnb_lora_gradients, g, "means of other rows", [](G& q) { q.norm.mean.shape[0] = 7; });
  refuses_value<G>(context, "lora_gradients", pnb_lora_gradients, g, "a norm without rstd",
                   [](G& q) { q.norm.rstd.data = nullptr; });
  refuses_value<G>(context, "lora_gradients", pnb_lora_gradients, g, "gamma of another width",
                   [](G& q) { q.norm.gamma.shape[0] = 7; });
  refuses_value<G>(context, "lora_gradients", pnb_lora_gradients, g, "a norm without beta",
                   [](G& q) { q.norm.beta.data = nullptr; });
  G unnormed = g, mixed = g;
  unnormed.norm = {}, mixed.next = &unnormed;
  refused(pnb_lora_gradients(context, &mixed), "lora_gradients", "a next adapter without the norm");
  Tensor param(PNB_DTYPE_F32, {n}), grad(PNB_DTYPE_F32, {n}), first(PNB_DTYPE_F32, {n}), second(PNB_DTYPE_F32, {n}),
      norm(PNB_DTYPE_F32, {1});
  Tensor schedule(PNB_DTYPE_F32, {3});
  for (int i = 0; i < 3; ++i) schedule.set(i, 0.1);
  for (int i = 0; i < n; ++i) second.set(i, 0.0);
  using A = pnb_adamw_params;
  auto w = params<A>();
  w.beta1 = 0.9f, w.beta2 = 0.999f, w.epsilon = 1e-8f, w.max_norm = 1.0f;
  w.param = param.t, w.grad = grad.t, w.m = first.t, w.v = second.t, w.schedule = schedule.t, w.grad_norm = norm.t,
  w.workspace = workspace;
  refuses<A>(context, "adamw", pnb_adamw, w,
             {{"param", &A::param}, {"grad", &A::grad}, {"m", &A::m}, {"v", &A::v}, {"schedule", &A::schedule},
              {"grad_norm", &A::grad_norm}});
  refuses_query(context, "adamw", pnb_adamw_workspace, w);
  refuses_value<A>(context, "adamw", pnb_adamw, w, "beta1 of 1", [](A& q) { q.beta1 = 1.0f; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "beta2 of NaN", [](A& q) { q.beta2 = kNaN; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "epsilon 0", [](A& q) { q.epsilon = 0.0f; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "a negative decay", [](A& q) { q.weight_decay = -1.0f; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "max_norm of NaN", [](A& q) { q.max_norm = kNaN; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "no workspace", [](A& q) { q.workspace = {}; });
}

// Lists that are no lists, wherever they are taken.
template <typename P>
void refuses_lists(pnb_context* context, const char* op, pnb_status (*call)(pnb_context*, const P*), const P& valid,
                   pnb_block_list P::*member) {
  auto list_refused = [&](const std::string& what, auto&& change) {
    P p = valid;
    change(p.*member);
    refused(call(context, &p), op, what);
  };
  ok(call(context, &valid), std::string(op) + " with lists that work");
  list_refused("indices of f32", [](pnb_block_list& b) { b.indices.dtype = PNB_DTYPE_F32; });
  list_refused("indices of rank 1", [](pnb_block_list& b) { b.indices.rank = 1; });
  list_refused("indices of another number of lists", [](pnb_block_list& b) { b.indices.shape[0] += 1; });
  list_refused("strided indices", [](pnb_block_list& b) { b.indices.stride[1] = 2; });
  list_refused("more room than blocks", [](pnb_block_list& b) { b.indices.shape[1] = 1000; });
  list_refused("less room than columns", [](pnb_block_list& b) { b.indices.shape[1] -= 1; });
  list_refused("lists without counts", [](pnb_block_list& b) { b.counts.data = nullptr; });
  list_refused("counts of another number of lists", [](pnb_block_list& b) { b.counts.shape[0] += 1; });
  list_refused("counts of u8", [](pnb_block_list& b) { b.counts.dtype = PNB_DTYPE_U8; });
  for (int32_t size : {0, 16, 96, -32}) {
    list_refused("blocks of " + std::to_string(size), [&](pnb_block_list& b) { b.size = size; });
  }
  list_refused("blocks that the neurons are no multiple of", [](pnb_block_list& b) { b.size = 128; });
  for (int64_t rows : {0, -128, 100}) {
    list_refused(std::to_string(rows) + " rows a list", [&](pnb_block_list& b) { b.rows_per_list = rows; });
  }
  const int32_t wrong[][2] = {{1, 1}, {2, 1}, {-1, 2}, {0, 100}};
  for (const auto& indices : wrong) {
    list_refused("blocks out of range or order", [&](pnb_block_list& b) { b.indices.data = const_cast<int32_t*>(indices); });
  }
  const int32_t counts[][2] = {{-1, 1}, {1, 3}};
  for (const auto& count : counts) {
    list_refused("a count out of range", [&](pnb_block_list& b) { b.counts.data = const_cast<int32_t*>(count); });
  }
}

void sparsity(pnb_context* context, const pnb_workspace& workspace) {
  // 192 neurons are whole blocks of 32 and 64, and not of 128; 150 rows have two lists.
  const int64_t m = 150, h = 8, n = 192, r = 3;
  Blocks blocks(64, n, 2, 128, {2, 1});
  Packed weight(context, PNB_DTYPE_F32, n, h);
  Tensor x(PNB_DTYPE_F32, {m, h}), y(PNB_DTYPE_F32, {m, h}), bias(PNB_DTYPE_F32, {n}), mask(PNB_DTYPE_U8, {m, n / 8}, 0.0);
  Tensor low(PNB_DTYPE_F32, {m, r}), a(PNB_DTYPE_F32, {r, h}), b(PNB_DTYPE_F32, {n, r}), da(PNB_DTYPE_F32, {r, h}),
      db(PNB_DTYPE_F32, {n, r});
  Compact hidden(PNB_DTYPE_F32, m, blocks);
  pnb_low_rank term{};
  term.h = low.t, term.b = b.t, term.scale = 1.0f;
  using G = pnb_gemm_params;
  auto sdd = params<G>();
  sdd.a = x.t, sdd.weight = weight.weight, sdd.weight_use = PNB_WEIGHT_FORWARD, sdd.d = hidden.t, sdd.bias = bias.t,
  sdd.relu_mask = mask.t;
  sdd.epilogue = PNB_EPILOGUE_RELU, sdd.low_rank = &term, sdd.low_rank_count = 1, sdd.blocks = blocks.list();
  refuses_lists<G>(context, "gemm", pnb_gemm, sdd, &G::blocks);
  refuses<G>(context, "gemm", pnb_gemm, sdd,
             {{"a", &G::a}, {"bias", &G::bias, true}, {"relu_mask", &G::relu_mask, true}, {"d", &G::d}});
  refuses_query(context, "gemm", pnb_gemm_workspace, sdd);
  Tensor residual(PNB_DTYPE_F32, {m, blocks.width()}), plain(PNB_DTYPE_F32, {h, n});
  G beside = sdd;
  for (int64_t bytes : {blocks.width() / 8 - 1, blocks.width() / 8 + 1}) {
    beside.relu_mask.shape[1] = bytes;
    refused(pnb_gemm(context, &beside), "gemm", "a mask neither by neuron nor by d's columns");
  }
  beside.relu_mask.shape[0] = m - 1, beside.relu_mask.shape[1] = blocks.width() / 8;
  refused(pnb_gemm(context, &beside), "gemm", "a compact mask of fewer rows");
  beside = sdd;
  beside.residual = residual.t;
  refused(pnb_gemm(context, &beside), "gemm", "a residual of a compact product");
  beside = sdd;
  beside.weight = nullptr, beside.b = plain.t;
  refused(pnb_gemm(context, &beside), "gemm", "lists without a weight");
  pnb_low_rank narrow = term;
  narrow.column = 1;
  beside = sdd;
  beside.low_rank = &narrow;
  refused(pnb_gemm(context, &beside), "gemm", "a term beyond the neurons");
  auto dsd = params<G>();
  dsd.a = hidden.t, dsd.weight = weight.weight, dsd.weight_use = PNB_WEIGHT_BACKWARD, dsd.d = y.t, dsd.blocks = blocks.list();
  refuses_lists<G>(context, "gemm", pnb_gemm, dsd, &G::blocks);

  Tensor wide_a(PNB_DTYPE_F32, {r, n}), wide_da(PNB_DTYPE_F32, {r, n}), up(PNB_DTYPE_F32, {h, r}), d_up(PNB_DTYPE_F32, {h, r}),
      dh(PNB_DTYPE_F32, {m, r});
  using P = pnb_lora_project_params;
  auto project = params<P>();
  project.x = hidden.t, project.a = wide_a.t, project.h = low.t, project.x_blocks = blocks.list();
  refuses_lists<P>(context, "lora_project", pnb_lora_project, project, &P::x_blocks);
  P next = project;
  auto next_refused = [&](const char* what, auto&& change) {
    P first = project, changed = next;
    change(changed);
    first.next = &changed;
    refused(pnb_lora_project(context, &first), "lora_project", what);
  };
  next_refused("a next adapter of another size", [](P& p) { p.struct_size = 8; });
  next_refused("a next adapter of another x", [&](P& p) { p.x = residual.t; });
  next_refused("a next adapter of an x without lists", [&](P& p) { p.x_blocks = {}; });
  Tensor other_counts = blocks.counts;
  other_counts.t.data = other_counts.bytes.data();
  next_refused("a next adapter of lists with other counts", [&](P& p) { p.x_blocks.counts = other_counts.t; });
  next_refused("a next adapter without h", [](P& p) { p.h.data = nullptr; });
  using L = pnb_lora_gradients_params;
  auto down = params<L>();
  down.scaling = 2.0f, down.dy = y.t, down.x = hidden.t, down.h = low.t, down.a = wide_a.t, down.b = up.t, down.dh = dh.t,
  down.da = wide_da.t;
  down.db = d_up.t, down.x_blocks = blocks.list(), down.workspace = workspace;
  refuses_lists<L>(context, "lora_gradients", pnb_lora_gradients, down, &L::x_blocks);
  Tensor rows(PNB_DTYPE_F32, {m}), columns(PNB_DTYPE_F32, {n});
  L normed = down;
  normed.norm = {rows.t, rows.t, columns.t, columns.t};
  refused(pnb_lora_gradients(context, &normed), "lora_gradients", "a norm of compact columns");
  auto gradients = params<L>();
  gradients.scaling = 2.0f, gradients.dy = hidden.t, gradients.x = x.t, gradients.h = low.t, gradients.a = a.t, gradients.b = b.t;
  gradients.dh = dh.t, gradients.da = da.t, gradients.db = db.t, gradients.dy_blocks = blocks.list(),
  gradients.workspace = workspace;
  refuses_lists<L>(context, "lora_gradients", pnb_lora_gradients, gradients, &L::dy_blocks);
  L scaled = gradients, chain = gradients;
  scaled.scaling = 1.0f, chain.next = &scaled;
  refused(pnb_lora_gradients(context, &chain), "lora_gradients", "a next adapter of another scaling");
  refused(pnb_lora_gradients_workspace(context, &chain, &chain.workspace.bytes), "lora_gradients",
          "a query for a next adapter of another scaling");
}

void choices(pnb_context* context, const pnb_workspace& workspace) {
  const int64_t m = 150, n = 192, lists = 2, blocks = 3;
  Tensor x(PNB_DTYPE_F32, {m, n}), mask(PNB_DTYPE_U8, {m, n / 8}, 0.0), norms(PNB_DTYPE_F32, {n}),
      block_mass(PNB_DTYPE_F32, {lists, blocks});
  Tensor mass(PNB_DTYPE_F32, {n}), fired(PNB_DTYPE_F32, {n}), valid = ints({m});
  using M = pnb_activation_mass_params;
  auto a = params<M>();
  a.block_size = 64, a.x = x.t, a.norms = norms.t, a.valid_rows = valid.t, a.rows_per_list = 128, a.block_mass = block_mass.t;
  a.neuron_mass = mass.t, a.neuron_fired = fired.t, a.workspace = workspace;
  refuses<M>(context, "activation_mass", pnb_activation_mass, a,
             {{"x", &M::x, false, 1}, {"norms", &M::norms, true}, {"valid_rows", &M::valid_rows, true},
              {"block_mass", &M::block_mass, true}, {"neuron_mass", &M::neuron_mass, true},
              {"neuron_fired", &M::neuron_fired, true}});
  refuses_query(context, "activation_mass", pnb_activation_mass_workspace, a);
  M both = a;
  both.relu_mask = mask.t;
  refused(pnb_activation_mass(context, &both), "activation_mass", "x and a mask");
  refuses_value<M>(context, "activation_mass", pnb_activation_mass, a, "blocks of 48", [](M& p) { p.block_size = 48; });
  refuses_value<M>(context, "activation_mass", pnb_activation_mass, a, "blocks of 128 in 192", [](M& p) { p.block_size = 128; });
  refuses_value<M>(context, "activation_mass", pnb_activation_mass, a, "100 rows a list", [](M& p) { p.rows_per_list = 100; });
  refuses_value<M>(context, "activation_mass", pnb_activation_mass, a, "strided x", [](M& p) { p.x.stride[1] = 2; });
  M whole = a;
  whole.rows_per_list = INT64_MAX, whole.block_mass.shape[0] = 1;
  ok(pnb_activation_mass(context, &whole), "activation_mass with one list of any number of rows");

  const int64_t rows = 10, h = 12, r = 4;
  Tensor pooled(PNB_DTYPE_F32, {rows, h}), low(PNB_DTYPE_F32, {r, h}), units(PNB_DTYPE_F32, {blocks, r}),
      bias(PNB_DTYPE_F32, {blocks});
  Tensor scale(PNB_DTYPE_F32, {blocks}), scores(PNB_DTYPE_F32, {lists, blocks});
  using P = pnb_predict_mass_params;
  auto p = params<P>();
  p.units_per_score = 1, p.pooled = pooled.t, p.a = low.t, p.b = units.t, p.bias = bias.t, p.norms = scale.t, p.pooled_per_list = 5;
  p.scores = scores.t, p.workspace = workspace;
  refuses<P>(context, "predict_mass", pnb_predict_mass, p,
             {{"pooled", &P::pooled}, {"a", &P::a}, {"b", &P::b}, {"bias", &P::bias, true}, {"norms", &P::norms, true},
              {"scores", &P::scores}});
  refuses_query(context, "predict_mass", pnb_predict_mass_workspace, p);
  refuses_value<P>(context, "predict_mass", pnb_predict_mass, p, "0 units a score", [](P& q) { q.units_per_score = 0; });
  refuses_value<P>(context, "predict_mass", pnb_predict_mass, p, "2 units a score of 3", [](P& q) { q.units_per_score = 2; });
  refuses_value<P>(context, "predict_mass", pnb_predict_mass, p, "0 rows a list", [](P& q) { q.pooled_per_list = 0; });
  refuses_value<P>(context, "predict_mass", pnb_predict_mass, p, "no workspace", [](P& q) { q.workspace = {}; });
  Tensor deep(PNB_DTYPE_F32, {129, h}), deep_units(PNB_DTYPE_F32, {blocks, 129});
  P q = p;
  q.a = deep.t, q.b = deep_units.t;
  refused(pnb_predict_mass(context, &q), "predict_mass", "rank 129");

  Tensor one_list(PNB_DTYPE_F32, {1, blocks});
  using R = pnb_relative_mass_params;
  auto s = params<R>();
  s.block_size = 64, s.threshold = 0.05f, s.share = 0.9f, s.neuron_mass = mass.t, s.scores = one_list.t;
  refuses<R>(context, "relative_mass", pnb_relative_mass, s, {{"neuron_mass", &R::neuron_mass}, {"scores", &R::scores}});
  refuses_value<R>(context, "relative_mass", pnb_relative_mass, s, "blocks of 128 in 192", [](R& v) { v.block_size = 128; });
  refuses_value<R>(context, "relative_mass", pnb_relative_mass, s, "a negative threshold", [](R& v) { v.threshold = -1.0f; });
  refuses_value<R>(context, "relative_mass", pnb_relative_mass, s, "share 0", [](R& v) { v.share = 0.0f; });
  refuses_value<R>(context, "relative_mass", pnb_relative_mass, s, "share of NaN", [](R& v) { v.share = kNaN; });

  Tensor indices = ints(std::vector<int32_t>(lists * 2)), counts = ints({0, 0}), summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE});
  using S = pnb_select_blocks_params;
  auto c = params<S>();
  c.coverage = 0.9f, c.scores = scores.t, c.summary = summary.t;
  c.blocks.indices = {indices.bytes.data(), PNB_DTYPE_I32, 2, {lists, 2}, {2, 1}};
  c.blocks.counts = counts.t;
  refuses<S>(context, "select_blocks", pnb_select_blocks, c, {{"scores", &S::scores, false, 2}, {"summary", &S::summary, true}});
  refuses_value<S>(context, "select_blocks", pnb_select_blocks, c, "coverage 0", [](S& v) { v.coverage = 0.0f; });
  refuses_value<S>(context, "select_blocks", pnb_select_blocks, c, "coverage above 1", [](S& v) { v.coverage = 1.5f; });
  refuses_value<S>(context, "select_blocks", pnb_select_blocks, c, "coverage of NaN", [](S& v) { v.coverage = kNaN; });
  refuses_value<S>(context, "select_blocks", pnb_select_blocks, c, "no indices", [](S& v) { v.blocks.indices.data = nullptr; });
  refuses_value<S>(context, "select_blocks", pnb_select_blocks, c, "no counts", [](S& v) { v.blocks.counts.data = nullptr; });
  refuses_value<S>(context, "select_blocks", pnb_select_blocks, c, "one list too few", [](S& v) { v.blocks.indices.shape[0] = 1; });
  refuses_value<S>(context, "select_blocks", pnb_select_blocks, c, "more room than blocks",
                   [](S& v) { v.blocks.indices.shape[1] = 4; });
  refuses_value<S>(context, "select_blocks", pnb_select_blocks, c, "4097 blocks", [](S& v) { v.scores.shape[1] = 4097; });
}

void layers(pnb_context* context, const pnb_workspace& workspace) {
  const int64_t m = 6, h = 8, heads = 2, size = 4;
  Tensor x(PNB_DTYPE_F32, {m, h}), y(PNB_DTYPE_F32, {m, h}), gamma(PNB_DTYPE_F32, {h}), beta(PNB_DTYPE_F32, {h}),
      mean(PNB_DTYPE_F32, {m});
  Tensor rstd(PNB_DTYPE_F32, {m}), dx(PNB_DTYPE_F32, {m, h});
  using F = pnb_layer_norm_forward_params;
  auto f = params<F>();
  f.epsilon = 1e-5f, f.x = x.t, f.gamma = gamma.t, f.beta = beta.t, f.y = y.t, f.mean = mean.t, f.rstd = rstd.t;
  refuses<F>(context, "layer_norm_forward", pnb_layer_norm_forward, f,
             {{"x", &F::x}, {"gamma", &F::gamma}, {"beta", &F::beta}, {"y", &F::y}, {"mean", &F::mean}, {"rstd", &F::rstd}});
  Tensor pooled(PNB_DTYPE_F32, {3, h}), valid = ints({5});
  F means = f;
  means.pooled = pooled.t, means.valid_rows = valid.t, means.pool_rows = 2;
  refuses<F>(context, "layer_norm_forward", pnb_layer_norm_forward, means,
             {{"pooled", &F::pooled, true}, {"valid_rows", &F::valid_rows, true}});
  refuses_value<F>(context, "layer_norm_forward", pnb_layer_norm_forward, means, "means of 0 rows", [](F& p) { p.pool_rows = 0; });
  means.pool_rows = INT64_MAX, means.pooled.shape[0] = 1;
  ok(pnb_layer_norm_forward(context, &means), "layer_norm_forward with one mean of any number of rows");
  Tensor factor(PNB_DTYPE_F32, {2, h}), low(PNB_DTYPE_F32, {m, 2});
  auto project = params<pnb_lora_project_params>();
  project.x = y.t, project.a = factor.t, project.h = low.t;
  F projects = f;
  projects.project = &project;
  ok(pnb_layer_norm_forward(context, &projects), "layer_norm_forward that projects");
  project.x = x.t;
  refused(pnb_layer_norm_forward(context, &projects), "layer_norm_forward", "a projection of another x than y");
  project.x = y.t, project.h.data = nullptr;
  refused(pnb_layer_norm_forward(context, &projects), "layer_norm_forward", "a projection without h");
  using B = pnb_layer_norm_backward_params;
  auto b = params<B>();
  b.dy = y.t, b.x = x.t, b.mean = mean.t, b.rstd = rstd.t, b.gamma = gamma.t, b.residual = y.t, b.dx = dx.t;
  refuses<B>(context, "layer_norm_backward", pnb_layer_norm_backward, b,
             {{"dy", &B::dy}, {"x", &B::x}, {"mean", &B::mean}, {"rstd", &B::rstd}, {"gamma", &B::gamma},
              {"residual", &B::residual, true}, {"dx", &B::dx}});

  Tensor tokens = ints({0, 1, 2, 3, 4, 0}), positions = ints({0, 1, 2, 0, 1, 2}), table(PNB_DTYPE_F32, {5, h}),
         places(PNB_DTYPE_F32, {9, h});
  using E = pnb_embedding_params;
  auto e = params<E>();
  e.position_offset = 2, e.tokens = tokens.t, e.table = table.t, e.positions = positions.t, e.position_table = places.t, e.d = y.t;
  refuses<E>(context, "embedding", pnb_embedding, e,
             {{"tokens", &E::tokens}, {"table", &E::table, false, 1}, {"positions", &E::positions},
              {"position_table", &E::position_table, false, 1}, {"d", &E::d}});
  refuses_value<E>(context, "embedding", pnb_embedding, e, "positions below the table", [](E& p) { p.position_offset = -1; });
  refuses_value<E>(context, "embedding", pnb_embedding, e, "positions beyond the table", [](E& p) { p.position_offset = 7; });

  Tensor q(PNB_DTYPE_F32, {m, heads, size}), k(PNB_DTYPE_F32, {m, heads, size}), v(PNB_DTYPE_F32, {m, heads, size}),
      o(PNB_DTYPE_F32, {m, heads, size});
  Tensor lse(PNB_DTYPE_F32, {heads, m}), dq(PNB_DTYPE_F32, {m, heads, size}), dk(PNB_DTYPE_F32, {m, heads, size}),
      dv(PNB_DTYPE_F32, {m, heads, size});
  Tensor borders = ints({0, 2, 6});
  using A = pnb_attention_forward_params;
  auto a = params<A>();
  a.scale = 0.5f, a.q = q.t, a.k = k.t, a.v = v.t, a.o = o.t, a.lse = lse.t, a.cu_seqlens_q = borders.t, a.cu_seqlens_k = borders.t,
  a.max_seqlen = 4;
  refuses<A>(context, "attention_forward", pnb_attention_forward, a,
             {{"q", &A::q}, {"k", &A::k}, {"v", &A::v}, {"o", &A::o}, {"lse", &A::lse, true}, {"cu_seqlens_q", &A::cu_seqlens_q},
              {"cu_seqlens_k", &A::cu_seqlens_k}});
  using D = pnb_attention_backward_params;
  auto d = params<D>();
  d.scale = 0.5f, d.q = q.t, d.k = k.t, d.v = v.t, d.o = o.t, d.lse = lse.t, d.d_o = o.t, d.dq = dq.t, d.dk = dk.t, d.dv = dv.t;
  d.cu_seqlens = borders.t, d.max_seqlen = 4, d.workspace = workspace;
  refuses<D>(context, "attention_backward", pnb_attention_backward, d,
             {{"q", &D::q}, {"k", &D::k}, {"v", &D::v}, {"o", &D::o}, {"lse", &D::lse}, {"d_o", &D::d_o}, {"dq", &D::dq},
              {"dk", &D::dk, true}, {"dv", &D::dv}, {"cu_seqlens", &D::cu_seqlens, false, 1}});
  refuses_query(context, "attention_backward", pnb_attention_backward_workspace, d);
  for (std::vector<int32_t> wrong : {std::vector<int32_t>{0, 2, 7}, {1, 2, 6}, {0, 4, 2}, {0, -1, 6}}) {
    Tensor changed = ints(wrong);
    A p = a;
    p.cu_seqlens_q = changed.t;
    refused(pnb_attention_forward(context, &p), "attention_forward", "borders of queries out of range or order");
    p = a;
    p.cu_seqlens_k = changed.t;
    refused(pnb_attention_forward(context, &p), "attention_forward", "borders of keys out of range or order");
    D s = d;
    s.cu_seqlens = changed.t;
    refused(pnb_attention_backward(context, &s), "attention_backward", "borders out of range or order");
  }
  refuses_value<A>(context, "attention_forward", pnb_attention_forward, a, "a negative max_seqlen",
                   [](A& p) { p.max_seqlen = -1; });
  refuses_value<D>(context, "attention_backward", pnb_attention_backward, d, "a negative max_seqlen",
                   [](D& p) { p.max_seqlen = -1; });
  // Buffers are made for samples of so many rows.
  refuses_value<A>(context, "attention_forward", pnb_attention_forward, a, "a max_seqlen without end",
                   [](A& p) { p.max_seqlen = INT64_MAX; });
  refuses_value<D>(context, "attention_backward", pnb_attention_backward, d, "a max_seqlen without end",
                   [](D& p) { p.max_seqlen = INT64_MAX; });
  A any_length = a;
  any_length.max_seqlen = INT32_MAX;
  ok(pnb_attention_forward(context, &any_length), "attention_forward of samples of any length");
  D any_length_back = d;
  any_length_back.max_seqlen = INT32_MAX;
  ok(pnb_attention_backward(context, &any_length_back), "attention_backward of samples of any length");
}

// One member of the lists at a time, broken in every way that it can be.
template <typename P>
void refuses_lists(pnb_context* context, const char* op, pnb_status (*call)(pnb_context*, const P*), const P& valid,
                   bool transposed) {
  const struct {
    const char* name;
    pnb_tensor pnb_attention_blocks::*member;
    bool needed;
  } members[] = {{"indices", &pnb_attention_blocks::indices, false},
                 {"counts", &pnb_attention_blocks::counts, true},
                 {"t_indices", &pnb_attention_blocks::t_indices, transposed},
                 {"t_counts", &pnb_attention_blocks::t_counts, transposed},
                 {"order", &pnb_attention_blocks::order, true}};
  for (const auto& m : members) {
    auto broken = [&](const std::string& what, auto&& change) {
      P p = valid;
      change(p.blocks.*m.member);
      refused(call(context, &p), op, std::string("blocks.") + m.name + " " + what);
    };
    if (m.needed) broken("absent", [](pnb_tensor& t) { t.data = nullptr; });
    if (!m.needed && m.member != &pnb_attention_blocks::indices) continue;
    broken("in f32", [](pnb_tensor& t) { t.dtype = PNB_DTYPE_F32; });
    for (int i = 0; i < (valid.blocks.*m.member).rank; ++i) {
      broken("too large in dimension " + std::to_string(i), [&](pnb_tensor& t) { t.shape[i] += 1; });
      broken("too small in dimension " + std::to_string(i), [&](pnb_tensor& t) { t.shape[i] -= 1; });
      broken("strided in dimension " + std::to_string(i), [&](pnb_tensor& t) { t.stride[i] += 1; });
    }
  }
  for (int32_t size : {0, 32, 96, 256, -64}) {
    P p = valid;
    p.blocks.size = size;
    refused(call(context, &p), op, "blocks of " + std::to_string(size));
  }
}

// Two samples of three blocks and of one, in two heads.
struct ListedBatch {
  Samples samples{{0, 150, 160}, 170, 64};
  int64_t heads = 2, dim = 8;
  AttentionLists lists{samples, heads};
  Tensor q{PNB_DTYPE_F32, {samples.tokens, heads, dim}}, k{PNB_DTYPE_F32, {samples.tokens, heads, dim}};
  Tensor o{PNB_DTYPE_F32, {samples.tokens, heads, dim}}, lse{PNB_DTYPE_F32, {heads, samples.tokens}};
  Tensor borders = ints(samples.cu);
  Tensor mass{PNB_DTYPE_F32, {heads, lists.slots, lists.width}};

  ListedBatch() {
    Mask(samples, heads, [](int64_t, int64_t, int64_t i, int64_t j) { return i == j || j == 0; }).write(lists);
  }
};

void listed_attention(pnb_context* context, const pnb_workspace& workspace) {
  ListedBatch batch;
  using A = pnb_attention_forward_params;
  auto a = params<A>();
  a.scale = 0.5f, a.q = batch.q.t, a.k = batch.k.t, a.v = batch.k.t, a.o = batch.o.t, a.lse = batch.lse.t;
  a.cu_seqlens_q = a.cu_seqlens_k = batch.borders.t, a.max_seqlen = 150, a.blocks = batch.lists.blocks;
  ok(pnb_attention_forward(context, &a), "attention_forward with lists that work");
  refuses_lists<A>(context, "attention_forward", pnb_attention_forward, a, false);
  refuses_value<A>(context, "attention_forward", pnb_attention_forward, a, "more keys than queries with blocks",
                   [](A& p) { p.k.shape[0] = p.v.shape[0] = 200; });
  refuses_value<A>(context, "attention_forward", pnb_attention_forward, a, "lists too narrow for max_seqlen",
                   [](A& p) { p.max_seqlen = 257; });
  Tensor other = ints({0, 151, 161});
  A p = a;
  p.cu_seqlens_k = other.t, p.max_seqlen = 151;
  refused(pnb_attention_forward(context, &p), "attention_forward", "other borders of keys than of queries with blocks");

  Tensor dq(PNB_DTYPE_F32, {batch.samples.tokens, batch.heads, batch.dim}), dk = dq, dv = dq;
  dk.t.data = dk.bytes.data(), dv.t.data = dv.bytes.data();
  using D = pnb_attention_backward_params;
  auto d = params<D>();
  d.scale = 0.5f, d.q = a.q, d.k = a.k, d.v = a.v, d.o = a.o, d.lse = a.lse, d.d_o = a.o, d.dq = dq.t, d.dk = dk.t, d.dv = dv.t;
  d.cu_seqlens = batch.borders.t, d.max_seqlen = 150, d.blocks = batch.lists.blocks, d.workspace = workspace;
  ok(pnb_attention_backward(context, &d), "attention_backward with lists that work");
  refuses_lists<D>(context, "attention_backward", pnb_attention_backward, d, true);
  // What a workspace query describes is looked at too.
  D asked = d;
  asked.blocks.order.shape[1] = 5;
  uint64_t bytes = 0;
  refused(pnb_attention_backward_workspace(context, &asked, &bytes), "attention_backward", "query with a short order");

  // Lists are data: the CPU looks at them. Slot 2 is the last block of the first sample; it lists blocks 0 and 2.
  auto wrong = [&](Tensor& t, int64_t at, int32_t value, bool forward, const std::string& what) {
    int32_t before = std::exchange(AttentionLists::at(t)[at], value);
    if (forward) refused(pnb_attention_forward(context, &a), "attention_forward", what);
    else refused(pnb_attention_backward(context, &d), "attention_backward", what);
    AttentionLists::at(t)[at] = before;
  };
  int64_t width = batch.lists.width;
  wrong(batch.lists.counts, 2, -1, true, "a negative count");
  wrong(batch.lists.counts, 2, static_cast<int32_t>(width) + 1, true, "a count of more than there is room for");
  wrong(batch.lists.indices, 2 * width, -1, true, "a negative block");
  wrong(batch.lists.indices, 2 * width, 2, true, "a block twice");
  wrong(batch.lists.indices, 2 * width + 1, 3, true, "a block after the query block");
  wrong(batch.lists.t_counts, 0, static_cast<int32_t>(width) + 1, false, "a count of more than there is room for");
  wrong(batch.lists.t_indices, 2 * width, 1, false, "a query block before the key block");
  wrong(batch.lists.t_indices, 2 * width, 3, false, "a query block of no sample");
  wrong(batch.lists.t_indices, 1, 0, false, "query blocks out of order");
}

void attention_choices(pnb_context* context, const pnb_workspace& workspace) {
  ListedBatch batch;
  using M = pnb_attention_mass_params;
  auto m = params<M>();
  m.scale = 0.5f, m.q = batch.q.t, m.k = batch.k.t, m.lse = batch.lse.t, m.cu_seqlens = batch.borders.t, m.max_seqlen = 150;
  m.size = 64, m.query_stride = 3, m.mass = batch.mass.t;
  // More borders than samples, and a wider matrix, are a different batch's: other slots, other strides.
  refuses<M>(context, "attention_mass", pnb_attention_mass, m,
             {{"q", &M::q}, {"k", &M::k}, {"lse", &M::lse}, {"cu_seqlens", &M::cu_seqlens}, {"mass", &M::mass}});
  for (int32_t size : {0, 32, 96}) {
    M p = m;
    p.size = size;
    refused(pnb_attention_mass(context, &p), "attention_mass", "blocks of " + std::to_string(size));
  }
  refuses_value<M>(context, "attention_mass", pnb_attention_mass, m, "query_stride 0", [](M& p) { p.query_stride = 0; });
  refuses_value<M>(context, "attention_mass", pnb_attention_mass, m, "a negative max_seqlen", [](M& p) { p.max_seqlen = -1; });
  refuses_value<M>(context, "attention_mass", pnb_attention_mass, m, "a max_seqlen without end",
                   [](M& p) { p.max_seqlen = INT64_MAX; });
  refuses_value<M>(context, "attention_mass", pnb_attention_mass, m, "a matrix too narrow for max_seqlen",
                   [](M& p) { p.max_seqlen = 257; });
  refuses_value<M>(context, "attention_mass", pnb_attention_mass, m, "a sample longer than max_seqlen",
                   [](M& p) { p.max_seqlen = 149; });

  const int64_t r = 8, hidden = 12;
  Tensor pooled(PNB_DTYPE_F32, {6, hidden}), low(PNB_DTYPE_BF16, {2, batch.heads, r, hidden}),
      bias(PNB_DTYPE_F32, {2, batch.heads, r});
  Tensor distance(PNB_DTYPE_F32, {batch.heads, batch.lists.width});
  using P = pnb_predict_attention_params;
  auto p = params<P>();
  p.pool_rows = 32, p.pooled = pooled.t, p.a = low.t, p.bias = bias.t, p.distance = distance.t, p.cu_seqlens = batch.borders.t;
  p.tokens = batch.samples.tokens, p.max_seqlen = 150, p.size = 64, p.mass = batch.mass.t, p.workspace = workspace;
  refuses<P>(context, "predict_attention", pnb_predict_attention, p,
             {{"pooled", &P::pooled}, {"a", &P::a}, {"bias", &P::bias}, {"distance", &P::distance}, {"cu_seqlens", &P::cu_seqlens},
              {"mass", &P::mass}});
  refuses_query(context, "predict_attention", pnb_predict_attention_workspace, p);
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "means of 0 rows", [](P& v) { v.pool_rows = 0; });
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "means of 48 rows", [](P& v) { v.pool_rows = 48; });
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "blocks of 96", [](P& v) { v.size = 96; });
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "negative tokens", [](P& v) { v.tokens = -1; });
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "tokens without end",
                   [](P& v) { v.tokens = INT64_MAX; });
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "other tokens", [](P& v) { v.tokens = 128; });
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "a negative max_seqlen",
                   [](P& v) { v.max_seqlen = -1; });
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "no workspace", [](P& v) { v.workspace = {}; });
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "rank 4",
                   [](P& v) { v.a.shape[2] = v.bias.shape[2] = 4; });
  refuses_value<P>(context, "predict_attention", pnb_predict_attention, p, "a in f32", [](P& v) { v.a.dtype = PNB_DTYPE_F32; });
  Tensor deep(PNB_DTYPE_BF16, {2, batch.heads, 72, hidden}), deep_bias(PNB_DTYPE_F32, {2, batch.heads, 72});
  P q = p;
  q.a = deep.t, q.bias = deep_bias.t;
  refused(pnb_predict_attention(context, &q), "predict_attention", "rank 72");

  Tensor table(PNB_DTYPE_F32, {batch.heads, batch.lists.width, batch.lists.width}), budgets(PNB_DTYPE_F32, {batch.heads}),
      summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE});
  budgets.set(0, 0.5), budgets.set(1, 1.0);
  using S = pnb_select_attention_params;
  auto s = params<S>();
  s.coverage = 0.9f, s.mass = batch.mass.t, s.budgets = budgets.t, s.cu_seqlens = batch.borders.t, s.tokens = batch.samples.tokens;
  s.max_seqlen = 150, s.blocks = batch.lists.blocks, s.summary = summary.t, s.workspace = workspace;
  refuses<S>(context, "select_attention", pnb_select_attention, s,
             {{"mass", &S::mass}, {"budgets", &S::budgets, true}, {"cu_seqlens", &S::cu_seqlens}, {"summary", &S::summary, true}});
  S by_table = s;
  by_table.mass = {}, by_table.table = table.t;
  refuses<S>(context, "select_attention", pnb_select_attention, by_table, {{"table", &S::table}});
  refuses_query(context, "select_attention", pnb_select_attention_workspace, s);
  refuses_lists<S>(context, "select_attention", pnb_select_attention, s, true);
  S both = s;
  both.table = table.t;
  refused(pnb_select_attention(context, &both), "select_attention", "mass and table");
  refuses_value<S>(context, "select_attention", pnb_select_attention, s, "no indices",
                   [](S& v) { v.blocks.indices.data = nullptr; });
  refuses_value<S>(context, "select_attention", pnb_select_attention, s, "coverage 0", [](S& v) { v.coverage = 0.0f; });
  refuses_value<S>(context, "select_attention", pnb_select_attention, s, "coverage above 1", [](S& v) { v.coverage = 1.5f; });
  refuses_value<S>(context, "select_attention", pnb_select_attention, s, "coverage of NaN", [](S& v) { v.coverage = kNaN; });
  refuses_value<S>(context, "select_attention", pnb_select_attention, s, "other tokens", [](S& v) { v.tokens = 1000; });
  refuses_value<S>(context, "select_attention", pnb_select_attention, s, "a sample longer than max_seqlen",
                   [](S& v) { v.max_seqlen = 149; });
  for (float budget : {0.0f, -0.5f, 1.5f, kNaN}) {
    budgets.set(1, budget);
    refused(pnb_select_attention(context, &s), "select_attention", "a budget of " + std::to_string(budget));
  }
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  Workspace workspace;
  contexts(context);
  memory(context);
  products(context, workspace.w);
  adapters(context, workspace.w);
  sparsity(context, workspace.w);
  choices(context, workspace.w);
  layers(context, workspace.w);
  listed_attention(context, workspace.w);
  attention_choices(context, workspace.w);
  pnb_context_destroy(context);
  return finish("misuse_test");
}
