// The streaming operations against doubles on the host, on sizes that reach the kernels for aligned rows and the plain ones:
// norms, LoRA's passes, the head with its cross-entropy over more than one chunk, AdamW.
#include <memory>

#include "cuda/harness.cuh"

using namespace test;

namespace {

template <typename Params>
Params params() {
  Params p{};
  p.struct_size = sizeof p;
  return p;
}

std::string named(const char* what, int64_t m, int64_t n, int32_t dtype) {
  return std::string(what) + " [" + std::to_string(m) + ", " + std::to_string(n) + "] " + pnb::dtype_name(dtype);
}

// Twice what one rounding to the dtype costs, and room for sums in f32.
double allowed(const std::vector<double>& exact, int32_t dtype) { return 2 * rounding_error(exact, dtype) + 3e-6; }

void norms(int64_t m, int64_t h, int32_t dtype) {
  Tensor x(dtype, {m, h}), gamma(PNB_DTYPE_F32, {h}), beta(PNB_DTYPE_F32, {h}), dy(dtype, {m, h}), residual(dtype, {m, h});
  Tensor y(dtype, {m, h}, 0), mean(PNB_DTYPE_F32, {m}, 0), rstd(PNB_DTYPE_F32, {m}, 0), dx(dtype, {m, h}, 0);
  auto forward = params<pnb_layer_norm_forward_params>();
  forward.epsilon = 1e-5f, forward.x = x.t, forward.gamma = gamma.t, forward.beta = beta.t, forward.y = y.t;
  forward.mean = mean.t, forward.rstd = rstd.t;
  auto backward = params<pnb_layer_norm_backward_params>();
  backward.dy = dy.t, backward.x = x.t, backward.mean = mean.t, backward.rstd = rstd.t, backward.gamma = gamma.t;
  backward.residual = residual.t, backward.dx = dx.t;
  ok("norms", [&] { backend().layer_norm_forward(forward), backend().layer_norm_backward(backward); });

  auto xs = x.values(), gs = gamma.values(), bs = beta.values(), ds = dy.values(), rs = residual.values();
  std::vector<double> ys(m * h), dxs(m * h);
  for (int64_t i = 0; i < m; ++i) {
    double sum = 0, squares = 0, g_sum = 0, gx_sum = 0;
    for (int64_t j = 0; j < h; ++j) sum += xs[i * h + j];
    for (int64_t j = 0; j < h; ++j) squares += std::pow(xs[i * h + j] - sum / h, 2);
    double scale = 1 / std::sqrt(squares / h + 1e-5);
    auto normal = [&](int64_t j) { return (xs[i * h + j] - sum / h) * scale; };
    for (int64_t j = 0; j < h; ++j) {
      ys[i * h + j] = normal(j) * gs[j] + bs[j];
      g_sum += ds[i * h + j] * gs[j];
      gx_sum += ds[i * h + j] * gs[j] * normal(j);
    }
    for (int64_t j = 0; j < h; ++j) {
      dxs[i * h + j] = rs[i * h + j] + scale * (ds[i * h + j] * gs[j] - g_sum / h - normal(j) * gx_sum / h);
    }
  }
  close(y.values(), ys, allowed(ys, dtype), named("norm y", m, h, dtype));
  close(dx.values(), dxs, allowed(dxs, dtype), named("norm dx", m, h, dtype));
}

// A norm that projects on its way leaves what it does without, and what pnb_lora_project makes of that.
void projected_norms(int64_t m, int64_t h, const std::vector<int64_t>& ranks, int64_t pool_rows, float dropout, int32_t dtype) {
  std::string what = named("projected norm", m, h, dtype) + ", pools of " + std::to_string(pool_rows) + ", dropout " +
                     std::to_string(dropout);
  for (int64_t r : ranks) what += ", rank " + std::to_string(r);
  Tensor x(dtype, {m, h}), gamma(PNB_DTYPE_F32, {h}), beta(PNB_DTYPE_F32, {h}), state(PNB_DTYPE_U64, {2});
  state.set({7, 9});
  int64_t pools = pool_rows > 0 ? (m + pool_rows - 1) / pool_rows : 1;
  std::vector<std::unique_ptr<Tensor>> a;
  for (int64_t r : ranks) a.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{r, h}));
  std::vector<std::vector<double>> found[2];
  for (bool together : {false, true}) {
    Tensor y(dtype, {m, h}, 0), mean(PNB_DTYPE_F32, {m}, 0), rstd(PNB_DTYPE_F32, {m}, 0), pooled(PNB_DTYPE_F32, {pools, h}, 0);
    std::vector<std::unique_ptr<Tensor>> low;
    std::vector<pnb_lora_project_params> chain(ranks.size());
    for (size_t i = 0; i < ranks.size(); ++i) {
      low.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{m, ranks[i]}, 0));
      chain[i] = params<pnb_lora_project_params>();
      chain[i].x = y.t, chain[i].a = a[i]->t, chain[i].h = low[i]->t;
      chain[i].dropout.p = dropout, chain[i].dropout.stream = i, chain[i].dropout.state = state.t;
      if (i > 0) chain[i - 1].next = &chain[i];
    }
    auto p = params<pnb_layer_norm_forward_params>();
    p.epsilon = 1e-5f, p.x = x.t, p.gamma = gamma.t, p.beta = beta.t, p.y = y.t, p.mean = mean.t, p.rstd = rstd.t;
    if (pool_rows > 0) p.pooled = pooled.t, p.pool_rows = pool_rows;
    if (together) p.project = &chain[0];
    ok(what, [&] {
      backend().layer_norm_forward(p);
      if (!together) backend().lora_project(chain[0]);
    });
    found[together] = {y.values(), mean.values(), rstd.values()};
    if (pool_rows > 0) found[together].push_back(pooled.values());
    for (const auto& h_of : low) found[together].push_back(h_of->values());
  }
  for (size_t i = 0; i < found[0].size(); ++i) close(found[1][i], found[0][i], 2e-6, what + ", result " + std::to_string(i));
}

// Without dropout: that its mask is the CPU's is philox_test's and the Java tests' to show.
void lora(int64_t m, int64_t in, int64_t out, int64_t r, int32_t dtype) {
  std::string what = named("lora", m, in, dtype) + " to " + std::to_string(out) + " rank " + std::to_string(r);
  Tensor x(dtype, {m, in}), wide(dtype, {m, out + 24}), a(PNB_DTYPE_F32, {r, in}), b(PNB_DTYPE_F32, {out, r});
  Tensor h(PNB_DTYPE_F32, {m, r}, 0), dh(PNB_DTYPE_F32, {m, r}, 0), da(PNB_DTYPE_F32, {r, in}), db(PNB_DTYPE_F32, {out, r});
  auto da0 = da.values(), db0 = db.values();
  auto project = params<pnb_lora_project_params>();
  project.x = x.t, project.a = a.t, project.h = h.t;
  auto gradients = params<pnb_lora_gradients_params>();
  gradients.scaling = 2, gradients.dy = wide.columns(8, out), gradients.x = x.t, gradients.h = h.t, gradients.a = a.t,
  gradients.b = b.t;
  gradients.dh = dh.t, gradients.da = da.t, gradients.db = db.t;
  ok(what, [&] {
    backend().lora_project(project);
    Workspace space(backend().lora_gradients_workspace(gradients));
    gradients.workspace = space.w;
    backend().lora_gradients(gradients);
    cuda(cudaDeviceSynchronize(), what.c_str());
  });
  auto xs = x.values(), ds = wide.values(), as = a.values(), bs = b.values();
  std::vector<double> hs(m * r), dhs(m * r), das = da0, dbs = db0;
  auto dy = [&](int64_t i, int64_t j) { return ds[i * (out + 24) + 8 + j]; };
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t k = 0; k < r; ++k) {
      for (int64_t j = 0; j < in; ++j) hs[i * r + k] += xs[i * in + j] * as[k * in + j];
      for (int64_t j = 0; j < out; ++j) dhs[i * r + k] += 2 * dy(i, j) * bs[j * r + k];
    }
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t k = 0; k < r; ++k) {
      for (int64_t j = 0; j < in; ++j) das[k * in + j] += dhs[i * r + k] * xs[i * in + j];
      for (int64_t j = 0; j < out; ++j) dbs[j * r + k] += 2 * dy(i, j) * hs[i * r + k];
    }
  }
  close(h.values(), hs, 3e-6, what + " h");
  close(dh.values(), dhs, 3e-6, what + " dh");
  close(da.values(), das, 3e-6, what + " dA");
  close(db.values(), dbs, 3e-6, what + " dB");
}

// n supervised rows of m, with padding among them. Of weights as large as `spread` come logits eight times as far apart where h
// is 64; what they are beyond f32's powers need only stay a number.
void head(int64_t m, int64_t h, int64_t vocab, int64_t n, int32_t dtype, float spread = 0.1f, bool with_dx = true) {
  std::string what = named("cross-entropy", n, vocab, dtype) + ", spread " + std::to_string(spread);
  Tensor x(dtype, {m, h}), dx(dtype, {m, h}, 0), loss(PNB_DTYPE_F32, {1}), scale(PNB_DTYPE_F32, {1});
  std::vector<float> w(vocab * h);
  std::normal_distribution<float> normal(0.0f, spread);
  for (float& v : w) v = bf16_to_float(float_to_bf16(normal(generator())));
  pnb_tensor part{w.data(), PNB_DTYPE_F32, 2, {vocab, h}, {h, 1}};
  auto wp = params<pnb_weight_params>();
  wp.dtype = dtype, wp.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD, wp.parts = &part, wp.part_count = 1;
  Workspace storage(backend().weight_storage(wp));
  wp.storage = storage.w.data, wp.storage_bytes = storage.w.bytes;
  auto weight = backend().weight_create(wp);

  std::vector<double> rows, targets;
  for (int64_t i = 0; i < n; ++i) {
    rows.push_back(i % 7 == 3 ? -1 : static_cast<double>(i * m / n));
    targets.push_back(static_cast<double>((i * 37) % vocab));
  }
  Tensor row_tensor(PNB_DTYPE_I32, {n}), target_tensor(PNB_DTYPE_I32, {n});
  row_tensor.set(rows), target_tensor.set(targets), loss.set({0.5}), scale.set({0.01});
  auto p = params<pnb_linear_cross_entropy_params>();
  p.x = x.t, p.weight = weight.get(), p.rows = row_tensor.t, p.targets = target_tensor.t, p.grad_scale = scale.t, p.loss = loss.t,
  p.dx = with_dx ? dx.t : pnb_tensor{};
  Workspace space(backend().linear_cross_entropy_workspace(p));
  p.workspace = space.w;
  ok(what, [&] { backend().linear_cross_entropy(p); });

  auto xs = x.values();
  std::vector<double> dxs(m * h), z(vocab);
  double total = 0.5;
  for (int64_t i = 0; i < n; ++i) {
    auto row = static_cast<int64_t>(rows[i]);
    if (row < 0) continue;
    double top = -1e300, sum = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      z[v] = 0;
      for (int64_t j = 0; j < h; ++j) z[v] += xs[row * h + j] * w[v * h + j];
      top = std::max(top, z[v]);
    }
    for (double value : z) sum += std::exp(value - top);
    auto target = static_cast<int64_t>(targets[i]);
    total += top + std::log(sum) - z[target];
    for (int64_t v = 0; v < vocab; ++v) {
      double d = 0.01 * (std::exp(z[v] - top) / sum - (v == target));
      for (int64_t j = 0; j < h; ++j) dxs[row * h + j] += d * w[v * h + j];
    }
  }
  // In bf16 the logits and their gradients are rounded too, before the second product.
  bool exact = dtype == PNB_DTYPE_F32;
  if (spread > 10) {
    for (double v : loss.values()) expect(std::isfinite(v), what + ": expected a loss, found " + std::to_string(v));
    for (double v : dx.values()) expect(std::isfinite(v), what + ": expected a gradient, found " + std::to_string(v));
    return;
  }
  close(loss.values(), {total}, exact ? 1e-5 : 1e-3, what + " loss");
  if (with_dx) close(dx.values(), dxs, exact ? 1e-5 : 4 * rounding_error(dxs, dtype), what + " dx");
}

// Who asks for the largest call's workspace has room for every smaller one, and for the loss alone.
void head_workspace(int64_t h, int64_t vocab) {
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    float some = 0.0f;
    pnb_weight weight;
    weight.out = vocab, weight.in = h, weight.dtype = dtype, weight.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD;
    auto p = params<pnb_linear_cross_entropy_params>();
    p.weight = &weight, p.x = {&some, dtype, 2, {4096, h}, {h, 1}};
    uint64_t most = 0;
    for (int64_t n = 1; n <= 4096; ++n) {
      p.rows = p.targets = {&some, PNB_DTYPE_I32, 1, {n}, {1}};
      p.dx = p.x;
      uint64_t bytes = backend().linear_cross_entropy_workspace(p);
      p.dx = {};
      uint64_t of_loss = backend().linear_cross_entropy_workspace(p);
      expect(bytes >= std::max(most, of_loss), named("workspace", n, vocab, dtype) + ": expected at least " +
                                                   std::to_string(std::max(most, of_loss)) + " bytes, found " +
                                                   std::to_string(bytes));
      most = bytes;
    }
  }
}

void adamw(int64_t n, float max_norm) {
  Tensor param(PNB_DTYPE_F32, {n}), grad(PNB_DTYPE_F32, {n}), m(PNB_DTYPE_F32, {n}), v(PNB_DTYPE_F32, {n}),
      norm(PNB_DTYPE_F32, {1}, 0);
  Tensor schedule(PNB_DTYPE_F32, {3});
  schedule.set({1e-2, 0.19, 0.002});
  auto vs = v.values();
  for (double& value : vs) value = std::fabs(value);
  v.set(vs);
  auto ps = param.values(), gs = grad.values(), ms = m.values();
  auto p = params<pnb_adamw_params>();
  p.beta1 = 0.9f, p.beta2 = 0.999f, p.epsilon = 1e-8f, p.weight_decay = 0.1f, p.max_norm = max_norm;
  p.param = param.t, p.grad = grad.t, p.m = m.t, p.v = v.t, p.schedule = schedule.t, p.grad_norm = norm.t;
  Workspace space(backend().adamw_workspace(p));
  p.workspace = space.w;
  ok("adamw", [&] { backend().adamw(p); });
  double squares = 0;
  for (double g : gs) squares += g * g;
  double clip = max_norm > 0 ? std::min(1.0, max_norm / (std::sqrt(squares) + 1e-6)) : 1;
  for (int64_t i = 0; i < n; ++i) {
    ps[i] -= 1e-2 * 0.1 * ps[i];
    ms[i] = 0.9 * ms[i] + 0.1 * clip * gs[i];
    vs[i] = 0.999 * vs[i] + 0.001 * clip * clip * gs[i] * gs[i];
    ps[i] -= 1e-2 / 0.19 * ms[i] / (std::sqrt(vs[i] / 0.002) + 1e-8);
  }
  std::string what = "adamw of " + std::to_string(n);
  close(norm.values(), {std::sqrt(squares)}, 1e-6, what + " norm");
  close(param.values(), ps, 1e-6, what + " param");
  close(m.values(), ms, 1e-6, what + " m");
  close(v.values(), vs, 1e-6, what + " v");
}

}  // namespace

// With an argument: a few small cases, for tools that slow kernels down.
int main(int argc, char**) {
  backend();  // without a GPU the test ends here
  if (argc > 1) {
    norms(37, 768, PNB_DTYPE_BF16), norms(70, 2048, PNB_DTYPE_BF16), norms(21, 5120, PNB_DTYPE_BF16);
    projected_norms(37, 768, {8, 8}, 0, 0, PNB_DTYPE_BF16), projected_norms(70, 2048, {4, 4}, 48, 0, PNB_DTYPE_BF16);
    projected_norms(70, 2048, {4, 4}, 0, 0, PNB_DTYPE_BF16), projected_norms(21, 5120, {4, 3}, 16, 0, PNB_DTYPE_BF16);
    head(70, 64, 520, 50, PNB_DTYPE_BF16);
    return finish("ops");
  }
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    norms(37, 768, dtype), norms(3, 2048, dtype), norms(700, 256, dtype), norms(290, 5120, dtype);
    norms(33, 776, dtype), norms(5, 1001, dtype), norms(2, 16384, dtype);
    for (int64_t pool_rows : {0, 16, 48, 300}) {
      projected_norms(4100, 2048, {4, 4}, pool_rows, 0, dtype), projected_norms(37, 768, {8, 8}, pool_rows, 0, dtype);
      projected_norms(700, 5120, {4, 3}, pool_rows, 0, dtype), projected_norms(5, 256, {16}, pool_rows, 0, dtype);
    }
    // Rows so long that a pool's sums have no room beside sixteen of them.
    projected_norms(700, 6144, {4, 3}, 48, 0, dtype), projected_norms(700, 5632, {16}, 48, 0, dtype);
    projected_norms(77, 8192, {4}, 0, 0, dtype), projected_norms(77, 512, {16, 1}, 0, 0, dtype),
        projected_norms(50, 512, {4}, 0, 0.2f, dtype);
    projected_norms(33, 776, {4, 4}, 0, 0, dtype), projected_norms(5, 1001, {4}, 0, 0, dtype);
    for (int64_t r : {1, 4, 5, 8, 9, 16, 65}) lora(203, 264, 328, r, dtype);
    lora(77, 101, 53, 4, dtype);
    lora(1030, 512, 128, 4, dtype);
    head(40, 64, 515, 23, dtype), head(2500, 64, 512, 2300, dtype), head(2100, 64, 1000, 2085, dtype);
    head(2100, 64, 520, 2054, dtype), head(200, 64, 520, 150, dtype, 1.5f), head(70, 64, 520, 50, dtype, 0.1f, false);
    head(200, 64, 520, 150, dtype, 30.0f);
  }
  // The vocabulary in parts, with a last one of a few columns, which ranges divide or not; without a gradient; in chunks of a
  // softmax.
  head(1100, 64, 17000, 1050, PNB_DTYPE_BF16), head(1100, 64, 17024, 1050, PNB_DTYPE_BF16);
  head(1030, 64, 34000, 1024, PNB_DTYPE_BF16, 0.1f, false), head(700, 64, 30001, 650, PNB_DTYPE_BF16);
  head(400, 64, 34001, 350, PNB_DTYPE_F32);
  head_workspace(64, 34001), head_workspace(2048, 50272);
  adamw(1, 1), adamw(10007, 0), adamw(300001, 0.5);
  return finish("ops");
}
