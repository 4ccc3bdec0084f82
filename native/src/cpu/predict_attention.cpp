#include "cpu/predict_attention.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/tensor.h"
#include "cpu/attention_lists.h"
#include "cpu/bf16.h"
#include "cpu/exp.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

// One task is one head: it projects all pooled rows to its queries and keys, then goes through the samples, four pooled rows'
// scores at a time.

namespace pnb::cpu {

namespace {

constexpr int64_t kRows = 4;     // rows of a product that are computed together
constexpr int64_t kDepth = 256;  // of the hidden dimension that is widened together: with 64 dimensions of a head 64 KB

struct Sizes {
  int64_t rows, hidden, r;
  int64_t row_end;   // rows, filled up to whole products
  int64_t r_padded;  // whole vectors
  int64_t columns;   // of scores: rows, and a vector more, so that vectors may begin at any row

  explicit Sizes(const pnb_predict_attention_params& p)
      : rows(p.pooled.shape[0]),
        hidden(p.pooled.shape[1]),
        r(p.a.shape[2]),
        row_end(round_up(rows, kRows)),
        r_padded(round_up(r, kLanes)),
        columns(round_up(rows, kLanes) + kLanes) {}
};

// A task's memory.
struct Buffers {
  float *query, *key;      // [row_end, r_padded]
  float* key_t;            // [r_padded, columns]
  float* scores;           // [kRows, columns]
  float *weights, *rest;   // a piece of the projection, turned: [kDepth, r_padded]; the last rows: [kRows, kDepth]
  int32_t* blocks;         // [columns]: the block of each pooled row in its sample

  static uint64_t bytes(const Sizes& s) {
    uint64_t floats = 2 * s.row_end * s.r_padded + s.r_padded * s.columns + kRows * s.columns + kDepth * s.r_padded +
                      kRows * kDepth + s.columns;
    return (floats * sizeof(float) + 63) / 64 * 64;
  }

  Buffers(void* start, const Sizes& s) {
    float* next = static_cast<float*>(start);
    auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
    query = take(s.row_end * s.r_padded);
    key = take(s.row_end * s.r_padded);
    key_t = take(s.r_padded * s.columns);
    scores = take(kRows * s.columns);
    weights = take(kDepth * s.r_padded);
    rest = take(kRows * kDepth);
    blocks = reinterpret_cast<int32_t*>(take(s.columns));
  }
};

// z = pooled a^T + bias of one head.
PNB_MULTIVERSION void project(const pnb_tensor& pooled, const uint16_t* a, const float* bias, const Sizes& s, const Buffers& b,
                              float* z) {
  const float* rows = static_cast<const float*>(pooled.data);
  int64_t stride = pooled.stride[0], whole = s.rows / kRows * kRows;
  for (int64_t i = 0; i < s.row_end; ++i) {
    for (int64_t k = 0; k < s.r_padded; ++k) z[i * s.r_padded + k] = k < s.r ? bias[k] : 0.0f;
  }
  std::memset(b.weights, 0, kDepth * s.r_padded * sizeof(float));
  std::memset(b.rest, 0, kRows * kDepth * sizeof(float));
  for (int64_t first = 0; first < s.hidden; first += kDepth) {
    int64_t depth = std::min(kDepth, s.hidden - first);
    for (int64_t k = 0; k < s.r; ++k) {
      for (int64_t j = 0; j < depth; ++j) b.weights[j * s.r_padded + k] = bf16_to_float(a[k * s.hidden + first + j]);
    }
    tile_product(z, s.r_padded, rows + first, stride, 1, b.weights, s.r_padded, whole, s.r_padded, depth, true);
    if (whole == s.rows) continue;
    for (int64_t i = whole; i < s.rows; ++i) {
      std::memcpy(b.rest + (i - whole) * kDepth, rows + i * stride + first, depth * sizeof(float));
    }
    tile_product(z + whole * s.r_padded, s.r_padded, b.rest, kDepth, 1, b.weights, s.r_padded, kRows, s.r_padded, depth, true);
  }
}

PNB_MULTIVERSION void turn(const Sizes& s, const Buffers& b) {
  for (int64_t k = 0; k < s.r_padded; ++k) {
    for (int64_t i = 0; i < s.columns; ++i) b.key_t[k * s.columns + i] = i < s.rows ? b.key[i * s.r_padded + k] : 0.0f;
  }
}

// Pooled rows [first, end) of one sample; mass is that of its first block.
PNB_MULTIVERSION void sample_mass(int64_t first, int64_t end, const float* distance, float pool_rows, const Sizes& s,
                                  const Buffers& b, int64_t width, float* mass) {
  for (int64_t group = first; group < end; group += kRows) {
    int64_t rows = std::min(kRows, end - group);
    // Queries past the last row belong to another sample or fill up the product; their scores are not used.
    int64_t from = std::min(group, s.row_end - kRows);
    tile_product(b.scores, s.columns, b.query + from * s.r_padded, s.r_padded, 1, b.key_t + first, s.columns, kRows,
                 round_up(group + rows - first, kLanes), s.r, false);
    for (int64_t i = 0; i < rows; ++i) {
      int64_t g = group + i, count = g - first + 1;
      float* score = b.scores + (g - from) * s.columns;
      const int32_t* blocks = b.blocks + first;
      float top = -std::numeric_limits<float>::infinity(), sum = 0.0f;
      for (int64_t j = 0; j < count; ++j) {
        score[j] += distance[b.blocks[g] - blocks[j]];
        top = score[j] > top ? score[j] : top;
      }
      for (int64_t j = 0; j < count; ++j) score[j] = exp_not_positive(score[j] - top);
      for (int64_t j = 0; j < count; ++j) sum += score[j];
      float* row = mass + b.blocks[g] * width;
      for (int64_t j = 0; j < count; ++j) row[blocks[j]] += score[j] * (pool_rows / sum);
      // The last row also stands for a last block that has none.
      if (g + 1 == end && b.blocks[end] > b.blocks[g]) {
        for (int64_t j = 0; j < count; ++j) row[width + blocks[j]] += score[j] * (pool_rows / sum);
      }
    }
  }
}

}  // namespace

uint64_t predict_attention_workspace(const pnb_predict_attention_params& p, int threads) {
  return Buffers::bytes(Sizes(p)) * threads;
}

void predict_attention(const pnb_predict_attention_params& p, int threads) {
  int64_t heads = p.a.shape[1], samples = p.cu_seqlens.shape[0] - 1, slots = p.mass.shape[1], width = p.mass.shape[2];
  const int32_t* cu = borders("predict_attention", "cu_seqlens", p.cu_seqlens, p.tokens, p.max_seqlen);
  Sizes s(p);
  uint64_t bytes = Buffers::bytes(s);
  std::fill_n(static_cast<float*>(p.mass.data), element_count(p.mass), 0.0f);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t head = 0; head < heads; ++head) {
    Buffers b(static_cast<char*>(p.workspace.data) + omp_get_thread_num() * bytes, s);
    for (int part = 0; part < 2; ++part) {
      int64_t place = (part * heads + head) * s.r;
      project(p.pooled, static_cast<const uint16_t*>(p.a.data) + place * s.hidden, static_cast<const float*>(p.bias.data) + place,
              s, b, part == 0 ? b.query : b.key);
    }
    turn(s, b);
    for (int64_t sample = 0; sample < samples; ++sample) {
      // Rows whose middle lies in the sample.
      auto first_at = [&](int64_t token) {
        return std::min((std::max<int64_t>(token - p.pool_rows / 2, 0) + p.pool_rows - 1) / p.pool_rows, s.rows);
      };
      int64_t first = first_at(cu[sample]), end = first_at(cu[sample + 1]);
      if (first == end) continue;
      for (int64_t g = first; g < end; ++g) {
        b.blocks[g] = static_cast<int32_t>((g * p.pool_rows + p.pool_rows / 2 - cu[sample]) / p.size);
      }
      SampleBlocks own(cu, sample, p.size);
      b.blocks[end] = static_cast<int32_t>(own.count - 1);
      sample_mass(first, end, static_cast<const float*>(p.distance.data) + head * width, static_cast<float>(p.pool_rows), s, b,
                  width, static_cast<float*>(p.mass.data) + (head * slots + own.first_slot) * width);
    }
  }
}

}  // namespace pnb::cpu
