// Every function of the C ABI refuses what is wrong with a text that names the operation, and computes nothing.
// Each operation starts from arguments that work; then one thing at a time is broken.
#include <cstring>
#include <limits>

#include "harness.h"

using namespace test;

namespace {

void refused(pnb_status status, const char* op, const std::string& what) {
  std::string text = pnb_last_error();
  expect(status == PNB_ERROR_INVALID_ARGUMENT, std::string(op) + ", " + what + ": expected a refusal, found status " +
                                                   std::to_string(status) + (status == PNB_OK ? "" : " " + text));
  if (status != PNB_OK) expect(text.rfind(op, 0) == 0 && text.size() > std::strlen(op) + 10, std::string(op) + ", " + what + ": text is '" + text + "'");
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
void refuses_value(pnb_context* context, const char* op, pnb_status (*call)(pnb_context*, const P*), const P& valid, const char* what,
                   void (*change)(P&)) {
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
  refuses<pnb_convert_params>(context, "convert", pnb_convert, convert, {{"s", &pnb_convert_params::s}, {"d", &pnb_convert_params::d}});
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
  Tensor a(PNB_DTYPE_F32, {m, k}), b(PNB_DTYPE_F32, {k, n}), w(PNB_DTYPE_F32, {vocab, k}), d(PNB_DTYPE_F32, {m, n}), bias(PNB_DTYPE_F32, {n});
  Tensor residual(PNB_DTYPE_F32, {m, n}), mask(PNB_DTYPE_U8, {m, (n + 7) / 8}, 0.0), h(PNB_DTYPE_F32, {m, r}), right(PNB_DTYPE_F32, {n, r});

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
             {{"a", &G::a}, {"b", &G::b}, {"bias", &G::bias, true}, {"residual", &G::residual, true}, {"relu_mask", &G::relu_mask, true}, {"d", &G::d}});
  refuses_query(context, "gemm", pnb_gemm_workspace, g);
  refuses_value<G>(context, "gemm", pnb_gemm, g, "epilogue 3", [](G& p) { p.epilogue = 3; });
  refuses_value<G>(context, "gemm", pnb_gemm, g, "DRELU without mask", [](G& p) { p.epilogue = PNB_EPILOGUE_DRELU, p.relu_mask.data = nullptr; });
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
  l.x = a.t, l.weight = weight, l.rows = rows.t, l.targets = targets.t, l.grad_scale = scale.t, l.loss = loss.t, l.dx = dx.t, l.workspace = workspace;
  refuses<L>(context, "linear_cross_entropy", pnb_linear_cross_entropy, l,
             {{"x", &L::x}, {"rows", &L::rows}, {"targets", &L::targets}, {"grad_scale", &L::grad_scale}, {"loss", &L::loss}, {"dx", &L::dx, true}});
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
  Tensor x(PNB_DTYPE_F32, {m, in}), a(PNB_DTYPE_F32, {r, in}), b(PNB_DTYPE_F32, {out, r}), h(PNB_DTYPE_F32, {m, r}), dy(PNB_DTYPE_F32, {m, out});
  Tensor dh(PNB_DTYPE_F32, {m, r}), da(PNB_DTYPE_F32, {r, in}), db(PNB_DTYPE_F32, {out, r});
  using P = pnb_lora_project_params;
  auto p = params<P>();
  p.x = x.t, p.a = a.t, p.h = h.t;
  refuses<P>(context, "lora_project", pnb_lora_project, p, {{"x", &P::x}, {"a", &P::a}, {"h", &P::h}});
  refuses_value<P>(context, "lora_project", pnb_lora_project, p, "dropout -1", [](P& q) { q.dropout.p = -1.0f; });
  using G = pnb_lora_gradients_params;
  auto g = params<G>();
  g.scaling = 2.0f, g.dy = dy.t, g.x = x.t, g.h = h.t, g.a = a.t, g.b = b.t, g.dh = dh.t, g.da = da.t, g.db = db.t, g.workspace = workspace;
  refuses<G>(context, "lora_gradients", pnb_lora_gradients, g,
             {{"dy", &G::dy}, {"x", &G::x}, {"h", &G::h}, {"a", &G::a}, {"b", &G::b}, {"dh", &G::dh}, {"da", &G::da}, {"db", &G::db}});
  refuses_query(context, "lora_gradients", pnb_lora_gradients_workspace, g);
  Tensor param(PNB_DTYPE_F32, {n}), grad(PNB_DTYPE_F32, {n}), first(PNB_DTYPE_F32, {n}), second(PNB_DTYPE_F32, {n}), norm(PNB_DTYPE_F32, {1});
  Tensor schedule(PNB_DTYPE_F32, {3});
  for (int i = 0; i < 3; ++i) schedule.set(i, 0.1);
  for (int i = 0; i < n; ++i) second.set(i, 0.0);
  using A = pnb_adamw_params;
  auto w = params<A>();
  w.beta1 = 0.9f, w.beta2 = 0.999f, w.epsilon = 1e-8f, w.max_norm = 1.0f;
  w.param = param.t, w.grad = grad.t, w.m = first.t, w.v = second.t, w.schedule = schedule.t, w.grad_norm = norm.t, w.workspace = workspace;
  refuses<A>(context, "adamw", pnb_adamw, w,
             {{"param", &A::param}, {"grad", &A::grad}, {"m", &A::m}, {"v", &A::v}, {"schedule", &A::schedule}, {"grad_norm", &A::grad_norm}});
  refuses_query(context, "adamw", pnb_adamw_workspace, w);
  refuses_value<A>(context, "adamw", pnb_adamw, w, "beta1 of 1", [](A& q) { q.beta1 = 1.0f; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "beta2 of NaN", [](A& q) { q.beta2 = kNaN; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "epsilon 0", [](A& q) { q.epsilon = 0.0f; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "a negative decay", [](A& q) { q.weight_decay = -1.0f; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "max_norm of NaN", [](A& q) { q.max_norm = kNaN; });
  refuses_value<A>(context, "adamw", pnb_adamw, w, "no workspace", [](A& q) { q.workspace = {}; });
}

void layers(pnb_context* context, const pnb_workspace& workspace) {
  const int64_t m = 6, h = 8, heads = 2, size = 4;
  Tensor x(PNB_DTYPE_F32, {m, h}), y(PNB_DTYPE_F32, {m, h}), gamma(PNB_DTYPE_F32, {h}), beta(PNB_DTYPE_F32, {h}), mean(PNB_DTYPE_F32, {m});
  Tensor rstd(PNB_DTYPE_F32, {m}), dx(PNB_DTYPE_F32, {m, h});
  using F = pnb_layer_norm_forward_params;
  auto f = params<F>();
  f.epsilon = 1e-5f, f.x = x.t, f.gamma = gamma.t, f.beta = beta.t, f.y = y.t, f.mean = mean.t, f.rstd = rstd.t;
  refuses<F>(context, "layer_norm_forward", pnb_layer_norm_forward, f,
             {{"x", &F::x}, {"gamma", &F::gamma}, {"beta", &F::beta}, {"y", &F::y}, {"mean", &F::mean}, {"rstd", &F::rstd}});
  using B = pnb_layer_norm_backward_params;
  auto b = params<B>();
  b.dy = y.t, b.x = x.t, b.mean = mean.t, b.rstd = rstd.t, b.gamma = gamma.t, b.residual = y.t, b.dx = dx.t;
  refuses<B>(context, "layer_norm_backward", pnb_layer_norm_backward, b,
             {{"dy", &B::dy}, {"x", &B::x}, {"mean", &B::mean}, {"rstd", &B::rstd}, {"gamma", &B::gamma}, {"residual", &B::residual, true}, {"dx", &B::dx}});

  Tensor tokens = ints({0, 1, 2, 3, 4, 0}), positions = ints({0, 1, 2, 0, 1, 2}), table(PNB_DTYPE_F32, {5, h}), places(PNB_DTYPE_F32, {9, h});
  using E = pnb_embedding_params;
  auto e = params<E>();
  e.position_offset = 2, e.tokens = tokens.t, e.table = table.t, e.positions = positions.t, e.position_table = places.t, e.d = y.t;
  refuses<E>(context, "embedding", pnb_embedding, e,
             {{"tokens", &E::tokens}, {"table", &E::table, false, 1}, {"positions", &E::positions}, {"position_table", &E::position_table, false, 1}, {"d", &E::d}});
  refuses_value<E>(context, "embedding", pnb_embedding, e, "positions below the table", [](E& p) { p.position_offset = -1; });
  refuses_value<E>(context, "embedding", pnb_embedding, e, "positions beyond the table", [](E& p) { p.position_offset = 7; });

  Tensor q(PNB_DTYPE_F32, {m, heads, size}), k(PNB_DTYPE_F32, {m, heads, size}), v(PNB_DTYPE_F32, {m, heads, size}), o(PNB_DTYPE_F32, {m, heads, size});
  Tensor lse(PNB_DTYPE_F32, {heads, m}), dq(PNB_DTYPE_F32, {m, heads, size}), dk(PNB_DTYPE_F32, {m, heads, size}), dv(PNB_DTYPE_F32, {m, heads, size});
  Tensor borders = ints({0, 2, 6});
  using A = pnb_attention_forward_params;
  auto a = params<A>();
  a.scale = 0.5f, a.q = q.t, a.k = k.t, a.v = v.t, a.o = o.t, a.lse = lse.t, a.cu_seqlens_q = borders.t, a.cu_seqlens_k = borders.t, a.max_seqlen = 4;
  refuses<A>(context, "attention_forward", pnb_attention_forward, a,
             {{"q", &A::q}, {"k", &A::k}, {"v", &A::v}, {"o", &A::o}, {"lse", &A::lse, true}, {"cu_seqlens_q", &A::cu_seqlens_q}, {"cu_seqlens_k", &A::cu_seqlens_k}});
  using D = pnb_attention_backward_params;
  auto d = params<D>();
  d.scale = 0.5f, d.q = q.t, d.k = k.t, d.v = v.t, d.o = o.t, d.lse = lse.t, d.d_o = o.t, d.dq = dq.t, d.dk = dk.t, d.dv = dv.t;
  d.cu_seqlens = borders.t, d.max_seqlen = 4, d.workspace = workspace;
  refuses<D>(context, "attention_backward", pnb_attention_backward, d,
             {{"q", &D::q}, {"k", &D::k}, {"v", &D::v}, {"o", &D::o}, {"lse", &D::lse}, {"d_o", &D::d_o}, {"dq", &D::dq}, {"dk", &D::dk}, {"dv", &D::dv}, {"cu_seqlens", &D::cu_seqlens, false, 1}});
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
  refuses_value<A>(context, "attention_forward", pnb_attention_forward, a, "a negative max_seqlen", [](A& p) { p.max_seqlen = -1; });
  refuses_value<D>(context, "attention_backward", pnb_attention_backward, d, "a negative max_seqlen", [](D& p) { p.max_seqlen = -1; });
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  Workspace workspace;
  contexts(context);
  memory(context);
  products(context, workspace.w);
  adapters(context, workspace.w);
  layers(context, workspace.w);
  pnb_context_destroy(context);
  return finish("misuse_test");
}
