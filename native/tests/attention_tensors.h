// Heads as views of wider buffers, lists of attention blocks, and the masked attention in double that both are held to.
#pragma once

#include <algorithm>

#include "harness.h"

namespace test {

// A column range of a [tokens, width] buffer as [tokens, heads, dim].
inline pnb_tensor heads_of(Tensor& buffer, int64_t column, int64_t heads, int64_t dim) {
  int size = buffer.t.dtype == PNB_DTYPE_F32 ? 4 : 2;
  int64_t width = buffer.t.shape[1];
  return {static_cast<char*>(buffer.t.data) + column * size, buffer.t.dtype, 3, {buffer.t.shape[0], heads, dim}, {width, dim, 1}};
}

inline std::vector<double> columns(const Tensor& buffer, int64_t column, int64_t count) {
  std::vector<double> result;
  for (int64_t i = 0; i < buffer.t.shape[0]; ++i) {
    for (int64_t j = 0; j < count; ++j) result.push_back(buffer.at(i * buffer.t.shape[1] + column + j));
  }
  return result;
}

// Samples of a packed batch, as blocks of `size` rows see them.
struct Samples {
  std::vector<int32_t> cu;
  int64_t tokens, size;

  int64_t count() const { return static_cast<int64_t>(cu.size()) - 1; }
  int64_t length(int64_t s) const { return cu[s + 1] - cu[s]; }
  int64_t blocks(int64_t s) const { return (length(s) + size - 1) / size; }
  int64_t slot(int64_t s, int64_t block) const { return cu[s] / size + s + block; }
  int64_t slots() const { return tokens / size + count(); }
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t s = 0; s < count(); ++s) most = std::max(most, length(s));
    return most;
  }
  int64_t width() const { return (longest() + size - 1) / size; }
  std::string text() const {
    std::string result = "blocks of " + std::to_string(size) + ", " + std::to_string(tokens) + " tokens, borders";
    for (int32_t border : cu) result.append(" ").append(std::to_string(border));
    return result;
  }
};

constexpr int32_t kPoison = 0x7f7f7f7f;

// Room for lists, with one block more than is needed; nothing in it is a block's number before it is written.
struct AttentionLists {
  int64_t heads, slots, width;
  Tensor indices, counts, t_indices, t_counts, order;
  pnb_attention_blocks blocks{};

  AttentionLists(const Samples& samples, int64_t heads) : heads(heads), slots(samples.slots()), width(samples.width() + 1) {
    auto room = [](int64_t count) { return ints(std::vector<int32_t>(count, kPoison)); };
    indices = room(heads * slots * width), t_indices = room(heads * slots * width);
    counts = room(heads * slots), t_counts = room(heads * slots), order = room(2 * heads * slots);
    blocks.indices = {indices.t.data, PNB_DTYPE_I32, 3, {heads, slots, width}, {slots * width, width, 1}};
    blocks.t_indices = {t_indices.t.data, PNB_DTYPE_I32, 3, {heads, slots, width}, {slots * width, width, 1}};
    blocks.counts = {counts.t.data, PNB_DTYPE_I32, 2, {heads, slots}, {slots, 1}};
    blocks.t_counts = {t_counts.t.data, PNB_DTYPE_I32, 2, {heads, slots}, {slots, 1}};
    blocks.order = {order.t.data, PNB_DTYPE_I32, 2, {2, heads * slots}, {heads * slots, 1}};
    blocks.size = static_cast<int32_t>(samples.size);
  }

  AttentionLists(const AttentionLists&) = delete;

  static int32_t* at(Tensor& t) { return static_cast<int32_t*>(t.t.data); }
};

// Which blocks each head keeps in each sample.
struct Mask {
  Samples samples;
  int64_t heads;
  std::vector<std::vector<char>> kept;  // [sample * heads + head][i * blocks + j]

  // keep(head, sample, i, j) for j <= i.
  template <typename Keep>
  Mask(const Samples& samples, int64_t heads, Keep&& keep) : samples(samples), heads(heads) {
    for (int64_t s = 0; s < samples.count(); ++s) {
      for (int64_t h = 0; h < heads; ++h) {
        int64_t n = samples.blocks(s);
        std::vector<char> one(n * n);
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j <= i; ++j) one[i * n + j] = keep(h, s, i, j);
        }
        kept.push_back(one);
      }
    }
  }

  bool keeps(int64_t h, int64_t s, int64_t i, int64_t j) const { return kept[s * heads + h][i * samples.blocks(s) + j]; }
  // Whether query `row` of a sample sees its key `key`.
  bool sees(int64_t h, int64_t s, int64_t row, int64_t key) const {
    return key <= row && keeps(h, s, row / samples.size, key / samples.size);
  }

  void write(AttentionLists& lists) const {
    std::fill_n(AttentionLists::at(lists.counts), heads * lists.slots, 0);
    std::fill_n(AttentionLists::at(lists.t_counts), heads * lists.slots, 0);
    std::vector<int32_t> places;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t s = 0; s < samples.count(); ++s) {
        for (int64_t i = 0; i < samples.blocks(s); ++i) {
          places.push_back(static_cast<int32_t>(h * lists.slots + samples.slot(s, i)));
          for (int64_t j = 0; j <= i; ++j) {
            if (!keeps(h, s, i, j)) continue;
            int64_t from = h * lists.slots + samples.slot(s, i), to = h * lists.slots + samples.slot(s, j);
            AttentionLists::at(lists.indices)[from * lists.width + AttentionLists::at(lists.counts)[from]++] =
                static_cast<int32_t>(j);
            AttentionLists::at(lists.t_indices)[to * lists.width + AttentionLists::at(lists.t_counts)[to]++] =
                static_cast<int32_t>(i);
          }
        }
      }
    }
    std::fill_n(AttentionLists::at(lists.order), 2 * heads * lists.slots, -1);
    for (int side = 0; side < 2; ++side) {
      const int32_t* counts = AttentionLists::at(side == 0 ? lists.counts : lists.t_counts);
      std::vector<int32_t> sorted = places;
      std::stable_sort(sorted.begin(), sorted.end(), [&](int32_t x, int32_t y) { return counts[x] > counts[y]; });
      std::copy(sorted.begin(), sorted.end(), AttentionLists::at(lists.order) + side * heads * lists.slots);
    }
  }
};

// Attention in double over [tokens, heads, dim].
struct Operands {
  std::vector<double> q, k, v;
  int64_t dim;
  double scale;

  double score(const Mask& mask, int64_t h, int64_t s, int64_t row, int64_t key) const {
    double sum = 0;
    for (int64_t d = 0; d < dim; ++d) sum += q[at(mask, h, s, row) + d] * k[at(mask, h, s, key) + d];
    return scale * sum;
  }
  int64_t at(const Mask& mask, int64_t h, int64_t s, int64_t row) const {
    return ((mask.samples.cu[s] + row) * mask.heads + h) * dim;
  }
};

struct Forward {
  std::vector<double> o, lse;  // [tokens, heads, dim], [heads, tokens]; 0 where no key is seen
};

template <typename Visit>
void each_query(const Mask& mask, Visit&& visit) {
  for (int64_t s = 0; s < mask.samples.count(); ++s) {
    for (int64_t h = 0; h < mask.heads; ++h) {
      for (int64_t row = 0; row < mask.samples.length(s); ++row) visit(h, s, row);
    }
  }
}

inline Forward masked_forward(const Operands& x, const Mask& mask) {
  Forward f{std::vector<double>(x.q.size()), std::vector<double>(mask.heads * mask.samples.tokens)};
  each_query(mask, [&](int64_t h, int64_t s, int64_t row) {
    std::vector<double> scores(row + 1);
    double top = -INFINITY, sum = 0;
    for (int64_t key = 0; key <= row; ++key) {
      if (!mask.sees(h, s, row, key)) continue;
      scores[key] = x.score(mask, h, s, row, key);
      top = std::max(top, scores[key]);
    }
    if (top == -INFINITY) return;
    for (int64_t key = 0; key <= row; ++key) sum += mask.sees(h, s, row, key) ? std::exp(scores[key] - top) : 0.0;
    f.lse[h * mask.samples.tokens + mask.samples.cu[s] + row] = top + std::log(sum);
    for (int64_t key = 0; key <= row; ++key) {
      if (!mask.sees(h, s, row, key)) continue;
      double p = std::exp(scores[key] - top) / sum;
      for (int64_t d = 0; d < x.dim; ++d) f.o[x.at(mask, h, s, row) + d] += p * x.v[x.at(mask, h, s, key) + d];
    }
  });
  return f;
}

struct Gradients {
  std::vector<double> dq, dk, dv;
};

// The gradient's part that flows through the mask's blocks, of a forward pass that may have had more.
inline Gradients masked_backward(const Operands& x, const Mask& mask, const Forward& f, const std::vector<double>& d_o) {
  Gradients g{std::vector<double>(x.q.size()), std::vector<double>(x.q.size()), std::vector<double>(x.q.size())};
  each_query(mask, [&](int64_t h, int64_t s, int64_t row) {
    int64_t i = x.at(mask, h, s, row);
    double delta = 0;
    for (int64_t d = 0; d < x.dim; ++d) delta += d_o[i + d] * f.o[i + d];
    for (int64_t key = 0; key <= row; ++key) {
      if (!mask.sees(h, s, row, key)) continue;
      int64_t j = x.at(mask, h, s, key);
      double p = std::exp(x.score(mask, h, s, row, key) - f.lse[h * mask.samples.tokens + mask.samples.cu[s] + row]), dp = 0;
      for (int64_t d = 0; d < x.dim; ++d) dp += d_o[i + d] * x.v[j + d];
      double ds = p * (dp - delta) * x.scale;
      for (int64_t d = 0; d < x.dim; ++d) {
        g.dv[j + d] += p * d_o[i + d];
        g.dq[i + d] += ds * x.k[j + d];
        g.dk[j + d] += ds * x.q[i + d];
      }
    }
  });
  return g;
}

}  // namespace test
