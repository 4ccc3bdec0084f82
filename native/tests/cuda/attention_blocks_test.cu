// Attention by lists of blocks, and what makes the lists, against double and against plain loops on the host.
#include "cuda/attention_case.cuh"
#include "cuda/attention_lists.cuh"

using namespace test;

namespace {

class DeviceBytes {
 public:
  explicit DeviceBytes(const std::vector<uint8_t>& bytes) {
    cuda(cudaMalloc(&data_, std::max<size_t>(1, bytes.size())));
    cuda(cudaMemcpy(data_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  const uint8_t* get() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
};

int64_t width_of(const Shape& s, int size) {
  int64_t longest = 1;
  for (size_t i = 1; i < s.cu_q.size(); ++i) longest = std::max<int64_t>(longest, s.cu_q[i] - s.cu_q[i - 1]);
  return (longest + size - 1) / size + 1;  // one to spare
}

// Operands for several masks, with what the reference takes of them.
struct Given {
  explicit Given(const Shape& s) : x(s, true), q(x.part(0)), k(x.part(1)), v(x.part(2)), d_o(x.d_o.values()) {
    for (double& value : d_o) value = std::isnan(value) ? 0.0 : value;
  }

  Operands x;
  std::vector<double> q, k, v, d_o;
};

template <typename Keeps>
void matches(Given& given, int size, const std::string& kind, Keeps&& keeps, bool backward_alone = false) {
  Operands& x = given.x;
  const Shape& s = x.shape;
  std::string what = s.text() + " blocks of " + std::to_string(size) + ", " + kind;
  BlockLists lists(s.heads, s.cu_q, s.tokens_q, size, width_of(s, size));
  lists.choose(keeps);
  DeviceBytes mask(lists.mask);
  for (Tensor* t : {&x.o, &x.lse, &x.d_qkv}) cuda(cudaMemset(t->t.data, 0x7f, t->size() * element_bytes(t->t.dtype)));
  x.blocks = {};
  if (!backward_alone) x.blocks = lists.params();
  x.forward();
  x.blocks = lists.params();
  Results r = reference(s, given.q, given.k, given.v, given.d_o, x.scale, false,
                        {mask.get(), static_cast<int>(lists.slots), static_cast<int>(lists.width), size, backward_alone});
  close(x.o.values(), r.o, allowed(r.o, s), what + " o");
  std::vector<double> lse, exact, found = x.lse.values();
  for (int64_t head = 0; head < s.heads; ++head) {
    for (int64_t row = 0; row < s.cu_q.back(); ++row) {
      lse.push_back(found[head * s.tokens_q + row]);
      exact.push_back(r.lse[row * s.heads + head]);
    }
  }
  close(lse, exact, s.dtype == PNB_DTYPE_BF16 ? 1e-4 : 2e-6, what + " lse");
  x.backward();
  close(x.gradient(0), r.dq, allowed(r.dq, s), what + " dq");
  close(x.gradient(1), r.dk, allowed(r.dk, s), what + " dk");
  close(x.gradient(2), r.dv, allowed(r.dv, s), what + " dv");
  std::vector<char> first = x.d_qkv.bits(), first_o = x.o.bits();
  if (!backward_alone) x.forward();
  x.backward();
  expect(first == x.d_qkv.bits() && first_o == x.o.bits(), what + ": equal bits from equal inputs");
  if (!lists.share_out()) return;
  for (Tensor* t : {&x.o, &x.d_qkv}) cuda(cudaMemset(t->t.data, 0x7f, t->size() * element_bytes(t->t.dtype)));
  if (backward_alone) x.blocks = {};
  x.forward();
  x.blocks = lists.params();
  x.backward();
  expect(first == x.d_qkv.bits() && first_o == x.o.bits(), what + ": equal bits whoever works on what");
}

bool chance(double part) { return std::uniform_real_distribution<double>()(generator()) < part; }

void masks(const Shape& s, int size, bool brief) {
  using I = int64_t;
  Given given(s);
  matches(given, size, "all", [](I, I, I, I) { return true; });
  matches(given, size, "none", [](I, I, I, I) { return false; });
  matches(given, size, "a third and the diagonal", [](I, I, I i, I j) { return i == j || chance(0.33); });
  matches(given, size, "a half, some empty", [](I h, I, I i, I) { return (i + h) % 3 != 0 && chance(0.5); });
  if (brief) return;
  matches(given, size, "the diagonal", [](I, I, I i, I j) { return i == j; });
  matches(given, size, "the first column", [](I, I, I, I j) { return j == 0; });
  matches(given, size, "all but the diagonal", [](I, I, I i, I j) { return i != j; });
  matches(given, size, "a third and the diagonal, backward alone", [](I, I, I i, I j) { return i == j || chance(0.33); }, true);
}

void cases(int64_t dim, bool brief) {
  for (const Shape& s : {packed(PNB_DTYPE_BF16, 2, dim, lengths({300, 0, 129}), 470),
                         packed(PNB_DTYPE_BF16, 1, dim, lengths({1}), 40), packed(PNB_DTYPE_BF16, 2, dim, {0, 0, 0}, 140)}) {
    masks(s, 128, true);
  }
  if (brief) return;
  masks(packed(PNB_DTYPE_BF16, 3, dim, lengths({1000, 1, 255, 513, 64, 65, 63, 128}), 2200), 128, false);
  std::vector<int32_t> cu = random_lengths(24, 300);
  masks(packed(PNB_DTYPE_BF16, 2, dim, cu, cu.back() + 100), 128, false);
  masks(packed(PNB_DTYPE_BF16, 4, dim, lengths({2048, 1111}), 3159), 128, true);
  masks(packed(PNB_DTYPE_BF16, 2, dim, lengths({300, 77}), 400), 64, true);
  // Many short units for each block of threads.
  cu = random_lengths(40, 40);
  for (int32_t length : {700, 0, 385}) cu.push_back(cu.back() + length);
  Given many(packed(PNB_DTYPE_BF16, 32, dim, cu, cu.back() + 33));
  for (int draw = 0; draw < 2; ++draw) {
    matches(many, 128, "many, some empty", [](int64_t h, int64_t, int64_t i, int64_t) { return (i + h) % 3 != 0 && chance(0.6); });
  }
}

// Shapes that the fast kernels do not take.
void plain_cases(bool brief) {
  masks(packed(PNB_DTYPE_F32, 2, 64, lengths({300, 1, 129}), 470), 128, brief);
  masks(packed(PNB_DTYPE_F32, 2, 20, lengths({200, 0, 130}), 340), 64, brief);
  masks(packed(PNB_DTYPE_BF16, 2, 33, lengths({150, 9}), 160), 64, true);
  masks(packed(PNB_DTYPE_BF16, 2, 64, lengths({20, 9}), 31), 128, true);
}

// A listed sample full of NaN leaves its neighbours as they are without it.
void nan_stays_in_its_sample(int64_t dim) {
  Shape s = packed(PNB_DTYPE_BF16, 2, dim, {0, 190, 430, 700}, 701);
  BlockLists lists(2, s.cu_q, 701, 128, 3);
  lists.choose([](int64_t, int64_t, int64_t, int64_t) { return true; });
  Operands clean(s, true), dirty(s, true);
  dirty.q_buffer.set(clean.q_buffer.values());
  dirty.d_o.set(clean.d_o.values());
  auto poison = [](int64_t row, int64_t) { return row >= 190 && row < 430 ? NAN : 1.0; };
  Operands::edit(dirty.q_buffer, poison);
  Operands::edit(dirty.d_o, poison);
  for (Operands* x : {&clean, &dirty}) {
    x->blocks = lists.params();
    x->forward();
    x->backward();
  }
  auto outside = [&](const Tensor& t) {
    std::vector<double> result, values = t.values();
    for (int64_t i = 0; i < t.size(); ++i) {
      if (poison(i / t.t.shape[1], 0) == 1.0) result.push_back(values[i]);
    }
    return result;
  };
  expect(outside(clean.o) == outside(dirty.o), s.text() + " by lists beside a sample of NaN: o unchanged outside it");
  expect(outside(clean.d_qkv) == outside(dirty.d_qkv),
         s.text() + " by lists beside a sample of NaN: gradients unchanged outside it");
}

struct MassReference {
  const double *q, *k, *lse;  // lse: [tokens, heads]
  double* mass;
  const int* cu;
  int samples, heads, dim, slots, width, size, stride;
  double scale;
};

// One thread an element.
__global__ void mass_reference(MassReference r) {
  int j = blockIdx.x, slot = blockIdx.y, head = threadIdx.x;
  double sum = 0;
  for (int s = 0; s < r.samples; ++s) {
    int length = r.cu[s + 1] - r.cu[s], block = slot - (r.cu[s] / r.size + s);
    if (block < 0 || block * r.size >= length) continue;
    for (int row = block * r.size; row < min(length, (block + 1) * r.size); ++row) {
      if ((row + 1) % r.stride != 0 && row + 1 != length) continue;
      for (int key = j * r.size; key < min(row + 1, (j + 1) * r.size); ++key) {
        double x = 0;
        const double* q = r.q + (static_cast<int64_t>(r.cu[s] + row) * r.heads + head) * r.dim;
        const double* k = r.k + (static_cast<int64_t>(r.cu[s] + key) * r.heads + head) * r.dim;
        for (int d = 0; d < r.dim; ++d) x += q[d] * k[d];
        sum += exp(x * r.scale - r.lse[(r.cu[s] + row) * r.heads + head]);
      }
    }
  }
  r.mass[(static_cast<int64_t>(head) * r.slots + slot) * r.width + j] = sum;
}

void mass_matches(const Shape& s, int size, int stride) {
  std::string what = s.text() + " mass, blocks of " + std::to_string(size) + ", stride " + std::to_string(stride);
  Operands x(s, true);
  x.forward();
  int64_t slots = s.tokens_q / size + static_cast<int64_t>(s.cu_q.size()) - 1, width = width_of(s, size);
  Tensor mass(PNB_DTYPE_F32, {s.heads, slots, width}, 0.0);
  pnb_attention_forward_params f = x.forward_params();
  pnb_attention_mass_params p{};
  p.struct_size = sizeof p;
  p.scale = f.scale;
  p.q = f.q, p.k = f.k, p.lse = f.lse, p.cu_seqlens = f.cu_seqlens_q, p.max_seqlen = f.max_seqlen;
  p.size = size;
  p.query_stride = stride;
  p.mass = mass.t;
  ok(what, [&] { backend().attention_mass(p); });
  std::vector<double> found = mass.values(), lse(s.tokens_q * s.heads), all = x.lse.values();
  for (int64_t i = 0; i < static_cast<int64_t>(lse.size()); ++i) lse[i] = all[i % s.heads * s.tokens_q + i / s.heads];
  Doubles q(x.part(0)), k(x.part(1)), dev_lse(lse), exact(found);
  mass_reference<<<dim3(static_cast<unsigned>(width), static_cast<unsigned>(slots)), static_cast<unsigned>(s.heads)>>>(
      {q.get(), k.get(), dev_lse.get(), exact.get(), static_cast<int*>(x.cu_q.t.data), static_cast<int>(s.cu_q.size()) - 1,
       static_cast<int>(s.heads), static_cast<int>(s.dim), static_cast<int>(slots), static_cast<int>(width), size, stride,
       x.scale});
  cuda(cudaDeviceSynchronize(), what.c_str());
  close(found, exact.values(), 1e-5, what);
  std::vector<char> first = mass.bits();
  ok(what, [&] { backend().attention_mass(p); });
  expect(first == mass.bits(), what + ": equal bits from equal inputs");
}

void predict_matches(int64_t heads, int64_t r, int64_t hidden, std::vector<int32_t> cu, int64_t tokens, int pool, int size,
                     int64_t shift = 0, int64_t behind = 0) {
  std::string what = "predict_attention heads " + std::to_string(heads) + " r " + std::to_string(r) + " hidden " +
                     std::to_string(hidden) + " tokens " + std::to_string(tokens) + " samples " + std::to_string(cu.size() - 1) +
                     " pool " + std::to_string(pool) + " size " + std::to_string(size);
  int64_t rows = (tokens + pool - 1) / pool, samples = static_cast<int64_t>(cu.size()) - 1, slots = tokens / size + samples;
  Shape s = packed(PNB_DTYPE_F32, heads, 1, cu, tokens);
  int64_t width = width_of(s, size);
  int64_t pitch = shift + hidden + behind;
  Tensor pooled(PNB_DTYPE_F32, {rows, pitch}),
      a(PNB_DTYPE_BF16, {2, heads, r, hidden}, 2.0 / std::sqrt(static_cast<double>(hidden)));
  Tensor bias(PNB_DTYPE_F32, {2, heads, r}, 0.3), distance(PNB_DTYPE_F32, {heads, width}),
      mass(PNB_DTYPE_F32, {heads, slots, width}, 0.0);
  Tensor borders(PNB_DTYPE_I32, {samples + 1}, 0.0);
  borders.set(ints(cu));
  pnb_predict_attention_params p{};
  p.struct_size = sizeof p;
  p.pool_rows = pool;
  p.pooled = pooled.columns(shift, hidden), p.a = a.t, p.bias = bias.t, p.distance = distance.t, p.cu_seqlens = borders.t;
  p.tokens = tokens;
  p.max_seqlen = (width - 1) * size;
  p.size = size;
  p.mass = mass.t;
  Workspace workspace(backend().predict_attention_workspace(p));
  p.workspace = workspace.w;
  ok(what, [&] { backend().predict_attention(p); });
  cuda(cudaDeviceSynchronize(), what.c_str());

  std::vector<double> x = pooled.values(), w = a.values(), b = bias.values(), far = distance.values(), z(2 * heads * r * rows),
                      exact(mass.size());
  for (int64_t o = 0; o < 2 * heads * r; ++o) {
    for (int64_t g = 0; g < rows; ++g) {
      double sum = b[o];
      for (int64_t i = 0; i < hidden; ++i) sum += x[g * pitch + shift + i] * w[o * hidden + i];
      z[o * rows + g] = sum;
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t n = 0; n < samples; ++n) {
      std::vector<int64_t> own;
      for (int64_t g = 0; g < rows; ++g) {
        if (g * pool + pool / 2 >= cu[n] && g * pool + pool / 2 < cu[n + 1]) own.push_back(g);
      }
      auto block_of = [&](int64_t g) { return (g * pool + pool / 2 - cu[n]) / size; };
      for (int64_t i = 0; i * size < cu[n + 1] - cu[n]; ++i) {
        std::vector<int64_t> asked, before;
        for (int64_t g : own) {
          if (block_of(g) == i) asked.push_back(g);
          if (block_of(g) < i) before.push_back(g);
        }
        if (asked.empty() && !before.empty()) asked = {before.back()};
        for (int64_t g : asked) {
          std::vector<double> e;
          double sum = 0;
          for (int64_t other : own) {
            if (other > g) break;
            double score = far[h * width + block_of(g) - block_of(other)];
            for (int64_t c = 0; c < r; ++c) score += z[(h * r + c) * rows + g] * z[((heads + h) * r + c) * rows + other];
            e.push_back(std::exp(score));
            sum += e.back();
          }
          for (size_t k = 0; k < e.size(); ++k) {
            exact[(h * slots + cu[n] / size + n + i) * width + block_of(own[k])] += pool * e[k] / sum;
          }
        }
      }
    }
  }
  close(mass.values(), exact, 5e-4, what);
  std::vector<char> first = mass.bits();
  ok(what, [&] { backend().predict_attention(p); });
  expect(first == mass.bits(), what + ": equal bits from equal inputs");
}

// What the largest batch is given as a workspace is enough for smaller ones.
void predict_workspace_grows(int64_t heads, int64_t r, int64_t hidden) {
  uint64_t before = 0;
  pnb_predict_attention_params p{};
  p.a.shape[0] = 2, p.a.shape[1] = heads, p.a.shape[2] = r, p.pooled.shape[1] = hidden;
  for (int64_t rows = 1; rows < 1500; ++rows) {
    p.pooled.shape[0] = rows;
    uint64_t bytes = backend().predict_attention_workspace(p);
    expect(bytes >= before, "predict_attention heads " + std::to_string(heads) + " r " + std::to_string(r) + " hidden " +
                                std::to_string(hidden) + ": a smaller workspace for " + std::to_string(rows) + " pooled rows");
    before = bytes;
  }
}

// An order holds every list that has a block once, then -1: by falling count, or as shares.
void order_matches(const std::vector<double>& found, const std::vector<double>& sorted, const std::string& what) {
  size_t n = found.size() / 2, shares = multiprocessors();
  for (size_t side : {0, 1}) {
    std::vector<double> own(found.begin() + side * n, found.begin() + (side + 1) * n), numbers;
    std::vector<double> other(sorted.begin() + side * n, sorted.begin() + (side + 1) * n);
    for (double entry : own) numbers.push_back(static_cast<double>(BlockLists::number(entry)));
    if (!own.empty() && own[0] >= BlockLists::kShared) {
      for (size_t i = 0; i + 1 < shares; ++i) {
        expect(i + 1 < n && BlockLists::begin(own[i]) <= BlockLists::begin(own[i + 1]), what + ": shares follow one another");
      }
      std::vector<double>::iterator ends[] = {std::find(numbers.begin(), numbers.end(), -1.0),
                                              std::find(other.begin(), other.end(), -1.0)};
      std::sort(numbers.begin(), ends[0]), std::sort(other.begin(), ends[1]);
    }
    expect(numbers == other, what + ": order " + std::to_string(side));
  }
}

enum class Masses { kRandom, kSteep, kEqual, kSparse, kBad };

void select_matches(int64_t heads, std::vector<int32_t> cu, int64_t tokens, int size, Masses kind, float coverage,
                    std::vector<float> budgets, bool of_table) {
  std::string what = "select_attention heads " + std::to_string(heads) + " tokens " + std::to_string(tokens) + " samples " +
                     std::to_string(cu.size() - 1) + " size " + std::to_string(size) + " masses " +
                     std::to_string(static_cast<int>(kind)) + " coverage " + std::to_string(coverage) +
                     (budgets.empty() ? "" : " budget " + std::to_string(budgets[0])) + (of_table ? " of a table" : "");
  Shape s = packed(PNB_DTYPE_F32, heads, 1, cu, tokens);
  int64_t width = width_of(s, size), samples = static_cast<int64_t>(cu.size()) - 1;
  BlockLists lists(heads, cu, tokens, size, width), expected(heads, cu, tokens, size, width);
  int64_t slots = lists.slots;
  Tensor mass(PNB_DTYPE_F32, {heads, of_table ? width : slots, width}), summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE}, 0.0);
  Tensor limits(PNB_DTYPE_F32, {heads}), borders(PNB_DTYPE_I32, {samples + 1}, 0.0);
  borders.set(ints(cu));
  std::vector<double> values = mass.values();
  for (double& x : values) {
    if (kind == Masses::kRandom) x = std::fabs(x);
    if (kind == Masses::kSteep) x = std::exp(6 * x);
    if (kind == Masses::kEqual) x = x < 0 ? 0.25 : 0.5;
    if (kind == Masses::kSparse) x = x < 1.5 ? 0 : x;
    if (kind == Masses::kBad) x = x < -1 ? NAN : x;
  }
  mass.set(values);
  values = mass.values();
  if (!budgets.empty()) limits.set({budgets.begin(), budgets.end()});
  pnb_select_attention_params p{};
  p.struct_size = sizeof p;
  p.coverage = coverage;
  (of_table ? p.table : p.mass) = mass.t;
  if (!budgets.empty()) p.budgets = limits.t;
  p.cu_seqlens = borders.t;
  p.tokens = tokens;
  p.max_seqlen = (width - 1) * size;
  p.blocks = lists.params();
  p.summary = summary.t;
  Workspace workspace(backend().select_attention_workspace(p));
  p.workspace = workspace.w;
  ok(what, [&] { backend().select_attention(p); });
  cuda(cudaDeviceSynchronize(), what.c_str());

  double told[3][2] = {};
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t n = 0; n < samples; ++n) {
      struct Candidate {
        float mass;
        int64_t i, j;
      };
      std::vector<Candidate> rest;
      int64_t blocks = expected.blocks_of(n), kept = 0;
      double sum = 0, all = 0;
      if (blocks == 0) continue;
      for (int64_t i = 0; i < blocks; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          int64_t row = of_table ? h * width + i : h * slots + expected.slot_of(n) + i;
          float x = static_cast<float>(values[row * width + j]);
          x = x > 0 ? x : 0;
          bool always = j == 0 || i == j;
          expected.at(h, n, i, j) = always;
          all += x;
          if (always) sum += x, ++kept;
          else if (x > 0) rest.push_back({x, i, j});
        }
      }
      std::stable_sort(rest.begin(), rest.end(), [](const Candidate& a, const Candidate& b) { return a.mass > b.mass; });
      int64_t possible = blocks * (blocks + 1) / 2;
      float budget = budgets.empty() ? 1.0f : budgets[h];
      int64_t most = std::max(kept, static_cast<int64_t>(budget * static_cast<float>(possible)));
      auto wants = [&] { return coverage == 1.0f || sum < static_cast<double>(coverage) * all; };
      size_t next = 0;
      while (next < rest.size() && wants() && kept < most) {
        expected.at(h, n, rest[next].i, rest[next].j) = 1;
        sum += rest[next++].mass;
        ++kept;
      }
      told[0][0] += static_cast<double>(kept), told[0][1] += static_cast<double>(possible);
      told[1][0] += sum, told[1][1] += all;
      told[2][0] += next < rest.size() && wants(), told[2][1] += 1;
    }
  }
  std::vector<uint8_t> chosen = expected.mask;
  expected.choose(
      [&](int64_t h, int64_t n, int64_t i, int64_t j) { return chosen[(h * slots + expected.slot_of(n) + i) * width + j]; });
  expect(lists.counts.bits() == expected.counts.bits(), what + ": counts");
  expect(lists.t_counts.bits() == expected.t_counts.bits(), what + ": transposed counts");
  expect(lists.indices.bits() == expected.indices.bits(), what + ": indices, and nothing behind them");
  expect(lists.t_indices.bits() == expected.t_indices.bits(), what + ": transposed indices, and nothing behind them");
  order_matches(lists.order.values(), expected.order.values(), what);
  std::vector<double> exact;
  for (auto& part : told) exact.push_back(part[1] == 0 ? (exact.size() == 1 ? 1 : 0) : part[0] / part[1]);
  close(summary.values(), exact, 1e-6, what + ": summary");
}

// Lists whose loads have to even out: those of a block of keys that all queries see are long.
void shares_are_even(int64_t samples, int64_t length, double budget) {
  constexpr int64_t kHeads = 32;
  std::string what = "shares of " + std::to_string(samples) + " samples of " + std::to_string(length);
  int64_t tokens = samples * length, width = length / 128;
  std::vector<int32_t> cu;
  for (int64_t s = 0; s <= samples; ++s) cu.push_back(static_cast<int32_t>(s * length));
  Tensor mass(PNB_DTYPE_F32, {kHeads, tokens / 128 + samples, width}), budgets(PNB_DTYPE_F32, {kHeads});
  Tensor borders(PNB_DTYPE_I32, {samples + 1}, 0.0);
  std::vector<double> values = mass.values();
  for (double& x : values) x = std::fabs(x);
  mass.set(values);
  budgets.set(std::vector<double>(kHeads, budget));
  borders.set(ints(cu));
  BlockLists lists(kHeads, cu, tokens, 128, width);
  pnb_select_attention_params p{};
  p.struct_size = sizeof p;
  p.coverage = 1.0f;
  p.mass = mass.t, p.budgets = budgets.t, p.cu_seqlens = borders.t;
  p.tokens = tokens, p.max_seqlen = length;
  p.blocks = lists.params();
  Workspace workspace(backend().select_attention_workspace(p));
  p.workspace = workspace.w;
  ok(what, [&] { backend().select_attention(p); });
  std::vector<double> order = lists.order.values();
  for (int side : {0, 1}) {
    std::vector<double> counts = (side == 0 ? lists.counts : lists.t_counts).values(), loads(multiprocessors());
    const double* entry = order.data() + side * counts.size();
    expect(*entry >= BlockLists::kShared, what + ": none");
    double sum = 0;
    int64_t held = kHeads * samples * width;
    for (size_t share = 0; share < loads.size(); ++share) {
      int64_t end = share + 1 < loads.size() ? BlockLists::begin(entry[share + 1]) : held;
      for (int64_t i = BlockLists::begin(entry[share]); i < std::min(end, held); ++i) {
        loads[share] += 1 + counts[BlockLists::number(entry[i])];
      }
      sum += loads[share];
    }
    double most = *std::max_element(loads.begin(), loads.end()) / (sum / static_cast<double>(loads.size()));
    expect(most < 1.06, what + ": the most of order " + std::to_string(side) + " is " + std::to_string(most) + " of the mean");
  }
}

void selections(bool brief) {
  for (int size : {64, 128}) {
    for (Masses kind : {Masses::kRandom, Masses::kSteep, Masses::kEqual, Masses::kSparse, Masses::kBad}) {
      for (float coverage : {0.3f, 0.9f, 0.999f, 1.0f}) {
        std::vector<int32_t> cu = lengths({1000, 0, 1, 129, 1500});
        select_matches(3, cu, 2700, size, kind, coverage, {}, false);
        if (brief) continue;
        select_matches(3, cu, 2700, size, kind, coverage, {0.25f, 0.7f, 0.5f}, false);
        select_matches(2, lengths({777, 2048}), 2825, size, kind, coverage, {0.3f, 1.0f}, true);
        select_matches(2, {0, 64 * size, 103 * size}, 104 * size, size, kind, coverage, {0.9f, 0.1f}, false);
        select_matches(1, {0, 128 * size}, 128 * size, size, kind, coverage, {}, kind == Masses::kSteep);
        // As many as are compared with each other, and more.
        select_matches(2, {0, 17 * size, 35 * size}, 35 * size, size, kind, coverage, {0.5f, 1.0f}, false);
      }
    }
  }
  select_matches(2, {0}, 300, 128, Masses::kRandom, 0.9f, {}, false);
  select_matches(2, {0, 0, 0}, 300, 128, Masses::kRandom, 0.9f, {}, false);
  // More lists than shares, and more than are shared out.
  select_matches(12, lengths({4100, 700, 1500}), 6400, 128, Masses::kRandom, 0.5f, {}, false);
  select_matches(64, {0, 128 * 64, 256 * 64}, 257 * 64, 64, Masses::kRandom, 0.3f, {}, true);
  shares_are_even(2, 4096, 0.3);
  shares_are_even(1, 8192, 0.25);
}

// Everything that a step does by lists goes into a graph.
void captured() {
  Shape s = packed(PNB_DTYPE_BF16, 4, 64, lengths({700, 513}), 1300);
  int64_t width = width_of(s, 128);
  BlockLists lists(4, s.cu_q, s.tokens_q, 128, width);
  Operands x(s, true);
  x.blocks = lists.params();
  Tensor pooled(PNB_DTYPE_F32, {41, 256}), a(PNB_DTYPE_BF16, {2, 4, 16, 256}, 0.1), bias(PNB_DTYPE_F32, {2, 4, 16});
  Tensor distance(PNB_DTYPE_F32, {4, width}), mass(PNB_DTYPE_F32, {4, lists.slots, width}, 0.0);
  cudaStream_t stream;
  cuda(cudaStreamCreate(&stream));
  pnb_predict_attention_params predict{};
  predict.struct_size = sizeof predict;
  predict.pool_rows = 32;
  predict.stream = stream;
  predict.pooled = pooled.t, predict.a = a.t, predict.bias = bias.t, predict.distance = distance.t, predict.cu_seqlens = x.cu_q.t;
  predict.tokens = s.tokens_q, predict.max_seqlen = 700, predict.size = 128, predict.mass = mass.t;
  Workspace predict_space(backend().predict_attention_workspace(predict));
  predict.workspace = predict_space.w;
  pnb_select_attention_params select{};
  select.struct_size = sizeof select;
  select.coverage = 0.7f;
  select.stream = stream;
  select.mass = mass.t, select.cu_seqlens = x.cu_q.t, select.tokens = s.tokens_q, select.max_seqlen = 700,
  select.blocks = lists.params();
  Workspace select_space(backend().select_attention_workspace(select));
  select.workspace = select_space.w;
  pnb_attention_forward_params f = x.forward_params();
  pnb_attention_backward_params b = x.backward_params();
  f.stream = b.stream = stream;
  Workspace backward_space(backend().attention_backward_workspace(b));
  b.workspace = backward_space.w;
  auto all = [&] {
    backend().predict_attention(predict);
    backend().select_attention(select);
    backend().attention_forward(f);
    backend().attention_backward(b);
  };
  ok("a step by lists", all);
  cuda(cudaStreamSynchronize(stream), "a step by lists");
  std::vector<char> o = x.o.bits(), gradients = x.d_qkv.bits(), order = lists.order.bits();
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  ok("a step by lists, captured", all);
  cuda(cudaStreamEndCapture(stream, &graph), "capture");
  cuda(cudaGraphInstantiate(&exec, graph, 0), "capture");
  for (Tensor* t : {&x.o, &x.d_qkv, &lists.order, &mass}) cuda(cudaMemset(t->t.data, 0x7f, t->size() * element_bytes(t->t.dtype)));
  for (int i = 0; i < 3; ++i) cuda(cudaGraphLaunch(exec, stream), "replay");
  cuda(cudaStreamSynchronize(stream), "replay");
  expect(o == x.o.bits() && gradients == x.d_qkv.bits() && order == lists.order.bits(),
         "a step by lists: a graph gives the same bits");
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

void predictions(bool brief) {
  predict_matches(2, 8, 64, lengths({300, 0, 20, 129}), 470, 32, 128);
  predict_matches(3, 16, 200, lengths({130, 131, 132, 15, 900}), 1320, 32, 128);
  predict_matches(2, 64, 72, lengths({300, 129}), 470, 8, 64);
  predict_matches(2, 8, 50, lengths({300, 129}), 470, 32, 128);
  predict_matches(2, 24, 64, lengths({300, 129}), 470, 32, 128, 1);
  predict_matches(2, 8, 64, {0, 0}, 40, 32, 128);
  predict_matches(2, 8, 64, {0, 0}, 0, 32, 128);
  predict_matches(2, 8, 64, {0, 20}, 20, 32, 128, 0, 3);  // one pooled row, whose stride says nothing
  predict_workspace_grows(32, 16, 2048), predict_workspace_grows(12, 8, 768);
  if (brief) return;
  predict_matches(4, 16, 768, lengths({2048, 2048}), 4096, 32, 128);
  predict_matches(2, 40, 2120, lengths({5000, 300}), 5300, 16, 128);
  // More keys than a block of threads has at a time.
  predict_matches(2, 64, 64, lengths({40, 1500}), 1540, 8, 64);
  predict_matches(1, 64, 64, lengths({9000}), 9000, 8, 128);
}

void masses(bool brief) {
  for (int64_t dim : {64, 80, 128}) {
    for (int stride : {1, 2, 8, 16, 3}) {
      if (brief && stride != 1 && stride != 16) continue;
      mass_matches(packed(PNB_DTYPE_BF16, 2, dim, lengths({300, 0, 1, 129}), 470), 128, stride);
      if (!brief) mass_matches(packed(PNB_DTYPE_BF16, 3, dim, lengths({1000, 64, 2100, 5}), 3200), 128, stride);
    }
  }
  mass_matches(packed(PNB_DTYPE_F32, 2, 20, lengths({150, 40}), 200), 64, 5);
  mass_matches(packed(PNB_DTYPE_BF16, 2, 64, lengths({150, 140}), 290), 64, 1);
}

}  // namespace

// "brief": short sizes only, for tools that slow every access down. A part's name: that part alone. "lists" followed by a head
// size: that one's lists alone; "rest": what else is of "lists".
int main(int argc, char** argv) {
  bool brief = false;
  std::string only;
  int64_t dim_alone = 0;
  for (const std::string& word : std::vector<std::string>(argv + 1, argv + argc)) {
    if (word == "brief") brief = true;
    else if (int64_t dim = std::atoll(word.c_str()); dim > 0) dim_alone = dim;
    else only = word;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  auto part = [&](const char* name) { return only.empty() || only == name; };
  backend();
  if (part("select")) selections(brief);
  if (part("predict")) predictions(brief);
  if (part("mass")) masses(brief);
  if (part("lists")) {
    for (int64_t dim : {64, 80, 128}) {
      if (dim_alone != 0 && dim != dim_alone) continue;
      cases(dim, brief);
      nan_stays_in_its_sample(dim);
    }
  }
  if ((part("lists") && dim_alone == 0) || only == "rest") {
    plain_cases(brief);
    captured();
  }
  return finish("attention blocks");
}
