// LoRA's passes over chains of adapters and over compact operands, against doubles on the host: the streaming kernels (bf16,
// aligned rows, few ranks) and the plain ones.
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

// Lists of ascending blocks; the first is full, the second empty, the others of any length.
struct Lists {
  int64_t rows_per_list, blocks, capacity;
  int32_t size;
  std::vector<std::vector<int32_t>> lists;
  Tensor indices, counts;

  Lists(int64_t m, int64_t rows_per_list, int32_t size, int64_t blocks, int64_t capacity)
      : rows_per_list(rows_per_list), blocks(blocks), capacity(capacity), size(size),
        lists((m + rows_per_list - 1) / rows_per_list), indices(PNB_DTYPE_I32, {static_cast<int64_t>(lists.size()), capacity + 3}),
        counts(PNB_DTYPE_I32, {static_cast<int64_t>(lists.size())}) {
    std::vector<double> at(lists.size() * (capacity + 3), 1e9), count;
    for (size_t l = 0; l < lists.size(); ++l) {
      std::vector<int32_t> all(blocks);
      for (int64_t b = 0; b < blocks; ++b) all[b] = static_cast<int32_t>(b);
      std::shuffle(all.begin(), all.end(), generator());
      all.resize(l == 0 ? capacity : l == 1 ? 0 : generator()() % (capacity + 1));
      std::sort(all.begin(), all.end());
      for (size_t c = 0; c < all.size(); ++c) at[l * (capacity + 3) + c] = all[c];
      count.push_back(static_cast<double>(all.size()));
      lists[l] = all;
    }
    indices.set(at), counts.set(count);
  }

  pnb_block_list list() const {
    pnb_block_list b{};
    b.indices = indices.columns(0, capacity);
    b.counts = counts.t;
    b.size = size;
    b.rows_per_list = rows_per_list;
    return b;
  }
};

// A matrix [m, width] as the operation sees it: with lists, compact, and not a number where nothing may be read.
struct Operand {
  int64_t m, width, columns, pad;
  const Lists* lists;
  std::vector<double> full;  // [m, width]; zero where no list has the neuron
  Tensor tensor;

  Operand(int32_t dtype, int64_t m, int64_t width, const Lists* lists, int64_t pad, double centre = 0)
      : m(m), width(width), columns(lists == nullptr ? width : lists->capacity * lists->size), pad(pad), lists(lists),
        full(m * width), tensor(dtype, {m, columns + pad}) {
    auto values = tensor.values();
    for (int64_t i = 0; i < m; ++i) {
      const std::vector<int32_t>* list = lists == nullptr ? nullptr : &lists->lists[i / lists->rows_per_list];
      for (int64_t j = 0; j < columns; ++j) {
        double& value = values[i * (columns + pad) + j];
        if (centre != 0) value = bf16_to_float(float_to_bf16(static_cast<float>(value + centre)));
        if (list == nullptr) full[i * width + j] = value;
        else if (j / lists->size >= static_cast<int64_t>(list->size())) value = NAN;
        else full[i * width + (*list)[j / lists->size] * lists->size + j % lists->size] = value;
      }
    }
    tensor.set(values);
  }

  pnb_tensor view() const { return tensor.columns(0, columns); }
  pnb_block_list list() const { return lists == nullptr ? pnb_block_list{} : lists->list(); }
};

struct Case {
  int64_t m, in;
  std::vector<int64_t> outs, ranks;
  int32_t dtype;
  int32_t x_size = 0, dy_size = 0;  // of blocks; 0: no lists
  int64_t rows_per_list = 1 << 20;
  int64_t pad = 8;  // columns beside those of an operand: an odd number makes rows unaligned
  float dropout = 0.0f;
  bool normed = false;  // dA of a layer norm of x
  double centre = 0.0;  // of x's rows, whose deviation is 1

  std::string text() const {
    std::string s = std::string("lora ") + pnb::dtype_name(dtype) + " [" + std::to_string(m) + ", " + std::to_string(in) + "]";
    for (size_t i = 0; i < outs.size(); ++i) s += " to " + std::to_string(outs[i]) + " rank " + std::to_string(ranks[i]);
    if (x_size != 0) s += ", x in blocks of " + std::to_string(x_size);
    if (dy_size != 0) s += ", dy in blocks of " + std::to_string(dy_size);
    if (x_size + dy_size != 0) s += ", lists of " + std::to_string(rows_per_list) + " rows";
    if (normed) s += ", normed, centre " + std::to_string(centre);
    return s + ", pad " + std::to_string(pad) + ", dropout " + std::to_string(dropout);
  }
};

struct Adapter {
  Operand dy;
  Tensor a, b_t, h, dh, da, db;  // b is the transpose of b_t in every other adapter, so that both layouts are read

  Adapter(const Case& c, int64_t out, int64_t r, const Lists* lists)
      : dy(c.dtype, c.m, out, lists, c.pad), a(PNB_DTYPE_F32, {r, c.in}), b_t(PNB_DTYPE_F32, {r, out}),
        h(PNB_DTYPE_F32, {c.m, r}, 0), dh(PNB_DTYPE_F32, {c.m, r}, 0), da(PNB_DTYPE_F32, {r, c.in}), db(PNB_DTYPE_F32, {out, r}) {}

  pnb_tensor b() const {
    pnb_tensor t = b_t.t;
    std::swap(t.shape[0], t.shape[1]), std::swap(t.stride[0], t.stride[1]);
    return t;
  }
};

// The layer norm of an operand, with the statistics that it is given in f32.
struct Normed {
  Tensor mean, rstd, gamma, beta;

  Normed(const std::vector<double>& x, int64_t m, int64_t in)
      : mean(PNB_DTYPE_F32, {m}), rstd(PNB_DTYPE_F32, {m}), gamma(PNB_DTYPE_F32, {in}), beta(PNB_DTYPE_F32, {in}) {
    std::vector<double> means(m), rstds(m);
    for (int64_t i = 0; i < m; ++i) {
      double squares = 0;
      for (int64_t j = 0; j < in; ++j) means[i] += x[i * in + j] / static_cast<double>(in);
      for (int64_t j = 0; j < in; ++j) squares += std::pow(x[i * in + j] - means[i], 2) / static_cast<double>(in);
      rstds[i] = 1 / std::sqrt(squares + 1e-5);
    }
    mean.set(means), rstd.set(rstds);
  }

  pnb_layer_norm norm() const { return {mean.t, rstd.t, gamma.t, beta.t}; }

  std::vector<double> of(const std::vector<double>& x) const {
    auto means = mean.values(), rstds = rstd.values(), gammas = gamma.values(), betas = beta.values();
    std::vector<double> y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      size_t row = i / gammas.size(), column = i % gammas.size();
      y[i] = (x[i] - means[row]) * rstds[row] * gammas[column] + betas[column];
    }
    return y;
  }
};

// left [m, r]^T times right [m, columns].
std::vector<double> product_of_rows(const std::vector<double>& left, int64_t r, const std::vector<double>& right, int64_t columns) {
  std::vector<double> sums(r * columns);
  for (int64_t i = 0; i < static_cast<int64_t>(right.size()) / columns; ++i) {
    for (int64_t k = 0; k < r; ++k) {
      for (int64_t j = 0; j < columns; ++j) sums[k * columns + j] += left[i * r + k] * right[i * columns + j];
    }
  }
  return sums;
}

struct Results {
  std::vector<std::vector<char>> bits;
};

// Runs a chain; checks it where there is no dropout, whose mask the host does not know.
Results run(const Case& c) {
  std::string what = c.text();
  auto lists_of = [&](int64_t width, int32_t size) {
    if (size == 0) return std::unique_ptr<Lists>();
    int64_t blocks = width / size;
    return std::make_unique<Lists>(c.m, c.rows_per_list, size, blocks, std::max<int64_t>(1, blocks * 3 / 4));
  };
  auto x_lists = lists_of(c.in, c.x_size);
  Operand x(c.dtype, c.m, c.in, x_lists.get(), c.pad, c.centre);
  std::unique_ptr<Normed> normed;
  if (c.normed) normed = std::make_unique<Normed>(x.full, c.m, c.in);
  Tensor state(PNB_DTYPE_U64, {2});
  state.set({12345, 678});
  std::vector<std::unique_ptr<Lists>> dy_lists;
  std::vector<std::unique_ptr<Adapter>> adapters;
  std::vector<pnb_lora_project_params> project(c.outs.size());
  std::vector<pnb_lora_gradients_params> gradients(c.outs.size());
  std::vector<std::vector<double>> da0, db0;
  for (size_t i = 0; i < c.outs.size(); ++i) {
    dy_lists.push_back(lists_of(c.outs[i], c.dy_size));
    adapters.push_back(std::make_unique<Adapter>(c, c.outs[i], c.ranks[i], dy_lists.back().get()));
    Adapter& one = *adapters.back();
    da0.push_back(one.da.values()), db0.push_back(one.db.values());
    pnb_dropout dropout{};
    dropout.p = c.dropout, dropout.stream = 7 + i, dropout.state = state.t;
    auto& p = project[i] = params<pnb_lora_project_params>();
    p.x = x.view(), p.x_blocks = x.list(), p.a = one.a.t, p.h = one.h.t, p.dropout = dropout;
    auto& g = gradients[i] = params<pnb_lora_gradients_params>();
    g.scaling = 1.5f, g.dy = one.dy.view(), g.dy_blocks = one.dy.list(), g.x = x.view(), g.x_blocks = x.list(), g.h = one.h.t,
    g.a = one.a.t;
    g.b = one.b(), g.dh = one.dh.t, g.da = one.da.t, g.db = one.db.t, g.dropout = dropout;
    if (c.normed) g.norm = normed->norm();
  }
  for (size_t i = 0; i + 1 < c.outs.size(); ++i) project[i].next = &project[i + 1], gradients[i].next = &gradients[i + 1];
  ok(what, [&] {
    backend().lora_project(project[0]);
    Workspace space(backend().lora_gradients_workspace(gradients[0]));
    gradients[0].workspace = space.w;
    backend().lora_gradients(gradients[0]);
    cuda(cudaDeviceSynchronize(), what.c_str());
  });

  Results results;
  for (size_t i = 0; i < c.outs.size(); ++i) {
    Adapter& one = *adapters[i];
    for (const Tensor* t : {&one.h, &one.dh, &one.da, &one.db}) results.bits.push_back(t->bits());
    if (c.dropout != 0) continue;
    int64_t r = c.ranks[i], out = c.outs[i];
    auto as = one.a.values(), bs = one.b_t.values();
    std::vector<double> hs(c.m * r), dhs(c.m * r), dbs = db0[i];
    for (int64_t row = 0; row < c.m; ++row) {
      const double* xs = &x.full[row * c.in];
      const double* ds = &one.dy.full[row * out];
      for (int64_t k = 0; k < r; ++k) {
        double h = 0, dh = 0;
        for (int64_t j = 0; j < c.in; ++j) h += xs[j] * as[k * c.in + j];
        for (int64_t j = 0; j < out; ++j) dh += 1.5 * ds[j] * bs[k * out + j];
        hs[row * r + k] = h, dhs[row * r + k] = dh;
        for (int64_t j = 0; j < out; ++j) dbs[j * r + k] += 1.5 * ds[j] * h;
      }
    }
    std::string which = what + ", adapter " + std::to_string(i);
    close(one.h.values(), hs, 3e-6, which + " h");
    close(one.dh.values(), dhs, 3e-6, which + " dh");
    auto expected = c.normed ? normed->of(x.full) : x.full;
    auto das = product_of_rows(dhs, r, expected, c.in);
    double allowed = 3e-6;
    if (c.normed && c.dtype == PNB_DTYPE_BF16) {
      std::vector<double> rounded(expected.size());
      for (size_t k = 0; k < rounded.size(); ++k) rounded[k] = bf16_to_float(float_to_bf16(static_cast<float>(expected[k])));
      allowed += 2 * relative_error(product_of_rows(dhs, r, rounded, c.in), das);
    }
    auto found = one.da.values();
    for (size_t k = 0; k < found.size(); ++k) found[k] -= da0[i][k];
    close(found, das, allowed, which + " dA");
    close(one.db.values(), dbs, 3e-6, which + " dB");
  }
  return results;
}

// The mask belongs to an element's place in the whole x: a compact x gives what one with zeros in the other places gives, and
// rows that only the plain kernels take what the streaming ones give.
void dropout_has_no_lists(int64_t m, int64_t in, int32_t size, int64_t rows_per_list, int32_t dtype) {
  std::string what = std::string("lora dropout over compact columns ") + pnb::dtype_name(dtype);
  int64_t out = 64, blocks = in / size;
  Lists lists(m, rows_per_list, size, blocks, blocks * 3 / 4);
  Operand compact(dtype, m, in, &lists, 8);
  Tensor state(PNB_DTYPE_U64, {2}), a(PNB_DTYPE_F32, {4, in}), b(PNB_DTYPE_F32, {out, 4}), dy(dtype, {m, out});
  state.set({99, 3});
  std::vector<double> h[3], da[3];
  for (int form = 0; form < 3; ++form) {
    int64_t pad = form == 2 ? 1 : 0;
    Tensor x(dtype, {m, in + pad});
    std::vector<double> values(m * (in + pad), NAN);
    for (int64_t i = 0; i < m; ++i) std::copy_n(&compact.full[i * in], in, &values[i * (in + pad)]);
    x.set(values);
    Tensor low(PNB_DTYPE_F32, {m, 4}, 0), dh(PNB_DTYPE_F32, {m, 4}, 0), a_gradient(PNB_DTYPE_F32, {4, in}),
        b_gradient(PNB_DTYPE_F32, {out, 4});
    a_gradient.set(std::vector<double>(4 * in, 0.0)), b_gradient.set(std::vector<double>(4 * out, 0.0));
    auto p = params<pnb_lora_project_params>();
    p.x = form == 0 ? compact.view() : x.columns(0, in), p.a = a.t, p.h = low.t;
    p.dropout.p = 0.3f, p.dropout.stream = 5, p.dropout.state = state.t;
    if (form == 0) p.x_blocks = lists.list();
    auto g = params<pnb_lora_gradients_params>();
    g.scaling = 1, g.dy = dy.t, g.x = p.x, g.x_blocks = p.x_blocks, g.h = low.t, g.a = a.t, g.b = b.t, g.dh = dh.t,
    g.da = a_gradient.t;
    g.db = b_gradient.t, g.dropout = p.dropout;
    ok(what, [&] {
      backend().lora_project(p);
      Workspace space(backend().lora_gradients_workspace(g));
      g.workspace = space.w;
      backend().lora_gradients(g);
      cuda(cudaDeviceSynchronize(), what.c_str());
    });
    h[form] = low.values(), da[form] = a_gradient.values();
  }
  for (int form : {1, 2}) {
    close(h[0], h[form], 3e-6, what + ": h");
    close(da[0], da[form], 3e-6, what + ": dA");
  }
}

// Dropout draws from the normed input: dA is what it would be from a norm that was stored.
void dropout_follows_the_norm(int64_t m, int64_t in, int64_t pad, int32_t dtype) {
  std::string what = std::string("lora dropout of a norm ") + pnb::dtype_name(dtype) + ", pad " + std::to_string(pad);
  int64_t out = 64;
  Tensor x(dtype, {m, in + pad}), y(dtype, {m, in}, 0), state(PNB_DTYPE_U64, {2}), a(PNB_DTYPE_F32, {4, in}),
      b(PNB_DTYPE_F32, {out, 4});
  Tensor dy(dtype, {m, out}), low(PNB_DTYPE_F32, {m, 4}), dh(PNB_DTYPE_F32, {m, 4}, 0), db(PNB_DTYPE_F32, {out, 4});
  state.set({99, 3});
  Operand values(dtype, m, in, nullptr, 0);
  Normed normed(values.full, m, in);
  auto forward = params<pnb_layer_norm_forward_params>();
  forward.epsilon = 1e-5f, forward.x = x.columns(0, in), forward.y = y.t, forward.gamma = normed.gamma.t,
  forward.beta = normed.beta.t;
  forward.mean = normed.mean.t, forward.rstd = normed.rstd.t;
  std::vector<double> da[2];
  for (bool stored : {true, false}) {
    Tensor gradient(PNB_DTYPE_F32, {4, in});
    gradient.set(std::vector<double>(4 * in, 0.0));
    auto g = params<pnb_lora_gradients_params>();
    g.scaling = 1, g.dy = dy.t, g.h = low.t, g.a = a.t, g.b = b.t, g.dh = dh.t, g.da = gradient.t, g.db = db.t;
    g.dropout.p = 0.3f, g.dropout.stream = 5, g.dropout.state = state.t;
    if (stored) g.x = y.t;
    else g.x = x.columns(0, in), g.norm = normed.norm();
    ok(what, [&] {
      if (stored) backend().layer_norm_forward(forward);
      Workspace space(backend().lora_gradients_workspace(g));
      g.workspace = space.w;
      backend().lora_gradients(g);
      cuda(cudaDeviceSynchronize(), what.c_str());
    });
    da[stored] = gradient.values();
  }
  close(da[0], da[1], dtype == PNB_DTYPE_BF16 ? 2e-4 : 3e-6, what);
}

// What the largest batch is given as a workspace is enough for smaller ones.
void workspace_grows(int64_t in, const std::vector<int64_t>& outs, int64_t r, float dropout) {
  std::vector<pnb_lora_gradients_params> chain(outs.size());
  auto matrix = [](int32_t dtype, int64_t rows, int64_t columns) {
    return pnb_tensor{nullptr, dtype, 2, {rows, columns}, {columns, 1}};
  };
  uint64_t before = 0;
  for (int64_t m = 1; m < 5000; m += 13) {
    for (size_t i = 0; i < outs.size(); ++i) {
      auto& g = chain[i] = params<pnb_lora_gradients_params>();
      g.dy = matrix(PNB_DTYPE_BF16, m, outs[i]), g.x = matrix(PNB_DTYPE_BF16, m, in);
      g.a = matrix(PNB_DTYPE_F32, r, in), g.b = matrix(PNB_DTYPE_F32, outs[i], r), g.dropout.p = dropout;
      if (i + 1 < outs.size()) g.next = &chain[i + 1];
    }
    uint64_t bytes = backend().lora_gradients_workspace(chain[0]);
    expect(bytes >= before, "lora " + std::to_string(in) + " to " + std::to_string(outs.size()) + " of " + std::to_string(outs[0]) +
                                " rank " + std::to_string(r) + ": a smaller workspace for " + std::to_string(m) + " rows");
    before = bytes;
  }
}

}  // namespace

// With an argument: a few small cases, for tools that slow kernels down.
int main(int argc, char**) {
  backend();  // without a GPU the test ends here
  if (argc > 1) {
    run({203, 264, {328, 40}, {4, 4}, PNB_DTYPE_BF16});
    run({77, 512, {96, 96}, {8, 16}, PNB_DTYPE_BF16});
    run({300, 640, {72}, {7}, PNB_DTYPE_BF16, 32});
    run({260, 256, {1088}, {4}, PNB_DTYPE_BF16, 32, 64, 128});
    run({100, 256, {256, 256}, {4, 4}, PNB_DTYPE_BF16, 0, 0, 1 << 20, 8, 0.1f});
    run({203, 264, {328, 40}, {4, 4}, PNB_DTYPE_BF16, 0, 0, 1 << 20, 8, 0.0f, true});
    run({100, 256, {256}, {16}, PNB_DTYPE_BF16, 0, 0, 1 << 20, 8, 0.0f, true});
    dropout_follows_the_norm(100, 256, 8, PNB_DTYPE_BF16);
    return finish("lora");
  }
  for (int32_t dtype : {PNB_DTYPE_BF16, PNB_DTYPE_F32}) {
    run({203, 264, {328}, {4}, dtype});
    run({203, 264, {328, 40}, {4, 4}, dtype});
    run({1000, 2048, {2048, 1032}, {4, 4}, dtype});
    run({77, 512, {96, 96, 96}, {4, 3, 8}, dtype});
    run({77, 512, {96, 96}, {16, 16}, dtype});
    run({130, 104, {64, 64, 64, 64, 64}, {1, 2, 3, 4, 5}, dtype});
    run({77, 101, {53, 40}, {4, 4}, dtype});
    run({77, 104, {56, 40}, {17, 4}, dtype});
    run({150, 96, {88}, {8}, dtype, 0, 0, 1 << 20, 9});
    for (int32_t size : {32, 64, 128}) {
      for (int64_t r : {4, 7, 16, 40}) {
        run({300, 640, {72}, {r}, dtype, size});
        run({300, 72, {640}, {r}, dtype, 0, size});
      }
      run({400, 1280, {1280, 1280}, {4, 4}, dtype, size, size, 128});
      run({600, 1280, {640}, {8}, dtype, size, size, 256});
      run({600, 1280, {640}, {16}, dtype, size, size, 256, 9});
    }
    for (int64_t pad : {8, 9}) {
      for (double centre : {0.0, 3.0, 100.0}) {
        for (int64_t r : {4, 7, 16, 40}) run({300, 640, {72}, {r}, dtype, 0, 0, 1 << 20, pad, 0.0f, true, centre});
        run({1000, 2048, {2048, 1032}, {4, 4}, dtype, 0, 0, 1 << 20, pad, 0.0f, true, centre});
        run({77, 104, {56, 40, 40}, {3, 8, 5}, dtype, 0, 0, 1 << 20, pad, 0.0f, true, centre});
      }
      dropout_follows_the_norm(300, 640, pad, dtype);
    }
    dropout_has_no_lists(300, 640, 32, 128, dtype);
    dropout_has_no_lists(300, 640, 64, 300, dtype);
    // Every product's bits again.
    generator().seed(4);
    Case twice{1000, 1280, {2048, 2048}, {4, 4}, dtype, 32, 32, 256};
    Results first = run(twice);
    generator().seed(4);
    expect(run(twice).bits == first.bits, twice.text() + ": other bits the second time");
    run({100, 256, {256, 256}, {4, 4}, dtype, 0, 0, 1 << 20, 8, 0.1f});
  }
  // So many rows that a block takes more steps of them than it has room for.
  run({3210, 2048, {2048, 2048}, {4, 4}, PNB_DTYPE_BF16});
  run({3210, 4096, {64}, {4}, PNB_DTYPE_BF16});
  run({3210, 4096, {64, 64}, {4, 4}, PNB_DTYPE_BF16, 0, 0, 1 << 20, 8, 0.0f, true, 1.0});
  dropout_has_no_lists(3210, 4096, 64, 3210, PNB_DTYPE_BF16);
  for (int64_t r : {4, 8, 16}) {
    for (float dropout : {0.0f, 0.1f}) {
      workspace_grows(2048, {2048, 2048}, r, dropout), workspace_grows(768, {768, 768, 768}, r, dropout);
      workspace_grows(4096, {1024}, r, dropout), workspace_grows(1024, {1024, 1024, 1024, 1024, 4096}, r, dropout);
    }
  }
  return finish("lora");
}
