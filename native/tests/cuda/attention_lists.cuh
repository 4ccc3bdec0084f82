// Lists of attention blocks that a test makes on the host.
#pragma once

#include "cuda/harness.cuh"

namespace test {

inline int multiprocessors() {
  int number;
  cuda(cudaDeviceGetAttribute(&number, cudaDevAttrMultiProcessorCount, 0));
  return number;
}

struct BlockLists {
  static constexpr int64_t kShared = 1 << 30, kBegin = 1 << 14;  // as an order's entries hold them

  int64_t heads, slots, width;
  int size;
  std::vector<int32_t> cu;
  std::vector<uint8_t> mask;  // [heads, slots, width]
  Tensor indices, counts, t_indices, t_counts, order;

  // What lies behind a list's end stays poisoned: no kernel may read it.
  BlockLists(int64_t heads, std::vector<int32_t> borders, int64_t tokens, int size, int64_t width)
      : heads(heads),
        slots(tokens / size + static_cast<int64_t>(borders.size()) - 1),
        width(width),
        size(size),
        cu(std::move(borders)),
        mask(heads * slots * width),
        indices(PNB_DTYPE_I32, {heads, slots, width}, 0.0),
        counts(PNB_DTYPE_I32, {heads, slots}, 0.0),
        t_indices(PNB_DTYPE_I32, {heads, slots, width}, 0.0),
        t_counts(PNB_DTYPE_I32, {heads, slots}, 0.0),
        order(PNB_DTYPE_I32, {2, heads * slots}, 0.0) {}

  int64_t samples() const { return static_cast<int64_t>(cu.size()) - 1; }
  int64_t blocks_of(int64_t s) const { return (cu[s + 1] - cu[s] + size - 1) / size; }
  int64_t slot_of(int64_t s) const { return cu[s] / size + s; }
  uint8_t& at(int64_t head, int64_t s, int64_t i, int64_t j) { return mask[(head * slots + slot_of(s) + i) * width + j]; }

  // keeps(head, sample, query block, key block) for every block on or below the diagonal.
  template <typename Keeps>
  void choose(Keeps&& keeps) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t s = 0; s < samples(); ++s) {
        for (int64_t i = 0; i < blocks_of(s); ++i) {
          for (int64_t j = 0; j <= i; ++j) at(h, s, i, j) = keeps(h, s, i, j);
        }
      }
    }
    upload();
  }

  // So many of each head's and sample's blocks, drawn at random; the diagonal is among them where there is room for it.
  void choose_part(double part) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t s = 0; s < samples(); ++s) {
        int64_t n = blocks_of(s), keep = static_cast<int64_t>(std::llround(part * n * (n + 1) / 2));
        std::vector<std::pair<int64_t, int64_t>> rest;
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j <= i; ++j) {
            at(h, s, i, j) = keep >= n && i == j;
            if (!at(h, s, i, j)) rest.emplace_back(i, j);
          }
        }
        std::shuffle(rest.begin(), rest.end(), generator());
        for (int64_t k = 0; k < keep - (keep >= n ? n : 0); ++k) at(h, s, rest[k].first, rest[k].second) = 1;
      }
    }
    upload();
  }

  // Draws each list's share, where there are more lists than shares. False: there are not.
  bool share_out() {
    size_t shares = multiprocessors(), n = heads * slots;
    std::vector<double> entries = order.values();
    for (int side : {0, 1}) {
      auto from = entries.begin() + side * static_cast<int64_t>(n), to = std::find(from, from + static_cast<int64_t>(n), -1.0);
      if (to - from <= static_cast<int64_t>(shares)) return false;
      std::vector<std::vector<double>> own(shares);
      for (auto entry = from; entry != to; ++entry) {
        own[std::uniform_int_distribution<size_t>(0, shares - 1)(generator())].push_back(*entry);
      }
      std::vector<double> begins;
      auto next = from;
      for (const auto& share : own) {
        begins.push_back(static_cast<double>(next - from));
        next = std::copy(share.begin(), share.end(), next);
      }
      for (auto entry = from; entry != to; ++entry) *entry += kShared;
      for (size_t i = 0; i < shares; ++i) from[static_cast<int64_t>(i)] += kBegin * begins[i];
    }
    order.set(entries);
    return true;
  }

  // What an order's entry holds: a list's number, or -1; and where a share begins.
  static int64_t number(double entry) { return static_cast<int64_t>(entry) % (entry < kShared ? kShared : kBegin); }
  static int64_t begin(double entry) { return (static_cast<int64_t>(entry) - kShared) / kBegin; }

  pnb_attention_blocks params() const {
    pnb_attention_blocks b{};
    b.indices = indices.t, b.counts = counts.t, b.t_indices = t_indices.t, b.t_counts = t_counts.t, b.order = order.t;
    b.size = size;
    return b;
  }

 private:
  void upload() {
    for (bool transposed : {false, true}) {
      Tensor &to = transposed ? t_indices : indices, &number = transposed ? t_counts : counts;
      std::vector<double> list = to.values(), count(heads * slots), sorted;
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t s = 0; s < samples(); ++s) {
          for (int64_t i = 0; i < blocks_of(s); ++i) {
            int64_t own = h * slots + slot_of(s) + i;
            sorted.push_back(static_cast<double>(own));
            for (int64_t j = 0; j < blocks_of(s); ++j) {
              if (transposed ? j < i || !at(h, s, j, i) : j > i || !at(h, s, i, j)) continue;
              list[own * width + static_cast<int64_t>(count[own]++)] = static_cast<double>(j);
            }
          }
        }
      }
      std::stable_sort(sorted.begin(), sorted.end(),
                       [&](double a, double b) { return count[static_cast<int64_t>(a)] > count[static_cast<int64_t>(b)]; });
      sorted.resize(heads * slots, -1);
      std::vector<double> both = order.values();
      std::copy(sorted.begin(), sorted.end(), both.begin() + (transposed ? heads * slots : 0));
      to.set(list);
      number.set(count);
      order.set(both);
    }
  }
};

}  // namespace test
