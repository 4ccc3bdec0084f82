// What chooses blocks, against double: masses from activations and from bits, predictions, the seed's rule, the selection,
// and the means that LayerNorm takes for a predictor.
#include "block_tensors.h"

using namespace test;

namespace {

Tensor one_int(int32_t value) { return ints({value}); }

void pooling(pnb_context* context, int32_t dtype, int64_t m, int64_t h, int64_t pool_rows, int32_t valid) {
  std::string what = std::string("pooled layer norm ") + name(dtype) + " " + std::to_string(m) + " x " + std::to_string(h) +
                     ", means of " + std::to_string(pool_rows) + ", valid " + std::to_string(valid);
  int64_t groups = (m + pool_rows - 1) / pool_rows;
  Tensor x(dtype, {m, h}, 3.0), gamma(PNB_DTYPE_F32, {h}), beta(PNB_DTYPE_F32, {h}), y(dtype, {m, h}, 0.0),
      plain(dtype, {m, h}, 0.0);
  Tensor pooled(PNB_DTYPE_F32, {groups, h}, 0.0), rows = one_int(valid);
  auto p = params<pnb_layer_norm_forward_params>();
  p.epsilon = 1e-5f;
  p.x = x.t, p.gamma = gamma.t, p.beta = beta.t, p.y = plain.t;
  ok(pnb_layer_norm_forward(context, &p), what);
  p.y = y.t, p.pooled = pooled.t, p.pool_rows = pool_rows;
  if (valid >= 0) p.valid_rows = rows.t;
  ok(pnb_layer_norm_forward(context, &p), what);
  expect(y.bytes == plain.bytes, what + ": y differs from that without means");
  int64_t counted = valid < 0 ? m : valid;
  std::vector<double> expected(groups * h);
  for (int64_t i = 0; i < std::min(m, counted); ++i) {
    double centre = 0, variance = 0;
    for (int64_t j = 0; j < h; ++j) centre += x.at(i * h + j) / h;
    for (int64_t j = 0; j < h; ++j) variance += (x.at(i * h + j) - centre) * (x.at(i * h + j) - centre) / h;
    int64_t group = i / pool_rows;
    int64_t size = std::min({(group + 1) * pool_rows, m, counted}) - group * pool_rows;
    for (int64_t j = 0; j < h; ++j) {
      expected[group * h + j] += ((x.at(i * h + j) - centre) / std::sqrt(variance + 1e-5) * gamma.at(j) + beta.at(j)) / size;
    }
  }
  close(pooled.values(), expected, PNB_DTYPE_F32, what);
}

// kind 0: f32, 1: bf16, 2: bits.
void activation_mass(pnb_context* context, int kind, int64_t m, int64_t n, int64_t size, int64_t rows_per_list, int32_t valid,
                     bool norms) {
  std::string what = "activation mass kind " + std::to_string(kind) + " m " + std::to_string(m) + " n " + std::to_string(n) +
                     " blocks of " + std::to_string(size) + " rows " + std::to_string(rows_per_list) + " valid " +
                     std::to_string(valid) + " norms " + std::to_string(norms);
  int64_t lists = (m + rows_per_list - 1) / rows_per_list, gap = 8;
  int64_t columns = kind == 2 ? n / 8 : n;
  Tensor given(kind == 0 ? PNB_DTYPE_F32 : kind == 1 ? PNB_DTYPE_BF16 : PNB_DTYPE_U8, {m, columns + gap}, kind == 2 ? 0.0 : 1.0);
  for (char& byte : given.bytes) {
    if (kind == 2) byte = static_cast<char>(generator()());
  }
  given.t.shape[1] = columns;
  Tensor scale(PNB_DTYPE_F32, {n}), block(PNB_DTYPE_F32, {lists, n / size}, 0.0), mass(PNB_DTYPE_F32, {n}),
      fired(PNB_DTYPE_F32, {n}), rows = one_int(valid);
  for (int64_t j = 0; j < n; ++j) scale.set(j, std::fabs(scale.at(j)));
  std::vector<double> block_expected(lists * (n / size)), mass_expected = mass.values(), fired_expected = fired.values();
  int64_t counted = valid < 0 ? m : std::min<int64_t>(valid, m);
  if (kind != 2) {  // rows that do not count must not be used
    for (int64_t i = counted; i < m; ++i) {
      for (int64_t j = 0; j < columns; ++j) given.set(i * (columns + gap) + j, NAN);
    }
  }
  for (int64_t i = 0; i < counted; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double value = kind == 2 ? static_cast<uint8_t>(given.bytes[i * (columns + gap) + j / 8]) >> (j % 8) & 1
                               : std::max(0.0, given.at(i * (columns + gap) + j));
      fired_expected[j] += value > 0;
      if (norms) value *= scale.at(j);
      mass_expected[j] += value;
      block_expected[i / rows_per_list * (n / size) + j / size] += value;
    }
  }
  auto p = params<pnb_activation_mass_params>();
  p.block_size = static_cast<int32_t>(size);
  (kind == 2 ? p.relu_mask : p.x) = given.t;
  if (norms) p.norms = scale.t;
  if (valid >= 0) p.valid_rows = rows.t;
  p.rows_per_list = rows_per_list, p.block_mass = block.t, p.neuron_mass = mass.t, p.neuron_fired = fired.t;
  ok(pnb_activation_mass_workspace(context, &p, &p.workspace.bytes), what);
  std::vector<char> workspace(p.workspace.bytes + 64);
  p.workspace.data = workspace.data();
  ok(pnb_activation_mass(context, &p), what);
  close(block.values(), block_expected, PNB_DTYPE_F32, what + " by blocks");
  close(mass.values(), mass_expected, PNB_DTYPE_F32, what + " by neurons");
  close(fired.values(), fired_expected, PNB_DTYPE_F32, what + " fired");
  // Each output alone, and the same bits as together.
  std::vector<char> before = block.bytes;
  p.neuron_mass = p.neuron_fired = {};
  std::fill(block.bytes.begin(), block.bytes.end() - 64, 0x7f);
  ok(pnb_activation_mass(context, &p), what + " blocks only");
  expect(block.bytes == before, what + ": masses of blocks alone differ");
}

void prediction(pnb_context* context, int64_t pooled_rows, int64_t h, int64_t rank, int64_t scores, int32_t units_per_score,
                int64_t per_list, bool bias, bool norms) {
  std::string what = "prediction of " + std::to_string(scores) + " scores of " + std::to_string(units_per_score) + " units, rows " +
                     std::to_string(pooled_rows) + " h " + std::to_string(h) + " rank " + std::to_string(rank) + " a list " +
                     std::to_string(per_list);
  int64_t units = scores * units_per_score, lists = (pooled_rows + per_list - 1) / per_list, gap = 3;
  Tensor pooled(PNB_DTYPE_F32, {pooled_rows, h + gap}), a(PNB_DTYPE_F32, {rank, h}), b(PNB_DTYPE_F32, {units, rank}),
      shift(PNB_DTYPE_F32, {units});
  Tensor scale(PNB_DTYPE_F32, {units}), out(PNB_DTYPE_F32, {lists, scores}, 0.0);
  pooled.t.shape[1] = h;
  std::vector<double> expected(lists * scores);
  for (int64_t i = 0; i < pooled_rows; ++i) {
    std::vector<double> z(rank);
    for (int64_t r = 0; r < rank; ++r) {
      for (int64_t j = 0; j < h; ++j) z[r] += pooled.at(i * (h + gap) + j) * a.at(r * h + j);
    }
    for (int64_t u = 0; u < units; ++u) {
      double value = bias ? shift.at(u) : 0.0;
      for (int64_t r = 0; r < rank; ++r) value += z[r] * b.at(u * rank + r);
      expected[i / per_list * scores + u / units_per_score] += std::max(0.0, value) * (norms ? scale.at(u) : 1.0);
    }
  }
  auto p = params<pnb_predict_mass_params>();
  p.units_per_score = units_per_score, p.pooled = pooled.t, p.a = a.t, p.b = b.t, p.pooled_per_list = per_list, p.scores = out.t;
  if (bias) p.bias = shift.t;
  if (norms) p.norms = scale.t;
  ok(pnb_predict_mass_workspace(context, &p, &p.workspace.bytes), what);
  std::vector<float> workspace(p.workspace.bytes / sizeof(float) + 16);
  p.workspace.data = workspace.data();
  ok(pnb_predict_mass(context, &p), what);
  close(out.values(), expected, PNB_DTYPE_F32, what);
}

void relative_mass(pnb_context* context, int64_t size) {
  std::string what = "relative mass, blocks of " + std::to_string(size);
  const int64_t blocks = 4;
  Tensor mass(PNB_DTYPE_F32, {blocks * size}), scores(PNB_DTYPE_F32, {1, blocks}, 0.0);
  std::vector<double> expected(blocks);
  // Of block 0 just fewer than nine tenths lie below, of block 1 just enough, of block 2 none, and block 3 is 0.
  int64_t enough = static_cast<int64_t>(std::ceil(0.9 * size));
  const int64_t small[blocks] = {enough - 1, enough, 0, 0};
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t j = 0; j < size; ++j) {
      double value = b == 3 ? 0.0 : j < small[b] ? 0.04 * (b + 1) : b + 1;
      mass.set(b * size + j, value);
      expected[b] += b == 1 ? 0 : mass.at(b * size + j);
    }
  }
  auto p = params<pnb_relative_mass_params>();
  p.block_size = static_cast<int32_t>(size), p.threshold = 0.05f, p.share = 0.9f, p.neuron_mass = mass.t, p.scores = scores.t;
  ok(pnb_relative_mass(context, &p), what);
  close(scores.values(), expected, PNB_DTYPE_F32, what);
}

struct Selected {
  std::vector<std::vector<int32_t>> lists;
  std::vector<float> summary;
};

Selected select(pnb_context* context, const std::vector<std::vector<float>>& scores, float coverage, int64_t capacity,
                const std::string& what) {
  int64_t lists = static_cast<int64_t>(scores.size()), blocks = static_cast<int64_t>(scores[0].size());
  Tensor given(PNB_DTYPE_F32, {lists, blocks + 2}), summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE}, 0.0);
  given.t.shape[1] = blocks;
  for (int64_t l = 0; l < lists; ++l) {
    for (int64_t b = 0; b < blocks; ++b) given.set(l * (blocks + 2) + b, scores[l][b]);
  }
  const int32_t poison = 0x7f7f7f7f;
  Tensor indices = ints(std::vector<int32_t>(lists * (capacity + 1), poison)), counts = ints(std::vector<int32_t>(lists, poison));
  auto p = params<pnb_select_blocks_params>();
  p.coverage = coverage, p.scores = given.t, p.summary = summary.t;
  p.blocks.indices = {indices.bytes.data(), PNB_DTYPE_I32, 2, {lists, capacity}, {capacity + 1, 1}};
  p.blocks.counts = {counts.bytes.data(), PNB_DTYPE_I32, 1, {lists}, {1}};
  ok(pnb_select_blocks(context, &p), what);
  Selected selected;
  for (int64_t l = 0; l < lists; ++l) {
    const int32_t* row = reinterpret_cast<const int32_t*>(indices.bytes.data()) + l * (capacity + 1);
    int32_t count = reinterpret_cast<const int32_t*>(counts.bytes.data())[l];
    expect(count >= 0 && count <= capacity, what + ": count " + std::to_string(count));
    expect(row[capacity] == poison, what + ": wrote past a list's room");
    selected.lists.emplace_back(row, row + std::max(0, std::min<int32_t>(count, capacity)));
  }
  for (int i = 0; i < PNB_SUMMARY_SIZE; ++i) selected.summary.push_back(static_cast<float>(summary.at(i)));
  return selected;
}

void selections(pnb_context* context) {
  using List = std::vector<int32_t>;
  auto is = [](const Selected& s, std::vector<List> lists, std::vector<float> summary, const std::string& what) {
    expect(s.lists == lists, what + ": other blocks than expected");
    for (size_t i = 0; i < summary.size(); ++i) {
      expect(std::fabs(s.summary[i] - summary[i]) < 1e-6, what + ": summary " + std::to_string(i) + " expected " +
                                                              std::to_string(summary[i]) + ", found " +
                                                              std::to_string(s.summary[i]));
    }
  };
  const float inf = INFINITY;
  is(select(context, {{1, 4, 2, 3}}, 0.7f, 4, "two of four"), {{1, 3}}, {0.5f, 0.7f, 0}, "two of four");
  is(select(context, {{1, 4, 2, 3}}, 0.71f, 4, "three of four"), {{1, 2, 3}}, {0.75f, 0.9f, 0}, "three of four");
  is(select(context, {{1, 4, 2, 3}}, 0.71f, 2, "no room for the third"), {{1, 3}}, {0.5f, 0.7f, 1}, "no room for the third");
  is(select(context, {{2, 2, 2, 2}}, 0.5f, 4, "equal scores"), {{0, 1}}, {0.5f, 0.5f, 0}, "equal scores");
  is(select(context, {{0, -1, NAN, 5}}, 1.0f, 4, "scores that are none"), {{3}}, {0.25f, 1, 0}, "scores that are none");
  is(select(context, {{0, 0, -3, NAN}}, 0.5f, 4, "no scores"), {{}}, {0, 1, 0}, "no scores");
  is(select(context, {{1e-30f, 1, 1e-20f, 1}}, 1.0f, 4, "everything"), {{0, 1, 2, 3}}, {1, 1, 0}, "everything");
  is(select(context, {{1, inf, 2, 3}}, 0.5f, 4, "an infinite score"), {{1}}, {0.25f}, "an infinite score");
  is(select(context, {{1, 2}}, 0.9f, 0, "no room"), {{}}, {0, 0, 1}, "no room");
  is(select(context, {{1, 3}, {3, 1}, {0, 0}, {2, 2}}, 0.75f, 1, "four lists"), {{1}, {0}, {}, {0}}, {0.375f, 8.0f / 12, 0.25f},
     "four lists");
  // Against the rule itself on random scores, many of them equal.
  for (int64_t blocks : {1, 24, 96, 257, 4096}) {
    for (float coverage : {0.3f, 0.9f, 1.0f}) {
      std::string what = "random selection of " + std::to_string(blocks) + " blocks at " + std::to_string(coverage);
      std::vector<std::vector<float>> scores(3, std::vector<float>(blocks));
      int64_t capacity = (blocks + 1) / 2;
      std::vector<List> expected;
      for (auto& list : scores) {
        for (float& score : list) score = static_cast<float>(static_cast<int>(generator()() % 40) - 8);
        List order(blocks);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t x, int32_t y) { return list[x] > list[y]; });
        double total = 0, sum = 0;  // whole numbers: exact in f32 too
        for (float score : list) total += std::max(0.0f, score);
        List chosen;
        for (int32_t b : order) {
          bool enough = coverage < 1 && static_cast<float>(sum) >= coverage * static_cast<float>(total);
          if (list[b] <= 0 || enough || static_cast<int64_t>(chosen.size()) == capacity) break;
          sum += list[b];
          chosen.push_back(b);
        }
        std::sort(chosen.begin(), chosen.end());
        expected.push_back(chosen);
      }
      is(select(context, scores, coverage, capacity, what), expected, {}, what);
    }
  }
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    pooling(context, dtype, 37, 33, 8, -1);
    pooling(context, dtype, 64, 96, 16, 41);
    pooling(context, dtype, 64, 96, 16, 32);
    pooling(context, dtype, 5, 7, 100, 3);
    pooling(context, dtype, 19, 40, 1, 0);
  }
  for (int kind = 0; kind < 3; ++kind) {
    for (int64_t size : {32, 64, 128}) {
      activation_mass(context, kind, 1, 128, size, 1, -1, true);
      activation_mass(context, kind, 300, 384, size, 128, -1, false);
      activation_mass(context, kind, 300, 640, size, 256, 257, true);
      activation_mass(context, kind, 300, 128, size, 128, 100, true);
      activation_mass(context, kind, 77, 128, size, 1000, 0, true);
    }
    activation_mass(context, kind, 2000, 96, 32, 2000, 5000, true);
  }
  for (bool bias : {false, true}) {
    prediction(context, 1, 40, 1, 3, 1, 1, bias, !bias);
    prediction(context, 37, 96, 16, 12, 1, 16, bias, bias);
    prediction(context, 37, 33, 5, 12, 32, 37, bias, !bias);
    prediction(context, 64, 100, 128, 3, 128, 16, bias, bias);
  }
  for (int64_t size : {32, 64, 128}) relative_mass(context, size);
  selections(context);
  pnb_context_destroy(context);
  return finish("sparse_test");
}
