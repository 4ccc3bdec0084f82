// Lists of blocks and packed weights for the tests of what reads them.
#pragma once

#include <algorithm>
#include <numeric>

#include "harness.h"

namespace test {

// Lists of random blocks. What follows a list's count is poisoned.
struct Blocks {
  int64_t size, neurons, capacity, rows_per_list;
  std::vector<std::vector<int32_t>> lists;
  Tensor indices, counts;

  // wanted: the blocks of each list.
  Blocks(int64_t size, int64_t neurons, int64_t capacity, int64_t rows_per_list, std::vector<int32_t> wanted)
      : size(size), neurons(neurons), capacity(capacity), rows_per_list(rows_per_list), counts(ints(wanted)) {
    std::vector<int32_t> flat;
    for (int32_t count : wanted) {
      std::vector<int32_t> all(neurons / size);
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), generator());
      all.resize(count);
      std::sort(all.begin(), all.end());
      lists.push_back(all);
      all.resize(capacity, 0x7f7f7f7f);
      flat.insert(flat.end(), all.begin(), all.end());
    }
    indices = ints(flat);
  }

  pnb_block_list list() const {
    int64_t count = static_cast<int64_t>(lists.size());
    pnb_block_list list{};
    list.indices = {const_cast<char*>(indices.bytes.data()), PNB_DTYPE_I32, 2, {count, capacity}, {capacity, 1}};
    list.counts = {const_cast<char*>(counts.bytes.data()), PNB_DTYPE_I32, 1, {count}, {1}};
    list.size = static_cast<int32_t>(size);
    list.rows_per_list = rows_per_list;
    return list;
  }

  int64_t width() const { return capacity * size; }

  // The neuron behind each compact column of a row that is in use.
  std::vector<int64_t> of_row(int64_t row) const {
    std::vector<int64_t> result;
    for (int32_t block : lists[row / rows_per_list]) {
      for (int64_t j = 0; j < size; ++j) result.push_back(block * size + j);
    }
    return result;
  }

  std::string text() const {
    std::string text = std::string(" blocks of ") + std::to_string(size) + " in " + std::to_string(neurons) +
                       " neurons, room for " + std::to_string(capacity) + ", " + std::to_string(rows_per_list) +
                       " rows a list, counts";
    for (const auto& list : lists) (text += ' ') += std::to_string(list.size());
    return text;
  }
};

// A compact matrix [m, width] whose rows have gaps; columns that no list fills are NaN.
struct Compact {
  Tensor tensor;
  pnb_tensor t;

  Compact(int32_t dtype, int64_t m, const Blocks& blocks, int64_t gap = 5) : tensor(dtype, {m, blocks.width() + gap}) {
    t = tensor.t;
    t.data = tensor.bytes.data();
    t.shape[1] = blocks.width();
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t c = static_cast<int64_t>(blocks.of_row(i).size()); c < t.stride[0]; ++c) tensor.set(i * t.stride[0] + c, NAN);
    }
  }
  Compact(const Compact&) = delete;
  Compact& operator=(const Compact&) = delete;

  double at(int64_t i, int64_t c) const { return tensor.at(i * t.stride[0] + c); }

  // Its rows in their full width: 0 where a neuron is not listed.
  std::vector<double> spread(const Blocks& blocks) const {
    int64_t m = t.shape[0];
    std::vector<double> full(m * blocks.neurons);
    for (int64_t i = 0; i < m; ++i) {
      std::vector<int64_t> neurons = blocks.of_row(i);
      for (size_t c = 0; c < neurons.size(); ++c) full[i * blocks.neurons + neurons[c]] = at(i, static_cast<int64_t>(c));
    }
    return full;
  }
};

// A weight W [out, in], packed for both uses.
struct Packed {
  Tensor w;
  std::vector<char> storage;
  pnb_weight* weight = nullptr;

  Packed(pnb_context* context, int32_t dtype, int64_t out, int64_t in, double scale = 1.0) : w(dtype, {out, in}, scale) {
    pack(context);
  }
  Packed(pnb_context* context, const Tensor& values) : w(values) {
    w.t.data = w.bytes.data();
    pack(context);
  }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  ~Packed() { pnb_weight_destroy(weight); }

 private:
  void pack(pnb_context* context) {
    auto p = params<pnb_weight_params>();
    p.dtype = w.t.dtype, p.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD, p.parts = &w.t, p.part_count = 1;
    ok(pnb_weight_storage(context, &p, &p.storage_bytes), "weight");
    storage.resize(p.storage_bytes + 256);
    p.storage = storage.data() + (256 - reinterpret_cast<uintptr_t>(storage.data()) % 256);
    ok(pnb_weight_create(context, &p, &weight), "weight");
  }
};

// Random counts of lists for m rows: the first ones are given.
inline std::vector<int32_t> counts_for(int64_t m, int64_t rows_per_list, int64_t capacity, std::vector<int32_t> first) {
  int64_t lists = (m + rows_per_list - 1) / rows_per_list;
  for (int64_t list = 0; list < lists; ++list) {
    if (list >= static_cast<int64_t>(first.size())) first.push_back(static_cast<int32_t>(generator()() % (capacity + 1)));
  }
  first.resize(lists);
  return first;
}

}  // namespace test
