#include "cpu/select_attention.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/tensor.h"
#include "cpu/attention_lists.h"
#include "penumbra/sparse.h"

// One task is one head of one sample. Its blocks that have a mass and may be left out are sorted as whole numbers: the mass's
// bits, complemented, above the block's place, so that the order among equal masses needs no comparison of its own.

namespace pnb::cpu {

namespace {

int32_t* ints(const pnb_tensor& t) { return static_cast<int32_t*>(t.data); }
const float* floats(const pnb_tensor& t) { return static_cast<const float*>(t.data); }

// What a task finds, for the summary.
struct Found {
  double covered, all;
  int64_t kept, possible;
  int64_t cut;
};

struct Masses {
  const float* first;  // of query block 0
  int64_t row;

  // 0 for what is not a mass.
  float at(int64_t i, int64_t j) const {
    float mass = first[i * row + j];
    return mass > 0 ? mass : 0.0f;  // false for NaN
  }
};

Found choose(const Masses& masses, int64_t n, float coverage, float budget, uint64_t* sorted, uint8_t* kept) {
  Found found{0, 0, 0, n * (n + 1) / 2, 0};
  std::memset(kept, 0, n * n);
  uint64_t* end = sorted;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      float mass = masses.at(i, j);
      found.all += mass;
      if (j == 0 || j == i) {
        kept[i * n + j] = 1;
        found.covered += mass;
        ++found.kept;
      } else if (mass > 0) {
        uint32_t bits;
        std::memcpy(&bits, &mass, sizeof bits);
        *end++ = static_cast<uint64_t>(~bits) << 32 | static_cast<uint32_t>(i * n + j);
      }
    }
  }
  std::sort(sorted, end);
  // In f32, as every backend multiplies: of ten blocks 0.7 are seven.
  int64_t most = std::max(static_cast<int64_t>(budget * static_cast<float>(found.possible)), found.kept);
  // Where all is wanted the sum is not asked: small masses may not move it.
  auto enough = [&] { return coverage < 1.0f && found.covered >= coverage * found.all; };
  for (; sorted != end && !enough(); ++sorted) {
    if (found.kept == most) {
      found.cut = 1;
      break;
    }
    uint32_t place = static_cast<uint32_t>(*sorted);
    kept[place] = 1;
    found.covered += masses.at(place / n, place % n);
    ++found.kept;
  }
  return found;
}

// Slots of no block are left at 0.
void write_lists(const pnb_attention_blocks& blocks, int64_t slot, int64_t n, const uint8_t* kept) {
  int64_t width = blocks.indices.shape[2];
  int32_t* t_counts = ints(blocks.t_counts) + slot;
  for (int64_t i = 0; i < n; ++i) {
    int32_t* list = ints(blocks.indices) + (slot + i) * width;
    int32_t count = 0;
    for (int64_t j = 0; j <= i; ++j) {
      if (!kept[i * n + j]) continue;
      list[count++] = static_cast<int32_t>(j);
      ints(blocks.t_indices)[(slot + j) * width + t_counts[j]++] = static_cast<int32_t>(i);
    }
    ints(blocks.counts)[slot + i] = count;
  }
}

// Every block's place by falling count, of equal ones by rising place, then -1.
void write_order(const int32_t* counts, int64_t heads, int64_t slots, const int32_t* cu, int64_t samples, int64_t size,
                 int64_t width, int64_t* next, int32_t* order) {
  auto each = [&](auto&& visit) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t sample = 0; sample < samples; ++sample) {
        SampleBlocks own(cu, sample, size);
        for (int64_t block = 0; block < own.count; ++block) visit(head * slots + own.first_slot + block);
      }
    }
  };
  std::fill_n(next, width + 1, 0);
  each([&](int64_t place) { ++next[counts[place]]; });
  int64_t before = 0;
  for (int64_t count = width; count >= 0; --count) before += std::exchange(next[count], before);
  each([&](int64_t place) { order[next[counts[place]]++] = static_cast<int32_t>(place); });
  std::fill(order + before, order + heads * slots, -1);
}

}  // namespace

void select_attention(const pnb_select_attention_params& p, int threads, Scratch& scratch) {
  const pnb_attention_blocks& blocks = p.blocks;
  int64_t heads = blocks.indices.shape[0], slots = blocks.indices.shape[1], width = blocks.indices.shape[2];
  int64_t samples = p.cu_seqlens.shape[0] - 1;
  const int32_t* cu = borders("select_attention", "cu_seqlens", p.cu_seqlens, p.tokens, p.max_seqlen);
  for (int64_t head = 0; present(p.budgets) && head < heads; ++head) {
    float budget = floats(p.budgets)[head];
    if (!(budget > 0 && budget <= 1)) {
      fail(PNB_ERROR_INVALID_ARGUMENT, "select_attention: expected budgets above 0, at most 1, found %g at head %lld",
           static_cast<double>(budget), static_cast<long long>(head));
    }
  }
  std::fill_n(ints(blocks.counts), heads * slots, 0);
  std::fill_n(ints(blocks.t_counts), heads * slots, 0);

  int64_t most = (std::min(p.max_seqlen, p.tokens) + blocks.size - 1) / blocks.size;  // blocks of a sample
  uint64_t sort_bytes = most * (most + 1) / 2 * sizeof(uint64_t);
  uint64_t thread_bytes = (sort_bytes + most * most + 63) / 64 * 64;
  uint64_t shared_bytes = heads * samples * sizeof(Found) + (width + 1) * sizeof(int64_t);
  char* threads_own = static_cast<char*>(scratch.bytes(thread_bytes * threads + shared_bytes));
  Found* found = reinterpret_cast<Found*>(threads_own + thread_bytes * threads);
  int64_t* next = reinterpret_cast<int64_t*>(found + heads * samples);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < samples * heads; ++task) {
    int64_t head = task % heads;
    SampleBlocks own(cu, task / heads, blocks.size);
    int64_t slot = head * slots + own.first_slot;
    char* buffer = threads_own + omp_get_thread_num() * thread_bytes;
    uint8_t* kept = reinterpret_cast<uint8_t*>(buffer + sort_bytes);
    Masses masses{present(p.mass) ? floats(p.mass) + slot * width : floats(p.table) + head * width * width, width};
    float budget = present(p.budgets) ? floats(p.budgets)[head] : 1.0f;
    found[task] = choose(masses, own.count, p.coverage, budget, reinterpret_cast<uint64_t*>(buffer), kept);
    write_lists(blocks, slot, own.count, kept);
  }
  for (int side = 0; side < 2; ++side) {
    write_order(ints(side == 0 ? blocks.counts : blocks.t_counts), heads, slots, cu, samples, blocks.size, width, next,
                ints(blocks.order) + side * heads * slots);
  }
  if (!present(p.summary)) return;
  Found sum{};
  int64_t lists = 0;
  for (int64_t task = 0; task < samples * heads; ++task) {
    sum.kept += found[task].kept;
    sum.possible += found[task].possible;
    sum.covered += found[task].covered;
    sum.all += found[task].all;
    sum.cut += found[task].cut;
    lists += found[task].possible > 0;  // an empty sample has no list
  }
  float* summary = static_cast<float*>(p.summary.data);
  summary[PNB_SUMMARY_KEPT] = static_cast<float>(static_cast<double>(sum.kept) /
                                                 static_cast<double>(std::max<int64_t>(sum.possible, 1)));
  summary[PNB_SUMMARY_COVERED] = sum.all == 0 ? 1.0f : static_cast<float>(sum.covered / sum.all);
  summary[PNB_SUMMARY_CUT] = static_cast<float>(static_cast<double>(sum.cut) / static_cast<double>(std::max<int64_t>(lists, 1)));
}

}  // namespace pnb::cpu
