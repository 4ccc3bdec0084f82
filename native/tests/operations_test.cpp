// LayerNorm, LoRA, cross-entropy, embedding and AdamW against double.
#include <cstring>

#include "harness.h"

using namespace test;

namespace {

void layer_norm(pnb_context* context, int32_t x_dtype, int32_t dtype, int64_t m, int64_t h, bool with_residual) {
  std::string what = std::string("layer norm ") + name(dtype) + " of " + name(x_dtype) + " " + std::to_string(m) + " x " + std::to_string(h);
  Tensor x(x_dtype, {m, h}, 3.0), gamma(PNB_DTYPE_F32, {h}), beta(PNB_DTYPE_F32, {h}), y(dtype, {m, h}, 0.0);
  Tensor mean(PNB_DTYPE_F32, {m}, 0.0), rstd(PNB_DTYPE_F32, {m}, 0.0), dy(dtype, {m, h}), residual(dtype, {m, h}),
      dx(dtype, {m, h}, 0.0);
  auto f = params<pnb_layer_norm_forward_params>();
  f.epsilon = 1e-5f;
  f.x = x.t, f.gamma = gamma.t, f.beta = beta.t, f.y = y.t, f.mean = mean.t, f.rstd = rstd.t;
  Tensor a(PNB_DTYPE_F32, {3, h}), low(PNB_DTYPE_F32, {m, 3}, 0.0);
  auto project = params<pnb_lora_project_params>();
  project.x = y.t, project.a = a.t, project.h = low.t;
  f.project = &project;
  ok(pnb_layer_norm_forward(context, &f), what);
  std::vector<double> projected(m * 3);
  for (int64_t i = 0; i < m * h; ++i) {
    for (int64_t r = 0; r < 3; ++r) projected[i / h * 3 + r] += y.at(i) * a.at(r * h + i % h);
  }
  close(low.values(), projected, PNB_DTYPE_F32, what + " projected");
  auto b = params<pnb_layer_norm_backward_params>();
  b.dy = dy.t, b.x = x.t, b.mean = mean.t, b.rstd = rstd.t, b.gamma = gamma.t, b.dx = dx.t;
  if (with_residual) b.residual = residual.t;
  ok(pnb_layer_norm_backward(context, &b), what);
  std::vector<double> expected(m * h), gradient(m * h);
  auto normalised = [&](const std::vector<double>& row) {
    double centre = 0, variance = 0;
    for (double value : row) centre += value / h;
    for (double value : row) variance += (value - centre) * (value - centre) / h;
    std::vector<double> result(h);
    for (int64_t j = 0; j < h; ++j) result[j] = (row[j] - centre) / std::sqrt(variance + 1e-5) * gamma.at(j) + beta.at(j);
    return result;
  };
  for (int64_t i = 0; i < m; ++i) {
    std::vector<double> row(h);
    for (int64_t j = 0; j < h; ++j) row[j] = x.at(i * h + j);
    std::vector<double> out = normalised(row);
    std::copy(out.begin(), out.end(), expected.begin() + i * h);
    for (int64_t j = 0; j < h; ++j) {  // differences of the reference: an independent derivation
      std::vector<double> up = row, down = row;
      up[j] += 1e-5, down[j] -= 1e-5;
      std::vector<double> high = normalised(up), low = normalised(down);
      double sum = 0;
      for (int64_t k = 0; k < h; ++k) sum += dy.at(i * h + k) * (high[k] - low[k]) / 2e-5;
      gradient[i * h + j] = sum + (with_residual ? residual.at(i * h + j) : 0.0);
    }
  }
  close(y.values(), expected, dtype, what + " forward");
  close(dx.values(), gradient, dtype, what + " backward", 2e-5);
}

void lora(pnb_context* context, int32_t x_dtype, int32_t dtype, int64_t m, int64_t in, int64_t out, int64_t r) {
  std::string what = std::string("lora ") + name(dtype) + ", x " + name(x_dtype) + ", m " + std::to_string(m) + " in " +
                     std::to_string(in) + " out " + std::to_string(out) + " r " + std::to_string(r);
  Tensor x(x_dtype, {m, in}), dy(dtype, {m, out}), a(PNB_DTYPE_F32, {r, in}), b(PNB_DTYPE_F32, {out, r});
  Tensor h(PNB_DTYPE_F32, {m, r}, 0.0), dh(PNB_DTYPE_F32, {m, r}, 0.0), da(PNB_DTYPE_F32, {r, in}), db(PNB_DTYPE_F32, {out, r});
  std::vector<double> da_expected = da.values(), db_expected = db.values();
  auto f = params<pnb_lora_project_params>();
  f.x = x.t, f.a = a.t, f.h = h.t;
  ok(pnb_lora_project(context, &f), what);
  auto g = params<pnb_lora_gradients_params>();
  g.scaling = 1.5f;
  g.dy = dy.t, g.x = x.t, g.h = h.t, g.a = a.t, g.b = b.t, g.dh = dh.t, g.da = da.t, g.db = db.t;
  ok(pnb_lora_gradients_workspace(context, &g, &g.workspace.bytes), what);
  std::vector<float> workspace(g.workspace.bytes / sizeof(float));
  g.workspace.data = workspace.data();
  ok(pnb_lora_gradients(context, &g), what);
  std::vector<double> h_expected(m * r), dh_expected(m * r);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < r; ++j) {
      for (int64_t k = 0; k < in; ++k) h_expected[i * r + j] += x.at(i * in + k) * a.at(j * in + k);
      for (int64_t o = 0; o < out; ++o) dh_expected[i * r + j] += 1.5 * dy.at(i * out + o) * b.at(o * r + j);
      for (int64_t k = 0; k < in; ++k) da_expected[j * in + k] += dh_expected[i * r + j] * x.at(i * in + k);
      for (int64_t o = 0; o < out; ++o) db_expected[o * r + j] += 1.5 * dy.at(i * out + o) * h_expected[i * r + j];
    }
  }
  close(h.values(), h_expected, PNB_DTYPE_F32, what + " h");
  close(dh.values(), dh_expected, PNB_DTYPE_F32, what + " dh");
  close(da.values(), da_expected, PNB_DTYPE_F32, what + " da");
  close(db.values(), db_expected, PNB_DTYPE_F32, what + " db");
}

void dropout(pnb_context* context) {
  int64_t m = 70, in = 300;
  float p = 0.25f;
  // With A the identity, h is dropout(x) itself; with x = 1 a kept element shows as 1 / (1 - p).
  Tensor x(PNB_DTYPE_F32, {m, in}), a(PNB_DTYPE_F32, {in, in}), h(PNB_DTYPE_F32, {m, in}, 0.0);
  for (int64_t i = 0; i < m * in; ++i) x.set(i, 1.0);
  for (int64_t i = 0; i < in * in; ++i) a.set(i, i % (in + 1) == 0 ? 1.0 : 0.0);
  uint64_t state[2] = {99, 3};
  auto f = params<pnb_lora_project_params>();
  f.x = x.t, f.a = a.t, f.h = h.t;
  f.dropout = {p, 5, {state, PNB_DTYPE_U64, 1, {2}, {1}}};
  ok(pnb_lora_project(context, &f), "dropout");
  double kept = 0;
  bool two_values = true;
  for (double value : h.values()) {
    kept += value > 0;
    two_values = two_values && (value == 0 || std::fabs(value - 1 / (1 - p)) < 1e-6);
  }
  expect(two_values, "dropout: elements are zero or scaled");
  double share = kept / (m * in);
  expect(std::fabs(share - (1 - p)) < 4 * std::sqrt(p * (1 - p) / (m * in)), "dropout: kept share " + std::to_string(share));
  // The backward's draw is the same: dropout(dh * A) with dh = 1, A = identity.
  Tensor dx(PNB_DTYPE_F32, {m, in}, 0.0), zero(PNB_DTYPE_F32, {m, 1}), row(PNB_DTYPE_F32, {1, in});
  for (int64_t i = 0; i < m; ++i) zero.set(i, 0.0);
  pnb_low_rank term{x.t, a.t, 0, 1.0f, 0, f.dropout};
  term.h = x.t;
  auto g = params<pnb_gemm_params>();
  g.a = zero.t, g.b = row.t, g.d = dx.t, g.low_rank = &term, g.low_rank_count = 1;
  ok(pnb_gemm(context, &g), "dropout backward");
  close(dx.values(), h.values(), PNB_DTYPE_F32, "dropout: forward and backward draw the same mask");
}

void cross_entropy(pnb_context* context, int32_t dtype, int64_t m, int64_t hidden, int64_t vocab, std::vector<int32_t> rows) {
  std::string what = std::string("cross-entropy ") + name(dtype) + " rows " + std::to_string(rows.size()) + " vocab " +
                     std::to_string(vocab);
  Tensor x(dtype, {m, hidden}), w(dtype, {vocab, hidden}, 0.3), dx(dtype, {m, hidden}, 0.0), loss(PNB_DTYPE_F32, {1}),
      scale(PNB_DTYPE_F32, {1});
  std::vector<int32_t> wanted;
  for (size_t i = 0; i < rows.size(); ++i) wanted.push_back(static_cast<int32_t>(generator()() % vocab));
  Tensor row_indices = ints(rows), targets = ints(wanted);
  auto wp = params<pnb_weight_params>();
  wp.dtype = dtype, wp.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD, wp.parts = &w.t, wp.part_count = 1;
  ok(pnb_weight_storage(context, &wp, &wp.storage_bytes), what);
  std::vector<char> storage(wp.storage_bytes + 256);
  wp.storage = storage.data() + (256 - reinterpret_cast<uintptr_t>(storage.data()) % 256);
  pnb_weight* weight = nullptr;
  ok(pnb_weight_create(context, &wp, &weight), what);
  double before = loss.at(0);
  auto p = params<pnb_linear_cross_entropy_params>();
  p.x = x.t, p.weight = weight, p.rows = row_indices.t, p.targets = targets.t, p.grad_scale = scale.t, p.loss = loss.t, p.dx = dx.t;
  ok(pnb_linear_cross_entropy_workspace(context, &p, &p.workspace.bytes), what);
  auto planned = p;
  pnb_weight* description = nullptr;
  wp.storage = nullptr;
  ok(pnb_weight_create(context, &wp, &description), what);
  planned.weight = description;
  for (pnb_tensor* t : {&planned.x, &planned.rows, &planned.targets, &planned.grad_scale, &planned.loss, &planned.dx}) {
    t->data = nullptr;
  }
  ok(pnb_linear_cross_entropy_workspace(context, &planned, &planned.workspace.bytes), what);
  expect(planned.workspace.bytes == p.workspace.bytes, what + ": a description asks for another workspace than its weight");
  pnb_weight_destroy(description);
  std::vector<char> workspace(p.workspace.bytes + 256);
  p.workspace.data = workspace.data() + (256 - reinterpret_cast<uintptr_t>(workspace.data()) % 256);
  ok(pnb_linear_cross_entropy(context, &p), what);
  double expected = 0;
  std::vector<double> gradient(m * hidden);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<double> z(vocab);
    double sum = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      for (int64_t k = 0; k < hidden; ++k) z[v] += x.at(rows[i] * hidden + k) * w.at(v * hidden + k);
      sum += std::exp(z[v]);
    }
    expected += std::log(sum) - z[wanted[i]];
    for (int64_t v = 0; v < vocab; ++v) {
      double g = scale.at(0) * (std::exp(z[v]) / sum - (v == wanted[i]));
      for (int64_t k = 0; k < hidden; ++k) gradient[rows[i] * hidden + k] += g * w.at(v * hidden + k);
    }
  }
  close({loss.at(0) - before}, {expected}, PNB_DTYPE_F32, what + " loss", 1e-5);
  close(dx.values(), gradient, dtype, what + " dx", dtype == PNB_DTYPE_BF16 ? 2e-3 : 5e-6);
  pnb_weight_destroy(weight);
}

void embedding(pnb_context* context, int32_t dtype) {
  int64_t m = 7, h = 33;
  Tensor table(dtype, {11, h}), positions_table(PNB_DTYPE_F32, {9, h}), d(dtype, {m, h}, 0.0);
  std::vector<int32_t> tokens{0, 10, 3, 3, 7, 1, 2}, positions{0, 1, 2, 0, 1, 2, 3};
  Tensor t = ints(tokens), q = ints(positions);
  auto p = params<pnb_embedding_params>();
  p.position_offset = 2;
  p.tokens = t.t, p.table = table.t, p.positions = q.t, p.position_table = positions_table.t, p.d = d.t;
  ok(pnb_embedding(context, &p), "embedding");
  std::vector<double> expected;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < h; ++j) {
      expected.push_back(table.at(tokens[i] * h + j) + positions_table.at((positions[i] + 2) * h + j));
    }
  }
  close(d.values(), expected, dtype, "embedding");
  std::vector<char> before = d.bytes;
  reinterpret_cast<int32_t*>(t.bytes.data())[4] = 11;
  expect(pnb_embedding(context, &p) == PNB_ERROR_INVALID_ARGUMENT, "embedding: a token outside the table is refused");
  expect(d.bytes == before, "embedding: nothing is written then");
}

void adamw(pnb_context* context, float max_norm, float weight_decay) {
  int64_t n = 9001;
  Tensor param(PNB_DTYPE_F32, {n}), grad(PNB_DTYPE_F32, {n}), m(PNB_DTYPE_F32, {n}), v(PNB_DTYPE_F32, {n}),
      schedule(PNB_DTYPE_F32, {3}), norm(PNB_DTYPE_F32, {1}, 0.0);
  for (int64_t i = 0; i < n; ++i) m.set(i, 0.0), v.set(i, 0.0);
  std::vector<double> p_expected = param.values(), m_expected(n), v_expected(n);
  auto p = params<pnb_adamw_params>();
  p.beta1 = 0.9f, p.beta2 = 0.999f, p.epsilon = 1e-8f, p.weight_decay = weight_decay, p.max_norm = max_norm;
  p.param = param.t, p.grad = grad.t, p.m = m.t, p.v = v.t, p.schedule = schedule.t, p.grad_norm = norm.t;
  ok(pnb_adamw_workspace(context, &p, &p.workspace.bytes), "adamw");
  std::vector<double> workspace(p.workspace.bytes / 8 + 1);
  p.workspace.data = workspace.data();
  for (int step = 1; step <= 5; ++step) {
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) grad.set(i, grad.at(i) * 0.9 + 0.01 * step), squares += grad.at(i) * grad.at(i);
    double lr = 0.01 * step;
    schedule.set(0, lr), schedule.set(1, 1 - std::pow(0.9, step)), schedule.set(2, 1 - std::pow(0.999, step));
    ok(pnb_adamw(context, &p), "adamw");
    close({norm.at(0)}, {std::sqrt(squares)}, PNB_DTYPE_F32, "adamw norm");
    double clip = max_norm > 0 ? std::min(1.0, max_norm / (std::sqrt(squares) + 1e-6)) : 1.0;
    for (int64_t i = 0; i < n; ++i) {
      double g = grad.at(i) * clip;
      p_expected[i] *= 1 - lr * weight_decay;
      m_expected[i] = 0.9 * m_expected[i] + 0.1 * g;
      v_expected[i] = 0.999 * v_expected[i] + 0.001 * g * g;
      p_expected[i] -= lr / (1 - std::pow(0.9, step)) * m_expected[i] /
                       (std::sqrt(v_expected[i] / (1 - std::pow(0.999, step))) + 1e-8);
    }
    close(param.values(), p_expected, PNB_DTYPE_F32, "adamw step " + std::to_string(step), 1e-5);
  }
  std::vector<char> before = param.bytes;
  grad.set(8999, NAN);
  ok(pnb_adamw(context, &p), "adamw with a gradient that is not finite");
  expect(std::isnan(norm.at(0)) && param.bytes == before, "adamw: a norm that is not finite changes nothing");
}

void misuse(pnb_context* context) {
  auto p = params<pnb_layer_norm_forward_params>();
  p.struct_size = 4;
  expect(pnb_layer_norm_forward(context, &p) == PNB_ERROR_INVALID_ARGUMENT, "a wrong struct_size is refused");
  expect(pnb_layer_norm_forward(nullptr, &p) == PNB_ERROR_INVALID_ARGUMENT, "a missing context is refused");
  expect(pnb_gemm(context, nullptr) == PNB_ERROR_INVALID_ARGUMENT, "missing params are refused");
  Tensor x(PNB_DTYPE_F32, {4, 8}), gamma(PNB_DTYPE_F32, {7}), beta(PNB_DTYPE_F32, {8});
  p = params<pnb_layer_norm_forward_params>();
  p.epsilon = 1e-5f;
  p.x = x.t, p.y = x.t, p.gamma = gamma.t, p.beta = beta.t;
  expect(pnb_layer_norm_forward(context, &p) == PNB_ERROR_INVALID_ARGUMENT, "a wrong shape is refused");
  expect(std::string(pnb_last_error()).find("gamma of shape [8], found [7]") != std::string::npos,
         std::string("the text names it: ") + pnb_last_error());
  p.gamma = beta.t, p.y.dtype = PNB_DTYPE_BF16;
  expect(pnb_layer_norm_forward(context, &p) == PNB_ERROR_INVALID_ARGUMENT, "a norm of another dtype in its input's place is refused");
  pnb_context_params c{};
  c.struct_size = sizeof c;
  c.device = PNB_DEVICE_CUDA;
  pnb_context* none = nullptr;
  expect(pnb_context_create(&c, &none) == PNB_ERROR_UNAVAILABLE && none == nullptr, "a device that is not there is unavailable");
}

}  // namespace

// Where a processor keeps a block's logits in its caches, a plan has no room for all of them.
void cross_entropy_in_caches(pnb_context* context) {
  const char* processor = nullptr;
  ok(pnb_context_describe(context, &processor), "describe");
  if (!std::strstr(processor, "AVX-512 bf16,")) return;
  const int64_t rows = 512, hidden = 768, vocab = 50272;
  pnb_tensor part{nullptr, PNB_DTYPE_BF16, 2, {vocab, hidden}, {hidden, 1}};
  auto wp = params<pnb_weight_params>();
  wp.dtype = PNB_DTYPE_BF16, wp.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD, wp.parts = &part, wp.part_count = 1;
  pnb_weight* weight = nullptr;
  ok(pnb_weight_create(context, &wp, &weight), "a description");
  auto p = params<pnb_linear_cross_entropy_params>();
  p.x = p.dx = {nullptr, PNB_DTYPE_BF16, 2, {rows, hidden}, {hidden, 1}}, p.weight = weight;
  p.rows = p.targets = {nullptr, PNB_DTYPE_I32, 1, {rows}, {1}}, p.grad_scale = p.loss = {nullptr, PNB_DTYPE_F32, 1, {1}, {1}};
  uint64_t bytes = 0;
  ok(pnb_linear_cross_entropy_workspace(context, &p, &bytes), "workspace of a large head");
  expect(bytes < 128 * vocab * sizeof(float), "cross-entropy: a workspace of " + std::to_string(bytes) + " bytes");
  pnb_weight_destroy(weight);
}

int main() {
  pnb_context* context = test::context();
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    layer_norm(context, dtype, dtype, 3, 7, true);
    layer_norm(context, dtype, dtype, 5, 96, false);
    lora(context, dtype, dtype, 1, 1, 1, 1);
    lora(context, dtype, dtype, 65, 300, 77, 4);
    lora(context, dtype, dtype, 130, 64, 257, 19);
    lora(context, dtype, dtype, 7, 33, 16, 64);
    cross_entropy(context, dtype, 5, 16, 37, {1, 4});
    cross_entropy(context, dtype, 300, 24, 1100, [] {
      std::vector<int32_t> rows(270);
      for (int i = 0; i < 270; ++i) rows[i] = i + 20;
      return rows;
    }());
    embedding(context, dtype);
  }
  cross_entropy_in_caches(context);
  layer_norm(context, PNB_DTYPE_F32, PNB_DTYPE_BF16, 3, 39, true);
  layer_norm(context, PNB_DTYPE_F32, PNB_DTYPE_BF16, 5, 96, false);
  lora(context, PNB_DTYPE_F32, PNB_DTYPE_BF16, 65, 300, 77, 4);
  dropout(context);
  adamw(context, 0.0f, 0.0f);
  adamw(context, 1.0f, 0.1f);
  misuse(context);
  pnb_context_destroy(context);
  return finish("operations_test");
}
