#include "cpu/select_blocks.h"

#include <algorithm>
#include <vector>

#include "core/tensor.h"

namespace pnb::cpu {

void select_blocks(const pnb_select_blocks_params& p) {
  int64_t lists = p.scores.shape[0], blocks = p.scores.shape[1];
  int64_t capacity = p.blocks.indices.shape[1];
  int64_t kept = 0, cut = 0;
  double covered = 0, all = 0;
  std::vector<int32_t> order(blocks);
  for (int64_t list = 0; list < lists; ++list) {
    const float* scores = static_cast<const float*>(p.scores.data) + list * p.scores.stride[0];
    order.clear();
    for (int64_t b = 0; b < blocks; ++b) {
      if (scores[b] > 0) order.push_back(static_cast<int32_t>(b));  // false for NaN
    }
    std::sort(order.begin(), order.end(),
              [&](int32_t x, int32_t y) { return scores[x] > scores[y] || (scores[x] == scores[y] && x < y); });
    float total = 0;
    for (int32_t b : order) total += scores[b];
    // The sum of a part is taken in the order of the whole. Where all is wanted it is not asked: small scores may not move it.
    bool everything = p.coverage == 1.0f;
    float sum = 0, fits = 0;
    int64_t wanted = 0;
    while (wanted < static_cast<int64_t>(order.size()) && (everything || sum < p.coverage * total)) {
      sum += scores[order[wanted++]];
      if (wanted <= capacity) fits = sum;
    }
    int64_t count = std::min(wanted, capacity);
    int32_t* indices = static_cast<int32_t*>(p.blocks.indices.data) + list * p.blocks.indices.stride[0];
    std::copy_n(order.begin(), count, indices);
    std::sort(indices, indices + count);
    static_cast<int32_t*>(p.blocks.counts.data)[list] = static_cast<int32_t>(count);
    kept += count;
    cut += wanted > capacity;
    covered += fits;
    all += total;
  }
  if (!present(p.summary)) return;
  float* summary = static_cast<float*>(p.summary.data);
  summary[PNB_SUMMARY_KEPT] = static_cast<float>(static_cast<double>(kept) /
                                                 static_cast<double>(std::max<int64_t>(lists * blocks, 1)));
  summary[PNB_SUMMARY_COVERED] = all == 0 ? 1.0f : static_cast<float>(covered / all);
  summary[PNB_SUMMARY_CUT] = static_cast<float>(static_cast<double>(cut) / static_cast<double>(std::max<int64_t>(lists, 1)));
}

}  // namespace pnb::cpu
