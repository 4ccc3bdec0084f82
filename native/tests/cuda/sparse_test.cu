// What chooses blocks of neurons: masses of activations, predictions from pooled rows, lists. Sums against doubles, choices
// exactly.
#include <limits>
#include <numeric>

#include "cuda/harness.cuh"

using namespace test;

namespace {

template <typename Params>
Params params() {
  Params p{};
  p.struct_size = sizeof p;
  return p;
}

// valid < 0: no count of valid rows. pad: bytes or elements beside a row's; offset: of the first from an aligned place.
void mass(int64_t m, int64_t n, int32_t block, int64_t rows_per_list, int32_t dtype, int64_t valid, bool with_norms, int64_t pad,
          int64_t offset) {
  bool bits = dtype == PNB_DTYPE_U8;
  int64_t width = bits ? n / 8 : n, pitch = width + pad + offset, lists = (m + rows_per_list - 1) / rows_per_list;
  std::string what = std::string("activation mass ") + pnb::dtype_name(dtype) + " [" + std::to_string(m) + ", " +
                     std::to_string(n) + "] blocks of " + std::to_string(block) + ", lists of " + std::to_string(rows_per_list) +
                     ", valid " + std::to_string(valid) + ", pad " + std::to_string(pad) + ", offset " + std::to_string(offset);
  Tensor given(dtype, {m, pitch}), norms(PNB_DTYPE_F32, {n}), valid_rows(PNB_DTYPE_I32, {1});
  if (bits) {
    std::vector<double> bytes(m * pitch);
    for (double& b : bytes) b = generator()() % 256;
    given.set(bytes);
  }
  valid_rows.set({static_cast<double>(valid)});
  Tensor blocks(PNB_DTYPE_F32, {lists, n / block}, 0), neuron_mass(PNB_DTYPE_F32, {n}), neuron_fired(PNB_DTYPE_F32, {n});
  auto masses = neuron_mass.values(), fires = neuron_fired.values();
  auto p = params<pnb_activation_mass_params>();
  p.block_size = block, p.rows_per_list = rows_per_list;
  (bits ? p.relu_mask : p.x) = given.columns(offset, width);
  if (with_norms) p.norms = norms.t;
  if (valid >= 0) p.valid_rows = valid_rows.t;
  p.block_mass = blocks.t, p.neuron_mass = neuron_mass.t, p.neuron_fired = neuron_fired.t;
  auto call = [&] {
    Workspace space(backend().activation_mass_workspace(p));
    p.workspace = space.w;
    ok(what, [&] { backend().activation_mass(p); });
    cuda(cudaDeviceSynchronize(), what.c_str());
  };
  call();
  auto values = given.values(), scales = norms.values();
  std::vector<double> expected(lists * (n / block));
  for (int64_t i = 0; i < (valid < 0 ? m : std::min(valid, m)); ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double v = bits ? static_cast<int>(values[i * pitch + offset + j / 8]) >> (j % 8) & 1
                      : std::max(0.0, values[i * pitch + offset + j]);
      fires[j] += v > 0;
      v *= with_norms ? scales[j] : 1;
      masses[j] += v;
      expected[i / rows_per_list * (n / block) + j / block] += v;
    }
  }
  close(blocks.values(), expected, 1e-6, what + " blocks");
  close(neuron_mass.values(), masses, 1e-6, what + " neurons");
  close(neuron_fired.values(), fires, 1e-6, what + " fired");
  // Blocks alone need no workspace and give the same bits.
  auto first = blocks.bits();
  p.neuron_mass = p.neuron_fired = pnb_tensor{};
  expect(backend().activation_mass_workspace(p) == 0, what + ": expected no workspace for blocks alone");
  call();
  expect(blocks.bits() == first, what + ": other bits the second time");
}

void predict(int64_t pooled_rows, int64_t h, int64_t r, int64_t units, int32_t per_score, int64_t per_list, bool with_bias,
             bool with_norms, int64_t pad) {
  std::string what = "predict mass [" + std::to_string(pooled_rows) + ", " + std::to_string(h) + "] rank " + std::to_string(r) +
                     " units " + std::to_string(units) + "/" + std::to_string(per_score) + ", lists of " +
                     std::to_string(per_list) + ", pad " + std::to_string(pad);
  int64_t lists = (pooled_rows + per_list - 1) / per_list, scores = units / per_score;
  Tensor pooled(PNB_DTYPE_F32, {pooled_rows, h + pad}), a(PNB_DTYPE_F32, {r, h}), b(PNB_DTYPE_F32, {units, r}),
      bias(PNB_DTYPE_F32, {units});
  Tensor norms(PNB_DTYPE_F32, {units}), found(PNB_DTYPE_F32, {lists, scores}, 0);
  auto ns = norms.values();
  for (double& v : ns) v = std::fabs(v);
  norms.set(ns);
  auto p = params<pnb_predict_mass_params>();
  p.units_per_score = per_score, p.pooled = pooled.columns(0, h), p.a = a.t, p.b = b.t, p.pooled_per_list = per_list,
  p.scores = found.t;
  if (with_bias) p.bias = bias.t;
  if (with_norms) p.norms = norms.t;
  Workspace space(backend().predict_mass_workspace(p));
  p.workspace = space.w;
  ok(what, [&] { backend().predict_mass(p); });
  auto xs = pooled.values(), as = a.values(), bs = b.values(), cs = bias.values();
  ns = norms.values();
  std::vector<double> expected(lists * scores), z(r);
  for (int64_t i = 0; i < pooled_rows; ++i) {
    for (int64_t k = 0; k < r; ++k) {
      z[k] = 0;
      for (int64_t j = 0; j < h; ++j) z[k] += xs[i * (h + pad) + j] * as[k * h + j];
    }
    for (int64_t u = 0; u < units; ++u) {
      double v = with_bias ? cs[u] : 0;
      for (int64_t k = 0; k < r; ++k) v += z[k] * bs[u * r + k];
      expected[i / per_list * scores + u / per_score] += std::max(0.0, v) * (with_norms ? ns[u] : 1);
    }
  }
  close(found.values(), expected, 3e-6, what);
  auto first = found.bits();
  ok(what, [&] { backend().predict_mass(p); });
  expect(found.bits() == first, what + ": other bits the second time");
}

void relative(int64_t n, int32_t block, float threshold, float share) {
  std::string what = "relative mass of " + std::to_string(n) + " in blocks of " + std::to_string(block) + ", " +
                     std::to_string(threshold) + ", " + std::to_string(share);
  Tensor neurons(PNB_DTYPE_F32, {n}), scores(PNB_DTYPE_F32, {1, n / block}, 0);
  auto values = neurons.values();
  // Blocks of few large neurons, more or fewer of them from block to block; one without any mass.
  for (int64_t j = 0; j < n; ++j) {
    bool large = static_cast<int64_t>(generator()() % block) < j / block;
    values[j] = j / block == 1 ? 0 : std::fabs(values[j]) * (large ? 100 : 1);
  }
  neurons.set(values);
  values = neurons.values();
  auto p = params<pnb_relative_mass_params>();
  p.block_size = block, p.threshold = threshold, p.share = share, p.neuron_mass = neurons.t, p.scores = scores.t;
  ok(what, [&] { backend().relative_mass(p); });
  std::vector<double> expected(n / block);
  for (int64_t b = 0; b < n / block; ++b) {
    auto first = values.begin() + b * block;
    auto largest = static_cast<float>(*std::max_element(first, first + block));
    float limit = threshold * largest;
    auto below = static_cast<float>(std::count_if(first, first + block, [&](double v) { return v < limit; }));
    expected[b] = below >= share * static_cast<float>(block) ? 0 : std::accumulate(first, first + block, 0.0);
  }
  close(scores.values(), expected, 1e-6, what);
}

enum class Scores { kAny, kEqual, kOdd, kNone };

void select(int64_t lists, int64_t blocks, int64_t capacity, float coverage, Scores kind, bool with_summary) {
  std::string what = "select of " + std::to_string(lists) + " x " + std::to_string(blocks) + " blocks, room for " +
                     std::to_string(capacity) + ", coverage " + std::to_string(coverage) + ", scores of kind " +
                     std::to_string(static_cast<int>(kind));
  Tensor scores(PNB_DTYPE_F32, {lists, blocks + 5}), indices(PNB_DTYPE_I32, {lists, capacity + 2}, 0),
      counts(PNB_DTYPE_I32, {lists}, 0);
  Tensor summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE}, 0);
  auto values = scores.values();
  for (double& v : values) {
    if (kind == Scores::kEqual) v = std::floor(v);  // many of a few values
    if (kind == Scores::kAny) v = std::exp(3 * v);
    if (kind == Scores::kNone) v = -std::fabs(v);
    uint32_t dice = generator()() % 16;
    if (kind == Scores::kOdd && dice == 0) v = NAN;
    if (kind == Scores::kOdd && dice == 1) v = -std::numeric_limits<double>::infinity();
    if (kind == Scores::kOdd && dice == 2) v = std::numeric_limits<float>::denorm_min();
    if (kind == Scores::kOdd && dice == 3) v = -0.0;
  }
  scores.set(values);
  values = scores.values();
  auto p = params<pnb_select_blocks_params>();
  p.coverage = coverage, p.scores = scores.columns(0, blocks), p.blocks.indices = indices.columns(0, capacity),
  p.blocks.counts = counts.t;
  if (with_summary) p.summary = summary.t;
  ok(what, [&] { backend().select_blocks(p); });
  auto found = indices.values(), found_counts = counts.values();
  int64_t kept = 0, cut = 0;
  double covered = 0, whole = 0;
  for (int64_t l = 0; l < lists; ++l) {
    std::vector<float> s(blocks);
    std::vector<int> order;
    for (int64_t b = 0; b < blocks; ++b) {
      auto v = static_cast<float>(values[l * (blocks + 5) + b]);
      s[b] = v > 0 ? v : 0;
      if (s[b] > 0) order.push_back(static_cast<int>(b));
    }
    std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return s[x] > s[y]; });
    float total = 0, sum = 0, fits = 0;
    for (int b : order) total += s[b];
    float target = coverage * total;
    int64_t wanted = 0;
    while (wanted < static_cast<int64_t>(order.size()) && (coverage == 1 || sum < target)) {
      sum += s[order[wanted++]];
      if (wanted <= capacity) fits = sum;
    }
    order.resize(std::min(wanted, capacity));
    std::sort(order.begin(), order.end());
    std::string which = what + ", list " + std::to_string(l);
    expect(found_counts[l] == static_cast<double>(order.size()), which + ": expected " + std::to_string(order.size()) +
                                                                     " blocks, found " +
                                                                     std::to_string(static_cast<int64_t>(found_counts[l])));
    for (size_t c = 0; c < order.size(); ++c) {
      double at = found[l * (capacity + 2) + c];
      if (at == order[c]) continue;
      expect(false,
             which + ": expected block " + std::to_string(order[c]) + " at " + std::to_string(c) + ", found " + std::to_string(at));
      break;
    }
    for (int64_t c = capacity; c < capacity + 2; ++c) {
      expect(found[l * (capacity + 2) + c] == 0x7f7f7f7f, which + ": written past its capacity");
    }
    kept += order.size(), cut += wanted > capacity, covered += fits, whole += total;
  }
  if (!with_summary) return;
  auto told = summary.values();
  close({told[PNB_SUMMARY_KEPT]}, {static_cast<double>(kept) / (lists * blocks)}, 1e-6, what + " kept");
  close({told[PNB_SUMMARY_COVERED]}, {whole == 0 ? 1 : covered / whole}, 1e-6, what + " covered");
  close({told[PNB_SUMMARY_CUT]}, {static_cast<double>(cut) / lists}, 1e-6, what + " cut");
}

// Kernels that begin early, behind a copy, behind each other and behind a plain kernel, in a graph: replayed, they see the
// scores that are there then.
void captured() {
  int64_t blocks = 256;
  Tensor source(PNB_DTYPE_F32, {1, blocks}), scores(PNB_DTYPE_F32, {1, blocks}), indices(PNB_DTYPE_I32, {1, blocks}, 0),
      counts(PNB_DTYPE_I32, {1}, 0);
  Tensor mass(PNB_DTYPE_F32, {blocks * 32});
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cuda(cudaStreamCreate(&stream));
  auto select = params<pnb_select_blocks_params>();
  select.stream = stream, select.coverage = 1, select.scores = scores.t, select.blocks.indices = indices.t,
  select.blocks.counts = counts.t;
  auto relative = params<pnb_relative_mass_params>();
  relative.stream = stream, relative.block_size = 32, relative.threshold = 0, relative.share = 1;
  relative.neuron_mass = mass.t, relative.scores = scores.t;
  auto fill = params<pnb_fill_params>();
  fill.stream = stream, fill.d = mass.t, fill.value = 3;
  ok("captured", [&] {
    backend().select_blocks(select);  // loads the kernels
    cuda(cudaStreamSynchronize(stream));
    cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cuda(cudaMemcpyAsync(scores.t.data, source.t.data, blocks * 4, cudaMemcpyDeviceToDevice, stream));
    backend().select_blocks(select);
    backend().fill(fill);
    backend().relative_mass(relative);
    backend().select_blocks(select);
    backend().select_blocks(select);
    cuda(cudaMemsetAsync(indices.t.data, 0, 4, stream));
    cuda(cudaMemcpyAsync(scores.t.data, source.t.data, blocks * 4, cudaMemcpyDeviceToDevice, stream));
    backend().select_blocks(select);
    cuda(cudaStreamEndCapture(stream, &graph));
  });
  cuda(cudaGraphInstantiate(&ready, graph, 0));
  for (int replay = 0; replay < 3; ++replay) {
    std::vector<double> values(blocks);
    int64_t positive = 0;
    for (double& v : values) v = static_cast<double>(generator()() % 3), positive += v > 0;
    source.set(values);
    cuda(cudaGraphLaunch(ready, stream));
    cuda(cudaStreamSynchronize(stream), "a captured choice");
    expect(counts.values()[0] == static_cast<double>(positive),
           "captured choice: expected " + std::to_string(positive) + " blocks, found " + std::to_string(counts.values()[0]));
  }
  cudaGraphExecDestroy(ready), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
}

// The clusters of a list find in the workspace who has come: also when a graph is launched again, and where another prediction
// has been there in between.
void captured_prediction() {
  int64_t rows = 130, h = 256, r = 16, units = 48;
  Tensor source(PNB_DTYPE_F32, {rows, h}), pooled(PNB_DTYPE_F32, {rows, h}), a(PNB_DTYPE_F32, {r, h}, 0.1),
      b(PNB_DTYPE_F32, {units, r});
  Tensor found(PNB_DTYPE_F32, {2, units}, 0), expected(PNB_DTYPE_F32, {2, units}, 0);
  auto p = params<pnb_predict_mass_params>();
  p.units_per_score = 1, p.pooled = pooled.t, p.a = a.t, p.b = b.t, p.pooled_per_list = 70, p.scores = found.t;
  auto other = p;
  other.pooled = source.t, other.scores = expected.t;
  Workspace space(backend().predict_mass_workspace(p)), own(space.w.bytes);
  p.workspace = space.w, other.workspace = own.w;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cuda(cudaStreamCreate(&stream));
  p.stream = stream;
  ok("captured prediction", [&] {
    backend().predict_mass(p);  // loads the kernel
    cuda(cudaStreamSynchronize(stream));
    cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cuda(cudaMemcpyAsync(pooled.t.data, source.t.data, rows * h * 4, cudaMemcpyDeviceToDevice, stream));
    backend().predict_mass(p);
    backend().predict_mass(p);
    cuda(cudaStreamEndCapture(stream, &graph));
  });
  cuda(cudaGraphInstantiate(&ready, graph, 0));
  for (int replay = 0; replay < 4; ++replay) {
    source.set(Tensor(PNB_DTYPE_F32, {rows, h}).values());
    cuda(cudaMemset(found.t.data, 0x7f, found.size() * 4));
    cuda(cudaGraphLaunch(ready, stream));
    cuda(cudaStreamSynchronize(stream), "a captured prediction");
    other.workspace = replay == 1 ? space.w : own.w;
    ok("captured prediction", [&] { backend().predict_mass(other); });
    cuda(cudaDeviceSynchronize(), "a prediction");
    expect(found.bits() == expected.bits(),
           "captured prediction: replay " + std::to_string(replay) + " gives other bits than a call");
  }
  cudaGraphExecDestroy(ready), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
}

// What a step runs before a sparse MLP, each kernel begun while the one before ends: the norm's pools, their prediction, also by
// a predictor that has just been copied, and the choice are those of calls that are waited for one by one.
void captured_choice(int64_t blocks, int64_t lists) {
  std::string what = "captured choice of " + std::to_string(lists) + " lists of " + std::to_string(blocks) + " blocks";
  int64_t m = 1024, h = 512, r = 32, pools = m / 16;
  Tensor source(PNB_DTYPE_BF16, {m, h}), x(PNB_DTYPE_BF16, {m, h}), y(PNB_DTYPE_BF16, {m, h}), gamma(PNB_DTYPE_F32, {h}),
      beta(PNB_DTYPE_F32, {h}), pooled(PNB_DTYPE_F32, {pools, h});
  Tensor a(PNB_DTYPE_F32, {r, h}), b(PNB_DTYPE_F32, {blocks, r}), scores(PNB_DTYPE_F32, {lists, blocks}),
      new_a(PNB_DTYPE_F32, {r, h});
  Tensor indices(PNB_DTYPE_I32, {lists, blocks}), counts(PNB_DTYPE_I32, {lists}), summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE});
  auto norm = params<pnb_layer_norm_forward_params>();
  norm.epsilon = 1e-5f, norm.x = x.t, norm.y = y.t, norm.gamma = gamma.t, norm.beta = beta.t, norm.pooled = pooled.t;
  norm.pool_rows = 16;
  auto predict = params<pnb_predict_mass_params>();
  predict.units_per_score = 1, predict.pooled = pooled.t, predict.a = a.t, predict.b = b.t, predict.scores = scores.t;
  predict.pooled_per_list = pools / lists;
  Workspace space(backend().predict_mass_workspace(predict));
  predict.workspace = space.w;
  auto select = params<pnb_select_blocks_params>();
  select.coverage = 0.7f, select.scores = scores.t, select.blocks.indices = indices.t, select.blocks.counts = counts.t,
  select.summary = summary.t;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cuda(cudaStreamCreate(&stream));
  auto run = [&](cudaStream_t of, bool one_by_one) {
    norm.stream = predict.stream = select.stream = of;
    backend().layer_norm_forward(norm);
    if (one_by_one) cuda(cudaDeviceSynchronize(), what.c_str());
    backend().predict_mass(predict);
    if (one_by_one) cuda(cudaDeviceSynchronize(), what.c_str());
    backend().select_blocks(select);
  };
  ok(what, [&] {
    run(stream, true);  // loads the kernels
    cuda(cudaStreamSynchronize(stream));
    cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cuda(cudaMemcpyAsync(x.t.data, source.t.data, m * h * 2, cudaMemcpyDeviceToDevice, stream));
    for (int i = 0; i < 2; ++i) run(stream, false);
    cuda(cudaMemcpyAsync(a.t.data, new_a.t.data, r * h * 4, cudaMemcpyDeviceToDevice, stream));
    predict.stream = select.stream = stream;
    backend().predict_mass(predict);
    backend().select_blocks(select);
    cuda(cudaStreamEndCapture(stream, &graph));
  });
  cuda(cudaGraphInstantiate(&ready, graph, 0));
  // The lists one after another, without what lies behind their ends.
  auto chosen = [&] {
    auto all = indices.values(), ends = counts.values();
    std::vector<double> of_lists;
    for (int64_t l = 0; l < lists; ++l) {
      of_lists.insert(of_lists.end(), all.begin() + l * blocks, all.begin() + l * blocks + static_cast<int64_t>(ends[l]));
    }
    return of_lists;
  };
  for (int replay = 0; replay < 20; ++replay) {
    source.set(Tensor(PNB_DTYPE_BF16, {m, h}).values());
    new_a.set(Tensor(PNB_DTYPE_F32, {r, h}).values());
    for (Tensor* each : {&pooled, &scores, &indices, &counts, &summary}) cuda(cudaMemset(each->t.data, 0x7f, each->size() * 4));
    cuda(cudaGraphLaunch(ready, stream));
    cuda(cudaStreamSynchronize(stream), what.c_str());
    auto found_scores = scores.bits(), found_counts = counts.bits(), found_summary = summary.bits();
    auto found = chosen();
    ok(what, [&] { run(nullptr, true); });
    cuda(cudaDeviceSynchronize(), what.c_str());
    std::string which = what + ", replay " + std::to_string(replay);
    expect(found_scores == scores.bits(), which + ": other scores than by calls one by one");
    expect(found_counts == counts.bits() && found == chosen(), which + ": other blocks");
    expect(found_summary == summary.bits(), which + ": another summary");
  }
  cudaGraphExecDestroy(ready), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
}

void pooled_norm(int64_t m, int64_t h, int64_t pool_rows, int32_t dtype, int64_t valid, bool in_place) {
  std::string what = std::string("pooled norm ") + pnb::dtype_name(dtype) + " [" + std::to_string(m) + ", " + std::to_string(h) +
                     "] pools of " + std::to_string(pool_rows) + ", valid " + std::to_string(valid);
  int64_t pools = (m + pool_rows - 1) / pool_rows;
  Tensor x(dtype, {m, h}), gamma(PNB_DTYPE_F32, {h}), beta(PNB_DTYPE_F32, {h}), y(dtype, {m, h}, 0), mean(PNB_DTYPE_F32, {m}, 0);
  Tensor rstd(PNB_DTYPE_F32, {m}, 0), pooled(PNB_DTYPE_F32, {pools, h}, 0), valid_rows(PNB_DTYPE_I32, {1});
  auto xs = x.values();
  for (double& v : xs) v = 5 + 3 * v;
  x.set(xs);
  xs = x.values();
  valid_rows.set({static_cast<double>(valid)});
  auto p = params<pnb_layer_norm_forward_params>();
  p.epsilon = 1e-5f, p.x = x.t, p.gamma = gamma.t, p.beta = beta.t, p.y = in_place ? x.t : y.t, p.mean = mean.t, p.rstd = rstd.t;
  p.pooled = pooled.t, p.pool_rows = pool_rows;
  if (valid >= 0) p.valid_rows = valid_rows.t;
  ok(what, [&] { backend().layer_norm_forward(p); });
  auto gs = gamma.values(), bs = beta.values();
  std::vector<double> ys(m * h), means(m), scales(m), expected(pools * h), counts(pools);
  for (int64_t i = 0; i < m; ++i) {
    double squares = 0;
    for (int64_t j = 0; j < h; ++j) means[i] += xs[i * h + j] / h;
    for (int64_t j = 0; j < h; ++j) squares += std::pow(xs[i * h + j] - means[i], 2);
    scales[i] = 1 / std::sqrt(squares / h + 1e-5);
    bool counted = valid < 0 || i < valid;
    counts[i / pool_rows] += counted;
    for (int64_t j = 0; j < h; ++j) {
      ys[i * h + j] = (xs[i * h + j] - means[i]) * scales[i] * gs[j] + bs[j];
      if (counted) expected[i / pool_rows * h + j] += ys[i * h + j];
    }
  }
  for (int64_t i = 0; i < pools * h; ++i) expected[i] = counts[i / h] > 0 ? expected[i] / counts[i / h] : 0;
  close((in_place ? x : y).values(), ys, 2 * rounding_error(ys, dtype) + 3e-6, what + " y");
  close(mean.values(), means, 1e-6, what + " mean");
  close(rstd.values(), scales, 1e-6, what + " rstd");
  close(pooled.values(), expected, 1e-5, what + " pooled");
}

}  // namespace

// With an argument: a few small cases, for tools that slow kernels down.
int main(int argc, char**) {
  backend();  // without a GPU the test ends here
  if (argc > 1) {
    for (int32_t dtype : {PNB_DTYPE_BF16, PNB_DTYPE_U8}) mass(70, 192, 64, 32, dtype, 61, true, 4, 0);
    predict(130, 260, 16, 24, 1, 130, true, true, 0);
    predict(37, 256, 16, 24, 1, 16, true, true, 0);
    predict(20, 101, 7, 60, 5, 8, true, false, 1);
    select(3, 64, 20, 0.9f, Scores::kAny, true);
    select(17, 64, 20, 0.9f, Scores::kAny, true);
    select(2, 257, 100, 0.9f, Scores::kAny, true);
    pooled_norm(75, 256, 16, PNB_DTYPE_BF16, 50, true);
    pooled_norm(70, 256, 64, PNB_DTYPE_BF16, 66, false);
    return finish("sparse");
  }
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16, PNB_DTYPE_U8}) {
    mass(1, 32, 32, 1, dtype, -1, false, 0, 0);
    mass(300, 1120, 32, 300, dtype, 211, true, 4, 0);
    mass(700, 640, 128, 128, dtype, 300, true, 8, 0);
    mass(513, 2048, 64, 256, dtype, -1, true, 0, 0);
    mass(70, 192, 64, 128, dtype, 0, true, 3, 1);
    mass(9000, 128, 128, 9000, dtype, 8999, false, 0, 0);
  }
  mass(140000, 64, 32, 140000, PNB_DTYPE_U8, -1, true, 0, 0);  // more rows than a byte of a thread counts
  predict(256, 2048, 32, 256, 1, 256, true, true, 0);
  predict(256, 2048, 32, 64, 1, 16, true, false, 0);
  predict(256, 2560, 32, 80, 1, 256, true, true, 0);
  predict(700, 1284, 48, 150, 1, 700, true, true, 0);  // more clusters of a list than are read at once
  predict(300, 256, 32, 1, 1, 150, true, true, 0);
  predict(200, 256, 32, 1024, 1, 100, true, true, 0);
  predict(37, 768, 16, 96, 1, 16, true, true, 0);
  predict(100, 300, 128, 640, 64, 33, false, true, 4);
  predict(20, 101, 7, 60, 5, 8, true, false, 1);
  predict(64, 512, 20, 8192, 32, 64, true, true, 0);
  predict(5, 64, 33, 4224, 128, 2, false, false, 0);
  predict(1, 4, 1, 1, 1, 1, false, false, 0);
  for (int32_t block : {32, 64, 128}) relative(block * 40, block, 0.05f, 0.9f), relative(block * 7, block, 0.5f, 0.5f);
  for (Scores kind : {Scores::kAny, Scores::kEqual, Scores::kOdd, Scores::kNone}) {
    for (float coverage : {0.01f, 0.5f, 0.9f, 0.99f, 1.0f}) {
      select(1, 256, 256, coverage, kind, true);
      select(3, 64, 20, coverage, kind, true);
      select(19, 257, 100, coverage, kind, true);
      select(5, 1, 1, coverage, kind, false);
      select(2, 1500, 700, coverage, kind, true);
      select(9, 4096, 4096, coverage, kind, false);
    }
  }
  select(64, 128, 0, 0.5f, Scores::kAny, true);
  for (int64_t lists : {16, 35}) select(lists, 200, 60, 0.9f, Scores::kEqual, true);  // several in a block of threads
  captured();
  captured_prediction();
  for (int64_t lists : {1, 16}) captured_choice(64, lists), captured_choice(256, lists);
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    pooled_norm(128, 2048, 16, dtype, -1, false);
    pooled_norm(75, 768, 16, dtype, 50, true);
    pooled_norm(300, 256, 128, dtype, 131, false);
    pooled_norm(33, 2560, 1, dtype, 20, true);
    pooled_norm(40, 8192, 10, dtype, 0, false);
    pooled_norm(70, 5120, 64, dtype, 66, false);
    pooled_norm(21, 1001, 8, dtype, 13, true);
    pooled_norm(9, 16384, 100, dtype, -1, false);
  }
  return finish("sparse");
}
