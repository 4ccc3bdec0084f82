// What attention's blocks are chosen by, against double: true masses, a low-rank predictor's; and the choice, against its rule.
#include "attention_tensors.h"

using namespace test;

namespace {

pnb_tensor block_matrix(Tensor& t, int64_t heads, int64_t slots, int64_t width) {
  return {t.bytes.data(), PNB_DTYPE_F32, 3, {heads, slots, width}, {slots * width, width, 1}};
}

void masses(pnb_context* context, int32_t dtype, const Samples& samples, int64_t heads, int64_t dim, int32_t stride) {
  std::string what = std::string("attention mass, ") + name(dtype) + ", every query of " + std::to_string(stride) + ", " +
                     std::to_string(heads) + " heads of " + std::to_string(dim) + ", " + samples.text();
  int64_t width = heads * dim, slots = samples.slots(), room = samples.width() + 1, tokens = samples.tokens;
  Tensor qk(dtype, {tokens, 2 * width}), lse(PNB_DTYPE_F32, {heads, tokens}), borders = ints(samples.cu);
  Tensor mass(PNB_DTYPE_F32, {heads * slots * room}, 0.0);
  Operands x{columns(qk, 0, width), columns(qk, width, width), std::vector<double>(tokens * width), dim, static_cast<float>(0.3)};
  Mask all(samples, heads, [](int64_t, int64_t, int64_t, int64_t) { return true; });
  Forward f = masked_forward(x, all);
  for (int64_t i = 0; i < heads * tokens; ++i) lse.set(i, f.lse[i]);
  std::vector<double> expected(heads * slots * room);
  each_query(all, [&](int64_t h, int64_t s, int64_t row) {
    if ((row + 1) % stride != 0 && row + 1 != samples.length(s)) return;
    for (int64_t key = 0; key <= row; ++key) {
      double p = std::exp(x.score(all, h, s, row, key) - f.lse[h * tokens + samples.cu[s] + row]);
      expected[(h * slots + samples.slot(s, row / samples.size)) * room + key / samples.size] += p;
    }
  });
  // What lies past the last sample must not be read.
  for (int64_t i = samples.cu.back() * 2 * width; i < qk.size(); ++i) qk.set(i, NAN);
  auto p = params<pnb_attention_mass_params>();
  p.scale = 0.3f, p.q = heads_of(qk, 0, heads, dim), p.k = heads_of(qk, width, heads, dim), p.lse = lse.t, p.cu_seqlens = borders.t;
  p.max_seqlen = samples.longest(), p.size = static_cast<int32_t>(samples.size), p.query_stride = stride;
  p.mass = block_matrix(mass, heads, slots, room);
  ok(pnb_attention_mass(context, &p), what);
  close(mass.values(), expected, PNB_DTYPE_F32, what, 1e-5);
  for (int64_t s = 0; stride == 1 && s < samples.count(); ++s) {
    for (int64_t block = 0; block < samples.length(s) / samples.size; ++block) {
      double sum = 0;
      for (int64_t j = 0; j < room; ++j) sum += mass.at(samples.slot(s, block) * room + j);
      expect(std::fabs(sum - samples.size) < 1e-4 * samples.size,
             what + ": the masses of a full block add up to " + std::to_string(sum));
    }
  }
}

void prediction(pnb_context* context, const Samples& samples, int64_t heads, int64_t r, int64_t hidden, int32_t pool_rows) {
  std::string what = "predicted attention, " + std::to_string(heads) + " heads of rank " + std::to_string(r) + ", " +
                     std::to_string(hidden) + " inputs, means of " + std::to_string(pool_rows) + ", " + samples.text();
  int64_t rows = (samples.tokens + pool_rows - 1) / pool_rows, slots = samples.slots(), room = samples.width() + 2, gap = 5;
  Tensor pooled(PNB_DTYPE_F32, {rows, hidden + gap}),
      a(PNB_DTYPE_BF16, {2, heads, r, hidden}, 1 / std::sqrt(static_cast<double>(hidden)));
  Tensor bias(PNB_DTYPE_F32, {2, heads, r}, 0.5), distance(PNB_DTYPE_F32, {heads, room}),
      mass(PNB_DTYPE_F32, {heads * slots * room}, 0.0);
  Tensor borders = ints(samples.cu);
  pooled.t.shape[1] = hidden;
  auto middle = [&](int64_t g) { return g * pool_rows + pool_rows / 2; };
  std::vector<double> expected(heads * slots * room);
  for (int64_t h = 0; h < heads; ++h) {
    auto projected = [&](int64_t part, int64_t g, int64_t k) {
      double sum = bias.at((part * heads + h) * r + k);
      for (int64_t j = 0; j < hidden; ++j) {
        sum += pooled.at(g * (hidden + gap) + j) * a.at(((part * heads + h) * r + k) * hidden + j);
      }
      return sum;
    };
    std::vector<double> zq, zk;
    for (int64_t g = 0; g < rows; ++g) {
      for (int64_t k = 0; k < r; ++k) zq.push_back(projected(0, g, k)), zk.push_back(projected(1, g, k));
    }
    for (int64_t s = 0; s < samples.count(); ++s) {
      std::vector<int64_t> own;
      for (int64_t g = 0; g < rows; ++g) {
        if (middle(g) >= samples.cu[s] && middle(g) < samples.cu[s + 1]) own.push_back(g);
      }
      auto block = [&](int64_t g) { return (middle(g) - samples.cu[s]) / samples.size; };
      for (int64_t i = 0; i < samples.blocks(s); ++i) {
        std::vector<int64_t> asked;
        for (int64_t g : own) {
          if (block(g) == i) asked.push_back(g);
        }
        for (auto g = own.rbegin(); asked.empty() && g != own.rend(); ++g) {
          if (block(*g) < i) asked.push_back(*g);
        }
        for (int64_t g : asked) {
          std::vector<double> e;
          double sum = 0;
          for (int64_t other : own) {
            if (other > g) break;
            double score = distance.at(h * room + block(g) - block(other));
            for (int64_t k = 0; k < r; ++k) score += zq[g * r + k] * zk[other * r + k];
            e.push_back(std::exp(score));
            sum += e.back();
          }
          for (size_t j = 0; j < e.size(); ++j) {
            expected[(h * slots + samples.slot(s, i)) * room + block(own[j])] += pool_rows * e[j] / sum;
          }
        }
      }
    }
  }
  // Pooled rows of no sample may hold anything.
  for (int64_t g = 0; g < rows; ++g) {
    for (int64_t j = 0; middle(g) >= samples.cu.back() && j < hidden; ++j) pooled.set(g * (hidden + gap) + j, NAN);
  }
  auto p = params<pnb_predict_attention_params>();
  p.pool_rows = pool_rows, p.pooled = pooled.t, p.a = a.t, p.bias = bias.t, p.distance = distance.t, p.cu_seqlens = borders.t;
  p.tokens = samples.tokens, p.max_seqlen = samples.longest(), p.size = static_cast<int32_t>(samples.size);
  p.mass = block_matrix(mass, heads, slots, room);
  ok(pnb_predict_attention_workspace(context, &p, &p.workspace.bytes), what);
  std::vector<float> workspace(p.workspace.bytes / sizeof(float) + 16);
  p.workspace.data = workspace.data();
  ok(pnb_predict_attention(context, &p), what);
  close(mass.values(), expected, PNB_DTYPE_F32, what, 1e-5);
}

struct Choice {
  float coverage = 1.0f;
  std::vector<float> budgets;  // none: all 1
  bool table = false;
};

using Masses = std::function<float(int64_t head, int64_t sample, int64_t i, int64_t j)>;

// Runs the selection into fresh lists; what it told of itself is in summary.
void select(pnb_context* context, const Samples& samples, int64_t heads, const Choice& choice, const Masses& masses,
            AttentionLists& lists, Tensor& summary, const std::string& what) {
  Tensor mass(PNB_DTYPE_F32, {heads * lists.slots * lists.width}, 0.0),
      table(PNB_DTYPE_F32, {heads * lists.width * lists.width}, 0.0);
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t s = 0; s < samples.count(); ++s) {
      for (int64_t i = 0; i < samples.blocks(s); ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          mass.set((h * lists.slots + samples.slot(s, i)) * lists.width + j, masses(h, s, i, j));
          table.set((h * lists.width + i) * lists.width + j, masses(h, s, i, j));
        }
      }
    }
  }
  Tensor borders = ints(samples.cu), budgets(PNB_DTYPE_F32, {heads});
  for (size_t h = 0; h < choice.budgets.size(); ++h) budgets.set(static_cast<int64_t>(h), choice.budgets[h]);
  auto p = params<pnb_select_attention_params>();
  p.coverage = choice.coverage, p.cu_seqlens = borders.t, p.tokens = samples.tokens, p.max_seqlen = samples.longest();
  p.blocks = lists.blocks, p.summary = summary.t;
  if (choice.table) {
    p.table = block_matrix(table, heads, lists.width, lists.width);
  } else {
    p.mass = block_matrix(mass, heads, lists.slots, lists.width);
  }
  if (!choice.budgets.empty()) p.budgets = budgets.t;
  ok(pnb_select_attention_workspace(context, &p, &p.workspace.bytes), what);
  std::vector<char> workspace(p.workspace.bytes + 64);
  p.workspace.data = workspace.data();
  ok(pnb_select_attention(context, &p), what);
}

// Lists, transposed lists and order are those of the mask; entries past a count are untouched.
void expect_lists(const AttentionLists& found, const Mask& mask, const std::string& what) {
  AttentionLists expected(mask.samples, mask.heads);
  mask.write(expected);
  auto same = [&](const Tensor& x, const Tensor& y, const char* which) {
    expect(std::equal(x.bytes.begin(), x.bytes.end() - 4, y.bytes.begin()), what + ": other " + which + " than expected");
  };
  same(found.counts, expected.counts, "counts");
  same(found.indices, expected.indices, "indices");
  same(found.t_counts, expected.t_counts, "transposed counts");
  same(found.t_indices, expected.t_indices, "transposed indices");
  int64_t places = mask.heads * found.slots;
  for (int side = 0; side < 2; ++side) {
    const int32_t* counts = static_cast<const int32_t*>((side == 0 ? expected.counts : expected.t_counts).t.data);
    const int32_t* order = static_cast<const int32_t*>(found.order.t.data) + side * places;
    const int32_t* other = static_cast<const int32_t*>(expected.order.t.data) + side * places;
    std::vector<int32_t> sorted(order, order + places), wanted(other, other + places);
    bool falling = true;
    for (int64_t i = 1; i < places && order[i] >= 0; ++i) falling &= counts[order[i - 1]] >= counts[order[i]];
    std::sort(sorted.begin(), sorted.end()), std::sort(wanted.begin(), wanted.end());
    expect(falling && sorted == wanted && (places == 0 || other[places - 1] >= 0 || order[places - 1] == -1),
           what + ": order " + std::to_string(side) + " does not hold every block by falling count");
  }
}

void expect_summary(const Tensor& summary, std::vector<double> expected, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    double found = summary.at(static_cast<int64_t>(i));
    expect(std::fabs(found - expected[i]) < 1e-6, what + ": summary " + std::to_string(i) + " expected " +
                                                      std::to_string(expected[i]) + ", found " + std::to_string(found));
  }
}

float amount(float mass) { return mass > 0 ? mass : 0.0f; }

// The rule, word by word. Masses are whole numbers: their sums are exact.
void against_rule(pnb_context* context, const Samples& samples, int64_t heads, const Choice& choice, const Masses& masses,
                  const std::string& about) {
  std::string what = "selection of attention, " + about + ", coverage " + std::to_string(choice.coverage) + ", budget " +
                     (choice.budgets.empty() ? "all" : std::to_string(choice.budgets[0])) + (choice.table ? ", by table, " : ", ") +
                     std::to_string(heads) + " heads, " + samples.text();
  double kept = 0, possible = 0, covered = 0, whole = 0, cut = 0, number = 0;
  std::vector<std::vector<char>> chosen;
  for (int64_t s = 0; s < samples.count(); ++s) {
    for (int64_t h = 0; h < heads; ++h) {
      int64_t n = samples.blocks(s);
      std::vector<char> one(n * n);
      std::vector<std::pair<int64_t, int64_t>> rest;
      double sum = 0, all = 0, count = 0;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          all += amount(masses(h, s, i, j));
          if (j == 0 || i == j) {
            one[i * n + j] = 1, ++count, sum += amount(masses(h, s, i, j));
          } else {
            rest.emplace_back(i, j);
          }
        }
      }
      double budget = choice.budgets.empty() ? n * (n + 1) / 2
                                             : std::floor(choice.budgets[h] * static_cast<float>(n * (n + 1) / 2));
      budget = std::max(budget, count);
      std::stable_sort(rest.begin(), rest.end(), [&](auto x, auto y) {
        return amount(masses(h, s, x.first, x.second)) > amount(masses(h, s, y.first, y.second));
      });
      for (auto [i, j] : rest) {
        float mass = amount(masses(h, s, i, j));
        if (mass == 0 || (choice.coverage < 1 && sum >= choice.coverage * all)) break;
        if (count == budget) {
          ++cut;
          break;
        }
        one[i * n + j] = 1, ++count, sum += mass;
      }
      chosen.push_back(one);
      kept += count, possible += n * (n + 1) / 2, covered += sum, whole += all, number += n > 0;
    }
  }
  Mask mask(samples, heads,
            [&](int64_t h, int64_t s, int64_t i, int64_t j) { return chosen[s * heads + h][i * samples.blocks(s) + j]; });
  AttentionLists lists(samples, heads);
  Tensor summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE}, 0.0);
  select(context, samples, heads, choice, masses, lists, summary, what);
  expect_lists(lists, mask, what);
  expect_summary(summary, {possible == 0 ? 0 : kept / possible, whole == 0 ? 1 : covered / whole, number == 0 ? 0 : cut / number},
                 what);
}

// Cases small enough to work out by hand: three blocks, of which only (2, 1) may be left out.
void by_hand(pnb_context* context) {
  Samples samples{{0, 180}, 180, 64};
  Masses masses = [](int64_t, int64_t, int64_t i, int64_t j) {
    return static_cast<float>(i * (i + 1) / 2 + j + 1);  // 1 .. 6, 5 at (2, 1)
  };
  const struct {
    float coverage, budget;
    bool taken;
    float kept, covered, cut;
    const char* what;
  } cases[] = {{0.76f, 1.0f, false, 5 / 6.0f, 16 / 21.0f, 0, "coverage that the blocks always kept reach"},
               {0.77f, 1.0f, true, 1, 1, 0, "coverage that they do not reach"},
               {0.77f, 0.9f, false, 5 / 6.0f, 16 / 21.0f, 1, "a budget of five"},
               {0.77f, 0.1f, false, 5 / 6.0f, 16 / 21.0f, 1, "a budget of fewer than are always kept"},
               {0.76f, 0.1f, false, 5 / 6.0f, 16 / 21.0f, 0, "a small budget that is enough"},
               {1.0f, 1.0f, true, 1, 1, 0, "everything"}};
  for (const auto& c : cases) {
    for (bool table : {false, true}) {
      AttentionLists lists(samples, 1);
      Tensor summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE}, 0.0);
      std::string what = std::string("selection of attention by hand, ") + c.what;
      select(context, samples, 1, {c.coverage, {c.budget}, table}, masses, lists, summary, what);
      expect_lists(lists, Mask(samples, 1, [&](int64_t, int64_t, int64_t i, int64_t j) { return i != 2 || j != 1 || c.taken; }),
                   what);
      expect_summary(summary, {c.kept, c.covered, c.cut}, what);
    }
  }
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  const std::vector<int32_t> packed{0, 100, 100, 117, 390, 391};
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    for (int64_t size : {64, 128}) {
      for (int32_t stride : {1, 3, 8, 1000}) {
        masses(context, dtype, {packed, 400, size}, 2, 64, stride);
        masses(context, dtype, {{0, 256}, 256, size}, 1, 27, stride);
      }
      masses(context, dtype, {{0, 1}, 1, size}, 3, 80, 1);
      masses(context, dtype, {{0, 131}, 131, size}, 1, 128, 2);
    }
  }
  for (int64_t size : {64, 128}) {
    for (int32_t pool_rows : {16, 32, 64}) {
      prediction(context, {packed, 400, size}, 2, 16, 48, pool_rows);
      prediction(context, {{0, 256, 512}, 512, size}, 1, 8, 300, pool_rows);
      prediction(context, {{0, 13, 150, 151, 420}, 600, size}, 3, 64, 33, pool_rows);
    }
    prediction(context, {{0, 300}, 300, size}, 2, 24, 700, 32);
    prediction(context, {{0, 5}, 5, size}, 2, 8, 40, 32);  // no row's middle: nothing is expected
    prediction(context, {{0, 0}, 0, size}, 1, 8, 40, 32);
  }
  by_hand(context);
  std::vector<float> values(4 * 8 * 64 * 64);
  auto at = [&](int64_t h, int64_t s, int64_t i, int64_t j) { return values[((h * 8 + s) * 64 + i) * 64 + j]; };
  auto same_in_all = [&](int64_t h, int64_t, int64_t i, int64_t j) { return at(h, 0, i, j); };
  for (int64_t size : {64, 128}) {
    for (const Samples& samples :
         {Samples{{0, 500, 500, 517, 1390, 1391}, 1400, size}, {{0, 4096}, 4096, size}, {{0, 0}, 70, size}}) {
      for (int spread : {1, 6, 10000}) {  // of masses: mostly equal, often equal, hardly ever
        for (float& value : values) {
          int drawn = static_cast<int>(generator()() % 100);
          value = drawn < 5 ? NAN : drawn < 10 ? -3.0f : drawn < 20 ? 0.0f : static_cast<float>(1 + generator()() % spread);
        }
        for (float coverage : {0.2f, 0.9f, 1.0f}) {
          against_rule(context, samples, 3, {coverage, {}}, at, "random masses");
          against_rule(context, samples, 3, {coverage, {0.5f, 0.01f, 0.7f}}, at, "random masses");
          against_rule(context, samples, 2, {coverage, {0.3f, 1.0f}, true}, same_in_all, "random masses");
        }
      }
      against_rule(context, samples, 1, {1.0f, {}}, [](int64_t, int64_t, int64_t, int64_t) { return 0.0f; }, "no masses");
      against_rule(context, samples, 1, {0.5f, {}}, [](int64_t, int64_t, int64_t, int64_t) { return NAN; }, "masses that are none");
    }
  }
  // 0.7 of 210 blocks are 147, though 0.7 in f32 is a little less.
  against_rule(context, {{0, 1280}, 1280, 64}, 1, {1.0f, {0.7f}}, [](int64_t, int64_t, int64_t, int64_t) { return 2.0f; },
               "equal masses");
  pnb_context_destroy(context);
  return finish("attention_choice_test");
}
