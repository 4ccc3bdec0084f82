// Every backward operation against central differences of its own forward operation, both through the C ABI and in f32.
//
// For a loss L = sum of weights * output, with random weights, the backward pass says the derivative of L along a random
// direction u: the sum of gradient * u. The difference quotient (L(x + s u) - L(x - s u)) / 2 s says it too. Outputs are f32, so
// L carries a rounding error of about 1e-7 of its terms, which s divides: steps are chosen per operation so that this and the
// error of the quotient, of order s^2, stay below the stated tolerance, which is relative to a typical element of the gradient
// times |u|. Each operand has several directions: one that is random, and single elements, which a wrong row or a wrong factor
// cannot satisfy together.
#include "attention_tensors.h"

using namespace test;

namespace {

struct Workspace {
  std::vector<char> bytes;
  pnb_workspace at(uint64_t count) {
    bytes.resize(count + 256);
    return {bytes.data() + (256 - reinterpret_cast<uintptr_t>(bytes.data()) % 256), count};
  }
};

double weighted(const Tensor& output, const std::vector<double>& weights) {
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) sum += output.at(i) * weights[i];
  return sum;
}

// Holds `gradient`, in the order of x's elements, to differences of `loss`, which reads x.
void differences(Tensor& x, const std::vector<double>& gradient, const std::function<double()>& loss, double step, double tolerance,
                 const std::string& what) {
  std::vector<double> at = x.values();
  double norm = 0;
  for (double value : gradient) norm += value * value;
  double typical = std::sqrt(norm / gradient.size());  // an element of the gradient, in root mean square
  expect(typical > 0, what + ": expected a gradient that is not zero");
  const int kSingle = 12;
  for (int trial = 0; trial <= kSingle; ++trial) {
    std::vector<double> direction(at.size());
    if (trial == kSingle) {
      std::normal_distribution<double> normal;
      for (double& value : direction) value = normal(generator());
    } else {
      direction[generator()() % at.size()] = 1.0;
    }
    double stated = 0, length = 0;
    // What the operand holds is rounded to f32: the direction is what was really added.
    auto shifted = [&](double sign) {
      for (size_t i = 0; i < at.size(); ++i) x.set(i, at[i] + sign * step * direction[i]);
      return loss();
    };
    double high = shifted(1.0);
    std::vector<double> up = x.values();
    double low = shifted(-1.0);
    for (size_t i = 0; i < at.size(); ++i) {
      double moved = (up[i] - x.at(i)) / (2 * step);
      stated += gradient[i] * moved;
      length += moved * moved;
      x.set(i, at[i]);
    }
    double measured = (high - low) / (2 * step);
    double error = std::fabs(measured - stated) / (typical * std::sqrt(length));
    char text[200];
    std::snprintf(text, sizeof text, ": direction %d, gradient says %.7g, differences say %.7g: error %.2g, allowed %.2g",
                  trial, stated, measured, error, tolerance);
    expect(error <= tolerance, what + text);
  }
}

// Packed samples, one of them longer than a tile, and rows of no sample; by lists of random blocks, or without.
void attention(pnb_context* context, const std::vector<int32_t>& cu, int64_t tokens, int64_t count, int64_t dim,
               int64_t block = 0) {
  std::string what = "attention of " + std::to_string(cu.size() - 1) + " samples, dim " + std::to_string(dim) +
                     (block == 0 ? "" : ", lists of blocks of " + std::to_string(block));
  int64_t width = count * dim;
  Tensor q(PNB_DTYPE_F32, {tokens, width}), k(PNB_DTYPE_F32, {tokens, width}), v(PNB_DTYPE_F32, {tokens, width});
  Tensor o(PNB_DTYPE_F32, {tokens, width}, 0.0), lse(PNB_DTYPE_F32, {count, tokens}, 0.0), d_o(PNB_DTYPE_F32, {tokens, width});
  Tensor dq(PNB_DTYPE_F32, {tokens, width}, 0.0), dk(PNB_DTYPE_F32, {tokens, width}, 0.0), dv(PNB_DTYPE_F32, {tokens, width}, 0.0);
  Tensor borders = ints(cu);
  Samples samples{cu, tokens, block == 0 ? 64 : block};
  int64_t longest = samples.longest();
  AttentionLists lists(samples, count);
  Mask(samples, count, [](int64_t, int64_t, int64_t i, int64_t j) { return i == j || generator()() % 2 == 0; }).write(lists);
  auto f = params<pnb_attention_forward_params>();
  f.scale = 0.3f;
  f.q = heads_of(q, 0, count, dim), f.k = heads_of(k, 0, count, dim), f.v = heads_of(v, 0, count, dim),
  f.o = heads_of(o, 0, count, dim);
  f.lse = lse.t, f.cu_seqlens_q = f.cu_seqlens_k = borders.t, f.max_seqlen = longest;
  if (block != 0) f.blocks = lists.blocks;
  auto loss = [&] {
    ok(pnb_attention_forward(context, &f), what);
    return weighted(o, d_o.values());
  };
  loss();
  auto b = params<pnb_attention_backward_params>();
  b.scale = f.scale, b.q = f.q, b.k = f.k, b.v = f.v, b.o = f.o, b.lse = lse.t, b.d_o = heads_of(d_o, 0, count, dim);
  b.dq = heads_of(dq, 0, count, dim), b.dk = heads_of(dk, 0, count, dim), b.dv = heads_of(dv, 0, count, dim);
  b.cu_seqlens = borders.t, b.max_seqlen = longest, b.blocks = f.blocks;
  uint64_t bytes = 0;
  ok(pnb_attention_backward_workspace(context, &b, &bytes), what);
  Workspace workspace;
  b.workspace = workspace.at(bytes);
  ok(pnb_attention_backward(context, &b), what);
  differences(q, dq.values(), loss, 1e-2, 1e-3, what + " dq");
  differences(k, dk.values(), loss, 1e-2, 1e-3, what + " dk");
  differences(v, dv.values(), loss, 1e-2, 1e-4, what + " dv");
}

void layer_norm(pnb_context* context, int64_t m, int64_t h, bool residual) {
  std::string what = "layer norm of " + std::to_string(h) + (residual ? " with residual" : "");
  Tensor x(PNB_DTYPE_F32, {m, h}, 2.0), gamma(PNB_DTYPE_F32, {h}), beta(PNB_DTYPE_F32, {h}), y(PNB_DTYPE_F32, {m, h}, 0.0);
  Tensor mean(PNB_DTYPE_F32, {m}, 0.0), rstd(PNB_DTYPE_F32, {m}, 0.0), dy(PNB_DTYPE_F32, {m, h}), dx(PNB_DTYPE_F32, {m, h}, 0.0);
  Tensor beside(PNB_DTYPE_F32, {m, h});
  auto f = params<pnb_layer_norm_forward_params>();
  f.epsilon = 1e-5f;
  f.x = x.t, f.gamma = gamma.t, f.beta = beta.t, f.y = y.t, f.mean = mean.t, f.rstd = rstd.t;
  // With a residual, x also reaches the loss past the norm, with the gradient `beside`.
  auto loss = [&] {
    ok(pnb_layer_norm_forward(context, &f), what);
    return weighted(y, dy.values()) + (residual ? weighted(x, beside.values()) : 0.0);
  };
  loss();
  auto b = params<pnb_layer_norm_backward_params>();
  b.dy = dy.t, b.x = x.t, b.mean = mean.t, b.rstd = rstd.t, b.gamma = gamma.t, b.dx = dx.t;
  if (residual) b.residual = beside.t;
  ok(pnb_layer_norm_backward(context, &b), what);
  differences(x, dx.values(), loss, 1e-2, 5e-4, what + " dx");
}

struct Packed {
  Workspace storage;
  pnb_weight* weight = nullptr;

  Packed(pnb_context* context, const Tensor& w) {
    auto p = params<pnb_weight_params>();
    p.dtype = PNB_DTYPE_F32, p.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD, p.parts = &w.t, p.part_count = 1;
    ok(pnb_weight_storage(context, &p, &p.storage_bytes), "weight");
    p.storage = storage.at(p.storage_bytes).data;
    ok(pnb_weight_create(context, &p, &weight), "weight");
  }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  ~Packed() { pnb_weight_destroy(weight); }
};

void cross_entropy(pnb_context* context) {
  std::string what = "linear cross-entropy";
  const int64_t m = 9, hidden = 24, vocab = 70;
  Tensor x(PNB_DTYPE_F32, {m, hidden}), w(PNB_DTYPE_F32, {vocab, hidden}, 0.4), dx(PNB_DTYPE_F32, {m, hidden}, 0.0);
  Tensor loss(PNB_DTYPE_F32, {1}), scale(PNB_DTYPE_F32, {1}), rows = ints({0, 3, 4, 8}), targets = ints({69, 0, 13, 13});
  Packed packed(context, w);
  scale.set(0, 0.25);
  auto p = params<pnb_linear_cross_entropy_params>();
  p.x = x.t, p.weight = packed.weight, p.rows = rows.t, p.targets = targets.t, p.grad_scale = scale.t, p.loss = loss.t, p.dx = dx.t;
  uint64_t bytes = 0;
  ok(pnb_linear_cross_entropy_workspace(context, &p, &bytes), what);
  Workspace workspace;
  p.workspace = workspace.at(bytes);
  auto value = [&] {
    loss.set(0, 0.0);
    ok(pnb_linear_cross_entropy(context, &p), what);
    return 0.25 * loss.at(0);
  };
  value();
  std::vector<double> gradient = dx.values();
  differences(x, gradient, value, 2e-2, 1e-3, what + " dx");
}

// y = x W^T + scaling * dropout(dropout-drawn x A^T) B^T as the model computes it, and all that its backward pass says:
// dA, dB, and dx through the frozen weight and through the low-rank term.
void lora(pnb_context* context, float p_dropout) {
  std::string what = "lora with dropout " + std::to_string(p_dropout);
  const int64_t m = 37, in = 40, out = 24, r = 3;
  const float scaling = 1.5f;
  Tensor x(PNB_DTYPE_F32, {m, in}), w(PNB_DTYPE_F32, {out, in}, 0.2), a(PNB_DTYPE_F32, {r, in}), b(PNB_DTYPE_F32, {out, r});
  Tensor h(PNB_DTYPE_F32, {m, r}, 0.0), y(PNB_DTYPE_F32, {m, out}, 0.0), dy(PNB_DTYPE_F32, {m, out}),
      dh(PNB_DTYPE_F32, {m, r}, 0.0);
  Tensor da(PNB_DTYPE_F32, {r, in}), db(PNB_DTYPE_F32, {out, r}), dx(PNB_DTYPE_F32, {m, in}, 0.0);
  for (int64_t i = 0; i < r * in; ++i) da.set(i, 0.0);
  for (int64_t i = 0; i < out * r; ++i) db.set(i, 0.0);
  uint64_t state[2] = {17, 4};
  pnb_dropout dropout{p_dropout, 9, {state, PNB_DTYPE_U64, 1, {2}, {1}}};
  Packed packed(context, w);
  auto project = params<pnb_lora_project_params>();
  project.x = x.t, project.a = a.t, project.h = h.t, project.dropout = dropout;
  pnb_low_rank up{h.t, b.t, 0, scaling, 0, {}};
  auto forward = params<pnb_gemm_params>();
  forward.a = x.t, forward.weight = packed.weight, forward.weight_use = PNB_WEIGHT_FORWARD, forward.d = y.t;
  forward.low_rank = &up, forward.low_rank_count = 1;
  auto loss = [&] {
    ok(pnb_lora_project(context, &project), what);
    ok(pnb_gemm(context, &forward), what);
    return weighted(y, dy.values());
  };
  loss();
  auto gradients = params<pnb_lora_gradients_params>();
  gradients.scaling = scaling;
  gradients.dy = dy.t, gradients.x = x.t, gradients.h = h.t, gradients.a = a.t, gradients.b = b.t;
  gradients.dh = dh.t, gradients.da = da.t, gradients.db = db.t, gradients.dropout = dropout;
  uint64_t bytes = 0;
  ok(pnb_lora_gradients_workspace(context, &gradients, &bytes), what);
  Workspace workspace;
  gradients.workspace = workspace.at(bytes);
  ok(pnb_lora_gradients(context, &gradients), what);
  pnb_low_rank down{dh.t, {a.t.data, PNB_DTYPE_F32, 2, {in, r}, {1, in}}, 0, 1.0f, 0, dropout};
  auto backward = params<pnb_gemm_params>();
  backward.a = dy.t, backward.weight = packed.weight, backward.weight_use = PNB_WEIGHT_BACKWARD, backward.d = dx.t;
  backward.low_rank = &down, backward.low_rank_count = 1;
  ok(pnb_gemm(context, &backward), what);
  // y is linear in each operand: the step may be wide.
  differences(a, da.values(), loss, 0.5, 1e-5, what + " dA");
  differences(b, db.values(), loss, 0.5, 1e-5, what + " dB");
  differences(x, dx.values(), loss, 0.5, 1e-5, what + " dx");
}

// y = (dropout(norm(x)) A^T) B^T: dA from x and what its norm's forward pass left, in the place of the normed rows.
void lora_of_a_norm(pnb_context* context, float p_dropout) {
  std::string what = "lora of a norm with dropout " + std::to_string(p_dropout);
  const int64_t m = 37, in = 40, out = 24, r = 3;
  Tensor x(PNB_DTYPE_F32, {m, in}), gamma(PNB_DTYPE_F32, {in}), beta(PNB_DTYPE_F32, {in}), normed(PNB_DTYPE_F32, {m, in}, 0.0);
  Tensor mean(PNB_DTYPE_F32, {m}, 0.0), rstd(PNB_DTYPE_F32, {m}, 0.0), a(PNB_DTYPE_F32, {r, in}), b(PNB_DTYPE_F32, {out, r});
  Tensor h(PNB_DTYPE_F32, {m, r}, 0.0), dy(PNB_DTYPE_F32, {m, out}), dh(PNB_DTYPE_F32, {m, r}, 0.0),
      y(PNB_DTYPE_F32, {m, out}, 0.0);
  Tensor da(PNB_DTYPE_F32, {r, in}), db(PNB_DTYPE_F32, {out, r});
  for (int64_t i = 0; i < m * in; ++i) x.set(i, x.at(i) + 5.0);
  for (int64_t i = 0; i < r * in; ++i) da.set(i, 0.0);
  uint64_t state[2] = {17, 4};
  pnb_dropout dropout{p_dropout, 9, {state, PNB_DTYPE_U64, 1, {2}, {1}}};
  auto norm = params<pnb_layer_norm_forward_params>();
  norm.epsilon = 1e-5f, norm.x = x.t, norm.gamma = gamma.t, norm.beta = beta.t, norm.y = normed.t, norm.mean = mean.t,
  norm.rstd = rstd.t;
  auto project = params<pnb_lora_project_params>();
  project.x = normed.t, project.a = a.t, project.h = h.t, project.dropout = dropout;
  auto up = params<pnb_gemm_params>();
  up.a = h.t, up.b = {b.t.data, PNB_DTYPE_F32, 2, {r, out}, {1, r}}, up.d = y.t;
  uint64_t bytes = 0;
  ok(pnb_gemm_workspace(context, &up, &bytes), what);
  Workspace product_space;
  up.workspace = product_space.at(bytes);
  auto loss = [&] {
    ok(pnb_layer_norm_forward(context, &norm), what);
    ok(pnb_lora_project(context, &project), what);
    ok(pnb_gemm(context, &up), what);
    return weighted(y, dy.values());
  };
  loss();
  auto gradients = params<pnb_lora_gradients_params>();
  gradients.scaling = 1.0f;
  gradients.dy = dy.t, gradients.x = x.t, gradients.h = h.t, gradients.a = a.t, gradients.b = b.t;
  gradients.dh = dh.t, gradients.da = da.t, gradients.db = db.t, gradients.dropout = dropout;
  gradients.norm = {mean.t, rstd.t, gamma.t, beta.t};
  ok(pnb_lora_gradients_workspace(context, &gradients, &bytes), what);
  Workspace workspace;
  gradients.workspace = workspace.at(bytes);
  ok(pnb_lora_gradients(context, &gradients), what);
  differences(a, da.values(), loss, 0.5, 1e-5, what + " dA");
}

// y = relu(x W^T + bias); its gradient is the mask applied to the gradient of the product that follows: d(x) through two products.
void relu(pnb_context* context) {
  std::string what = "relu between two products";
  const int64_t m = 21, in = 40, middle = 27, out = 18;
  Tensor x(PNB_DTYPE_F32, {m, in}), w1(PNB_DTYPE_F32, {middle, in}), w2(PNB_DTYPE_F32, {out, middle}),
      bias(PNB_DTYPE_F32, {middle});
  Tensor hidden(PNB_DTYPE_F32, {m, middle}, 0.0), y(PNB_DTYPE_F32, {m, out}, 0.0), dy(PNB_DTYPE_F32, {m, out});
  Tensor d_hidden(PNB_DTYPE_F32, {m, middle}, 0.0), dx(PNB_DTYPE_F32, {m, in}, 0.0), mask(PNB_DTYPE_U8, {m, (middle + 7) / 8}, 0.0);
  // A step across the kink would count half a slope: the bias keeps every neuron well on one of its sides, two of three above.
  for (int64_t j = 0; j < middle; ++j) bias.set(j, j % 3 == 0 ? -40.0 : 40.0);
  Packed first(context, w1), second(context, w2);
  auto product = [&](const Tensor& from, const Packed& weight, int32_t use, const Tensor& to, int32_t epilogue) {
    auto p = params<pnb_gemm_params>();
    p.a = from.t, p.weight = weight.weight, p.weight_use = use, p.d = to.t, p.epilogue = epilogue;
    if (epilogue != PNB_EPILOGUE_NONE) p.relu_mask = mask.t;
    if (epilogue == PNB_EPILOGUE_RELU) p.bias = bias.t;
    ok(pnb_gemm(context, &p), what);
  };
  auto loss = [&] {
    product(x, first, PNB_WEIGHT_FORWARD, hidden, PNB_EPILOGUE_RELU);
    product(hidden, second, PNB_WEIGHT_FORWARD, y, PNB_EPILOGUE_NONE);
    return weighted(y, dy.values());
  };
  loss();
  product(dy, second, PNB_WEIGHT_BACKWARD, d_hidden, PNB_EPILOGUE_DRELU);
  product(d_hidden, first, PNB_WEIGHT_BACKWARD, dx, PNB_EPILOGUE_NONE);
  differences(x, dx.values(), loss, 1e-3, 5e-3, what + " dx");
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  attention(context, {0, 5, 5, 18}, 20, 2, 8);
  attention(context, {0, 70, 76}, 76, 2, 20);
  attention(context, {0, 200, 200, 290}, 301, 2, 20, 64);
  attention(context, {0, 300}, 300, 2, 8, 128);
  layer_norm(context, 5, 33, false);
  layer_norm(context, 4, 96, true);
  cross_entropy(context);
  lora(context, 0.0f);
  lora(context, 0.3f);
  relu(context);
  lora_of_a_norm(context, 0.0f);
  lora_of_a_norm(context, 0.3f);
  pnb_context_destroy(context);
  return finish("gradients_test");
}
