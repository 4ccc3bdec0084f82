// Products and LoRA passes over lists of blocks against double: block sizes, lists of every length, row groups, both dtypes,
// every epilogue. What a list does not name holds NaN where it is read and must stay as it was where it is written.
#include <memory>

#include "block_tensors.h"
#include "cpu/philox.h"

using namespace test;

namespace {

struct Options {
  int32_t dtype, d_dtype, epilogue;
  bool bias;
  int terms;
  float dropout;
  int residual;  // 0: none, 1: d itself, 2: another matrix
};

std::string text(const char* kind, int64_t m, int64_t h, const Options& o, const Blocks& blocks) {
  char buffer[200];
  std::snprintf(buffer, sizeof buffer, "%s m %lld h %lld %s->%s epilogue %d bias %d terms %d p %g residual %d,", kind,
                static_cast<long long>(m), static_cast<long long>(h), name(o.dtype), name(o.d_dtype), o.epilogue, o.bias, o.terms,
                static_cast<double>(o.dropout), o.residual);
  return buffer + blocks.text();
}

// Low-rank terms over `columns` columns: one of them all, one a part that begins and ends within blocks.
struct Terms {
  static constexpr int64_t kRank = 3;
  Tensor h, whole, part;
  uint64_t state[2] = {42, 7};
  pnb_low_rank of[2] = {};

  Terms(int64_t m, int64_t columns, float dropout)
      : h(PNB_DTYPE_F32, {m, kRank}), whole(PNB_DTYPE_F32, {columns, kRank}), part(PNB_DTYPE_F32, {kRank, columns / 2 + 1}) {
    of[0].h = of[1].h = h.t;
    of[0].b = whole.t;
    of[1].b = {part.t.data, PNB_DTYPE_F32, 2, {columns / 2 + 1, kRank}, {1, columns / 2 + 1}};
    of[1].column = columns / 4 + 1;
    for (int t = 0; t < 2; ++t) {
      of[t].scale = 0.5f;
      of[t].dropout = {dropout, static_cast<uint32_t>(t), {state, PNB_DTYPE_U64, 1, {2}, {1}}};
    }
  }

  double value(int t, int64_t i, int64_t j) const {
    const pnb_tensor& b = of[t].b;
    int64_t column = j - of[t].column;
    if (column < 0 || column >= b.shape[0]) return 0;
    double sum = 0;
    for (int64_t r = 0; r < kRank; ++r) {
      sum += h.at(i * kRank + r) * static_cast<const float*>(b.data)[column * b.stride[0] + r * b.stride[1]];
    }
    float factor = 1.0f;
    pnb::cpu::DropoutMask mask(of[t].dropout);
    if (mask.active()) mask.apply(&factor, i * b.shape[0] + column, 1);
    return 0.5 * sum * factor;
  }
};

bool bit(const Tensor& mask, int64_t row_bytes, int64_t i, int64_t j) {
  return static_cast<uint8_t>(mask.bytes[i * row_bytes + j / 8]) >> (j % 8) & 1;
}

// compact_mask: as the compact product, and so narrower than the neurons.
void sdd(pnb_context* context, int64_t m, int64_t h, const Options& o, const Blocks& blocks, bool compact_mask = false) {
  std::string what = text("sdd", m, h, o, blocks) + (compact_mask ? ", compact mask" : "");
  int64_t n = blocks.neurons, mask_columns = compact_mask ? blocks.width() : n, row_bytes = mask_columns / 8 + 5;
  Packed w(context, o.dtype, n, h);
  Tensor a(o.dtype, {m, h}), bias(PNB_DTYPE_F32, {n}), mask(PNB_DTYPE_U8, {m, row_bytes}, 0.0);
  for (char& byte : mask.bytes) byte = static_cast<char>(generator()());
  Tensor mask_before = mask;
  mask.t.shape[1] = mask_columns / 8;
  Compact d(o.d_dtype, m, blocks);
  std::fill(d.tensor.bytes.begin(), d.tensor.bytes.end(), 0x7f);
  Terms terms(m, n, o.dropout);
  auto p = params<pnb_gemm_params>();
  p.a = a.t, p.weight = w.weight, p.weight_use = PNB_WEIGHT_FORWARD, p.d = d.t, p.epilogue = o.epilogue, p.blocks = blocks.list();
  if (o.bias) p.bias = bias.t;
  if (o.epilogue != PNB_EPILOGUE_NONE) p.relu_mask = mask.t;
  p.low_rank = terms.of, p.low_rank_count = o.terms;
  ok(pnb_gemm(context, &p), what);

  std::vector<double> left = a.values(), right = w.w.values(), expected, found;
  int64_t wrong_bits = 0, touched = 0;
  for (int64_t i = 0; i < m; ++i) {
    std::vector<int64_t> neurons = blocks.of_row(i);
    std::vector<bool> written(row_bytes * 8);
    for (size_t c = 0; c < neurons.size(); ++c) {
      int64_t j = neurons[c], place = compact_mask ? static_cast<int64_t>(c) : j;
      written[place] = o.epilogue == PNB_EPILOGUE_RELU;
      double sum = o.bias ? bias.at(j) : 0.0;
      for (int64_t k = 0; k < h; ++k) sum += left[i * h + k] * right[j * h + k];
      for (int t = 0; t < o.terms; ++t) sum += terms.value(t, i, j);
      if (o.epilogue == PNB_EPILOGUE_RELU) {
        wrong_bits += std::fabs(sum) > 1e-3 && bit(mask, row_bytes, i, place) != (sum > 0);
        sum = std::max(sum, 0.0);
      } else if (o.epilogue == PNB_EPILOGUE_DRELU && !bit(mask_before, row_bytes, i, place)) {
        sum = 0;
      }
      expected.push_back(sum);
      found.push_back(d.at(i, static_cast<int64_t>(c)));
    }
    for (int64_t place = 0; place < row_bytes * 8; ++place) {
      wrong_bits += !written[place] && bit(mask, row_bytes, i, place) != bit(mask_before, row_bytes, i, place);
    }
    size_t element = o.d_dtype == PNB_DTYPE_F32 ? 4 : 2;
    for (size_t byte = neurons.size() * element; byte < d.t.stride[0] * element; ++byte) {
      touched += d.tensor.bytes[i * d.t.stride[0] * element + byte] != 0x7f;
    }
  }
  expect(wrong_bits == 0, what + ": " + std::to_string(wrong_bits) + " wrong mask bits");
  expect(touched == 0, what + ": " + std::to_string(touched) + " bytes written past the lists");
  close(found, expected, o.d_dtype, what);
}

void dsd(pnb_context* context, int64_t m, int64_t h, const Options& o, const Blocks& blocks) {
  std::string what = text("dsd", m, h, o, blocks);
  Packed w(context, o.dtype, blocks.neurons, h);
  Compact a(o.dtype, m, blocks);
  Tensor bias(PNB_DTYPE_F32, {h}), residual(o.d_dtype, {m, h}), d(o.d_dtype, {m, h}), mask(PNB_DTYPE_U8, {m, (h + 7) / 8}, 0.0);
  for (char& byte : mask.bytes) byte = static_cast<char>(generator()());
  std::vector<double> before = d.values(), right = w.w.values();
  Terms terms(m, h, o.dropout);
  auto p = params<pnb_gemm_params>();
  p.a = a.t, p.weight = w.weight, p.weight_use = PNB_WEIGHT_BACKWARD, p.d = d.t, p.epilogue = o.epilogue, p.blocks = blocks.list();
  if (o.bias) p.bias = bias.t;
  if (o.epilogue == PNB_EPILOGUE_DRELU) p.relu_mask = mask.t;
  if (o.residual == 1) p.residual = d.t;
  if (o.residual == 2) p.residual = residual.t;
  if (o.residual == 0) std::fill(d.bytes.begin(), d.bytes.end(), 0x7f);
  p.low_rank = terms.of, p.low_rank_count = o.terms;
  ok(pnb_gemm(context, &p), what);
  std::vector<double> expected(m * h);
  for (int64_t i = 0; i < m; ++i) {
    std::vector<int64_t> neurons = blocks.of_row(i);
    std::vector<double> row(h);
    for (size_t c = 0; c < neurons.size(); ++c) {
      double left = a.at(i, static_cast<int64_t>(c));
      for (int64_t j = 0; j < h; ++j) row[j] += left * right[neurons[c] * h + j];
    }
    for (int64_t j = 0; j < h; ++j) {
      double sum = row[j] + (o.bias ? bias.at(j) : 0.0);
      for (int t = 0; t < o.terms; ++t) sum += terms.value(t, i, j);
      if (o.epilogue == PNB_EPILOGUE_RELU) sum = std::max(sum, 0.0);
      if (o.epilogue == PNB_EPILOGUE_DRELU && !bit(mask, (h + 7) / 8, i, j)) sum = 0;
      expected[i * h + j] = sum + (o.residual == 1 ? before[i * h + j] : o.residual == 2 ? residual.at(i * h + j) : 0.0);
    }
  }
  close(d.values(), expected, o.d_dtype, what);
}

// All blocks listed, once for all rows: the same bits as without a list.
void full_list_is_dense(pnb_context* context, int32_t dtype, int64_t size, int terms_count) {
  const int64_t m = 77, h = 96, n = 384;
  Blocks blocks(size, n, n / size, m, {static_cast<int32_t>(n / size)});
  std::string what = std::string("full list ") + name(dtype) + " terms " + std::to_string(terms_count) + blocks.text();
  Packed w(context, dtype, n, h);
  Tensor x(dtype, {m, h}), bias(PNB_DTYPE_F32, {n}), hidden(dtype, {m, n}, 0.0), dense_hidden(dtype, {m, n}, 0.0);
  Tensor y(dtype, {m, h}, 0.0), dense_y(dtype, {m, h}, 0.0), mask(PNB_DTYPE_U8, {m, n / 8}, 0.0),
      dense_mask(PNB_DTYPE_U8, {m, n / 8}, 0.0);
  Terms terms(m, n, 0.25f), y_terms(m, h, 0.25f);
  auto p = params<pnb_gemm_params>();
  p.a = x.t, p.weight = w.weight, p.weight_use = PNB_WEIGHT_FORWARD, p.bias = bias.t, p.epilogue = PNB_EPILOGUE_RELU;
  p.low_rank = terms.of, p.low_rank_count = terms_count;
  p.d = dense_hidden.t, p.relu_mask = dense_mask.t;
  ok(pnb_gemm(context, &p), what);
  p.d = hidden.t, p.relu_mask = mask.t, p.blocks = blocks.list();
  ok(pnb_gemm(context, &p), what);
  expect(hidden.bytes == dense_hidden.bytes, what + ": the compact product differs from the dense one");
  expect(mask.bytes == dense_mask.bytes, what + ": its mask differs");
  auto q = params<pnb_gemm_params>();
  q.a = hidden.t, q.weight = w.weight, q.weight_use = PNB_WEIGHT_BACKWARD, q.residual = x.t;
  q.low_rank = y_terms.of, q.low_rank_count = terms_count;
  q.d = dense_y.t;
  ok(pnb_gemm(context, &q), what);
  q.d = y.t, q.blocks = blocks.list();
  ok(pnb_gemm(context, &q), what);
  expect(y.bytes == dense_y.bytes, what + ": the product of the compact activation differs from the dense one");
}

// Neurons that ReLU turns off in every row are dropped: outputs and gradients stay what they are.
void dead_blocks_change_nothing(pnb_context* context, int32_t dtype, int64_t size) {
  const int64_t m = 61, h = 64, n = 384, count = n / size;
  Blocks alive(size, n, count, m, {static_cast<int32_t>((count + 1) / 2)});
  std::string what = std::string("dead blocks ") + name(dtype) + alive.text();
  Packed w1(context, dtype, n, h), w2(context, dtype, n, h);
  Tensor x(dtype, {m, h}), bias(PNB_DTYPE_F32, {n}), dy(dtype, {m, h});
  std::vector<bool> listed(n);
  for (int64_t j : alive.of_row(0)) listed[j] = true;
  for (int64_t j = 0; j < n; ++j) {
    if (!listed[j]) bias.set(j, -1000.0);
  }
  auto run = [&](bool sparse, Tensor& y, Tensor& dx) {
    Tensor hidden(dtype, {m, n}, 0.0), d_hidden(dtype, {m, n}, 0.0), mask(PNB_DTYPE_U8, {m, n / 8}, 0.0);
    auto p = params<pnb_gemm_params>();
    if (sparse) p.blocks = alive.list();
    auto product = [&](const Tensor& a, const Packed& w, int32_t use, const Tensor& d, int32_t epilogue) {
      p.a = a.t, p.weight = w.weight, p.weight_use = use, p.d = d.t, p.epilogue = epilogue;
      p.bias = epilogue == PNB_EPILOGUE_RELU ? bias.t : pnb_tensor{};
      p.relu_mask = epilogue == PNB_EPILOGUE_NONE ? pnb_tensor{} : mask.t;
      ok(pnb_gemm(context, &p), what);
    };
    product(x, w1, PNB_WEIGHT_FORWARD, hidden, PNB_EPILOGUE_RELU);
    product(hidden, w2, PNB_WEIGHT_BACKWARD, y, PNB_EPILOGUE_NONE);
    product(dy, w2, PNB_WEIGHT_FORWARD, d_hidden, PNB_EPILOGUE_DRELU);
    product(d_hidden, w1, PNB_WEIGHT_BACKWARD, dx, PNB_EPILOGUE_NONE);
  };
  Tensor y(dtype, {m, h}, 0.0), dx(dtype, {m, h}, 0.0), dense_y(dtype, {m, h}, 0.0), dense_dx(dtype, {m, h}, 0.0);
  run(false, dense_y, dense_dx);
  run(true, y, dx);
  // Both are rounded once from sums in different orders.
  double floor = dtype == PNB_DTYPE_BF16 ? 1e-3 : 3e-6;
  close(y.values(), dense_y.values(), PNB_DTYPE_F32, what + " y", floor);
  close(dx.values(), dense_dx.values(), PNB_DTYPE_F32, what + " dx", floor);
}

// Two adapters of one x in a chain, with x or dy compact, or both.
void lora(pnb_context* context, int32_t dtype, int64_t m, int64_t other, bool x_compact, bool dy_compact, float dropout,
          const Blocks& blocks, const Blocks& dy_blocks) {
  std::string what = std::string("lora ") + name(dtype) + " m " + std::to_string(m) + " x " + (x_compact ? "compact" : "plain") +
                     " dy " + (dy_compact ? "compact" : "plain") + " p " + std::to_string(dropout) + blocks.text() + " and" +
                     dy_blocks.text();
  int64_t in = x_compact ? blocks.neurons : other, out = dy_compact ? dy_blocks.neurons : other + 3;
  const int64_t ranks[2] = {4, 3};
  Compact compact_x(dtype, m, blocks);
  Tensor plain_x(dtype, {m, in});
  std::vector<double> x = x_compact ? compact_x.spread(blocks) : plain_x.values();
  uint64_t state[2] = {7, 9};
  struct Adapter {
    Tensor a, b, h, dh, da, db, plain_dy;
    Compact compact_dy;
    std::vector<double> da_expected, db_expected;
  };
  std::vector<std::unique_ptr<Adapter>> adapters;
  pnb_lora_project_params projections[2];
  pnb_lora_gradients_params gradients[2];
  for (int s = 0; s < 2; ++s) {
    int64_t r = ranks[s];
    adapters.emplace_back(new Adapter{Tensor(PNB_DTYPE_F32, {r, in}), Tensor(PNB_DTYPE_F32, {out, r}),
                                      Tensor(PNB_DTYPE_F32, {m, r}, 0.0), Tensor(PNB_DTYPE_F32, {m, r}, 0.0),
                                      Tensor(PNB_DTYPE_F32, {r, in}), Tensor(PNB_DTYPE_F32, {out, r}),
                                      Tensor(dtype, {m, out}), Compact(dtype, m, dy_blocks), {}, {}});
    Adapter& adapter = *adapters[s];
    adapter.da_expected = adapter.da.values(), adapter.db_expected = adapter.db.values();
    auto& p = projections[s] = params<pnb_lora_project_params>();
    p.x = x_compact ? compact_x.t : plain_x.t, p.a = adapter.a.t, p.h = adapter.h.t;
    p.dropout = {dropout, static_cast<uint32_t>(s), {state, PNB_DTYPE_U64, 1, {2}, {1}}};
    if (x_compact) p.x_blocks = blocks.list();
    auto& g = gradients[s] = params<pnb_lora_gradients_params>();
    g.scaling = 1.5f;
    g.dy = dy_compact ? adapter.compact_dy.t : adapter.plain_dy.t;
    g.x = p.x, g.h = p.h, g.a = p.a, g.b = adapter.b.t, g.dh = adapter.dh.t, g.da = adapter.da.t, g.db = adapter.db.t;
    g.dropout = p.dropout, g.x_blocks = p.x_blocks;
    if (dy_compact) g.dy_blocks = dy_blocks.list();
  }
  projections[0].next = &projections[1];
  gradients[0].next = &gradients[1];
  ok(pnb_lora_project(context, projections), what);
  ok(pnb_lora_gradients_workspace(context, gradients, &gradients[0].workspace.bytes), what);
  std::vector<float> workspace(gradients[0].workspace.bytes / sizeof(float));
  gradients[0].workspace.data = workspace.data();
  ok(pnb_lora_gradients(context, gradients), what);
  for (int s = 0; s < 2; ++s) {
    Adapter& adapter = *adapters[s];
    int64_t r = ranks[s];
    std::vector<double> dy = dy_compact ? adapter.compact_dy.spread(dy_blocks) : adapter.plain_dy.values();
    std::vector<double> dropped = x, h(m * r), dh(m * r), a = adapter.a.values(), b = adapter.b.values();
    pnb::cpu::DropoutMask mask(projections[s].dropout);
    for (int64_t e = 0; mask.active() && e < m * in; ++e) {
      float factor = 1.0f;
      mask.apply(&factor, e, 1);
      dropped[e] *= factor;
    }
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < r; ++j) {
        for (int64_t k = 0; k < in; ++k) h[i * r + j] += dropped[i * in + k] * a[j * in + k];
        for (int64_t o = 0; o < out; ++o) dh[i * r + j] += 1.5 * dy[i * out + o] * b[o * r + j];
        for (int64_t k = 0; k < in; ++k) adapter.da_expected[j * in + k] += dh[i * r + j] * dropped[i * in + k];
        for (int64_t o = 0; o < out; ++o) adapter.db_expected[o * r + j] += 1.5 * dy[i * out + o] * h[i * r + j];
      }
    }
    std::string which = what + " adapter " + std::to_string(s);
    close(adapter.h.values(), h, PNB_DTYPE_F32, which + " h");
    close(adapter.dh.values(), dh, PNB_DTYPE_F32, which + " dh");
    close(adapter.da.values(), adapter.da_expected, PNB_DTYPE_F32, which + " da");
    close(adapter.db.values(), adapter.db_expected, PNB_DTYPE_F32, which + " db");
  }
}

// Written by one product and read by the next: the same gradients as with a mask by neuron, bit for bit.
void compact_masks_say_what_others_do(pnb_context* context, int32_t dtype, int64_t size) {
  const int64_t m = 300, h = 40, n = 384, count = n / size;
  Blocks blocks(size, n, count - 1, 128, counts_for(m, 128, count - 1, {0, static_cast<int32_t>(count - 1), 1}));
  std::string what = std::string("compact mask ") + name(dtype) + blocks.text();
  Packed w1(context, dtype, n, h), w2(context, dtype, n, h);
  Tensor x(dtype, {m, h}), dy(dtype, {m, h});
  auto gradient = [&](Tensor& mask, Compact& d) {
    Compact hidden(dtype, m, blocks);
    auto p = params<pnb_gemm_params>();
    p.a = x.t, p.weight = w1.weight, p.weight_use = PNB_WEIGHT_FORWARD, p.d = hidden.t, p.blocks = blocks.list();
    p.epilogue = PNB_EPILOGUE_RELU, p.relu_mask = mask.t;
    ok(pnb_gemm(context, &p), what);
    p.a = dy.t, p.weight = w2.weight, p.d = d.t, p.epilogue = PNB_EPILOGUE_DRELU;
    ok(pnb_gemm(context, &p), what);
  };
  Tensor by_neuron(PNB_DTYPE_U8, {m, n / 8}, 0.0), compact(PNB_DTYPE_U8, {m, blocks.width() / 8}, 0.0);
  Compact expected(dtype, m, blocks), found(dtype, m, blocks);
  std::fill(expected.tensor.bytes.begin(), expected.tensor.bytes.end(), 0x7f);
  found.tensor.bytes = expected.tensor.bytes;
  gradient(by_neuron, expected);
  gradient(compact, found);
  expect(found.tensor.bytes == expected.tensor.bytes, what + ": other gradients than with a mask by neuron");
}

struct Grouping {
  int64_t m, rows_per_list;
};

}  // namespace

int main() {
  pnb_context* context = test::context();
  const int64_t neurons = 384;
  const Options options[] = {{0, 0, PNB_EPILOGUE_NONE, false, 0, 0.0f, 0}, {0, 0, PNB_EPILOGUE_RELU, true, 0, 0.0f, 0},
                             {0, 0, PNB_EPILOGUE_RELU, true, 2, 0.0f, 0},  {0, 0, PNB_EPILOGUE_DRELU, false, 0, 0.0f, 1},
                             {0, 0, PNB_EPILOGUE_DRELU, true, 1, 0.3f, 2}, {0, 0, PNB_EPILOGUE_NONE, true, 2, 0.3f, 1},
                             {0, 0, PNB_EPILOGUE_NONE, true, 0, 0.0f, 2},  {0, 0, PNB_EPILOGUE_NONE, false, 0, 0.0f, 1}};
  int variant = 0;
  for (int64_t size : {32, 64, 128}) {
    int64_t all = neurons / size;
    const Grouping groupings[] = {{1, 1}, {37, 64}, {130, 128}, {300, 256}, {261, 128}};
    for (const Grouping& g : groupings) {
      for (int32_t first : {0, 1, 3, static_cast<int32_t>(all)}) {
        int64_t capacity = std::max<int64_t>(first, all - (first % 2));
        Blocks blocks(size, neurons, capacity, g.rows_per_list, counts_for(g.m, g.rows_per_list, capacity, {first}));
        for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
          // Two of the eight each time, so that every one meets every size, dtype and grouping, and the test stays short.
          for (int turn = 0; turn < 2; ++turn) {
            Options o = options[++variant * 3 % 8];
            o.dtype = dtype;
            o.d_dtype = variant / 8 % 3 == 0 ? static_cast<int32_t>(PNB_DTYPE_F32) : dtype;
            int64_t h = variant % 3 == 0 ? 40 : variant % 3 == 1 ? 64 : 99;
            Options without_residual = o;
            without_residual.residual = 0;
            sdd(context, g.m, h, without_residual, blocks);
            if (o.epilogue != PNB_EPILOGUE_NONE && capacity < all) sdd(context, g.m, h, without_residual, blocks, true);
            dsd(context, g.m, h, o, blocks);
          }
        }
      }
    }
    // A term over all columns, which fills vectors.
    Blocks some(size, neurons, all, 128, counts_for(300, 128, all, {1, static_cast<int32_t>(all - 1)}));
    sdd(context, 300, 62, {PNB_DTYPE_BF16, PNB_DTYPE_BF16, PNB_EPILOGUE_RELU, true, 1, 0.0f, 0}, some);
    sdd(context, 300, 62, {PNB_DTYPE_BF16, PNB_DTYPE_F32, PNB_EPILOGUE_DRELU, false, 1, 0.0f, 0}, some);
    dsd(context, 300, 96, {PNB_DTYPE_BF16, PNB_DTYPE_BF16, PNB_EPILOGUE_NONE, true, 1, 0.0f, 2}, some);
    dsd(context, 300, 96, {PNB_DTYPE_BF16, PNB_DTYPE_F32, PNB_EPILOGUE_NONE, false, 1, 0.0f, 1}, some);
    for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
      for (int terms : {0, 2}) full_list_is_dense(context, dtype, size, terms);
      dead_blocks_change_nothing(context, dtype, size);
      compact_masks_say_what_others_do(context, dtype, size);
      for (int which = 1; which < 4; ++which) {
        for (float dropout : {0.0f, 0.25f}) {
          Blocks x(size, neurons, all, 128, counts_for(300, 128, all, {0, static_cast<int32_t>(all - 1)}));
          Blocks dy(size, neurons, all, 256, counts_for(300, 256, all, {1}));
          lora(context, dtype, 300, 50, which & 1, which & 2, dropout, x, dy);
        }
      }
    }
  }
  // No room at all: nothing to write, and a product of nothing is 0.
  Blocks none(32, neurons, 0, 64, {0});
  sdd(context, 5, 40, {PNB_DTYPE_BF16, PNB_DTYPE_BF16, PNB_EPILOGUE_RELU, true, 1, 0.0f, 0}, none);
  dsd(context, 5, 40, {PNB_DTYPE_BF16, PNB_DTYPE_BF16, PNB_EPILOGUE_NONE, true, 0, 0.0f, 2}, none);
  pnb_context_destroy(context);
  return finish("blocks_test");
}
