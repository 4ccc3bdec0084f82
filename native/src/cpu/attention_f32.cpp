#include <cmath>
#include <limits>

#include "cpu/attention_head.h"
#include "cpu/exp.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

// A sample's keys, values and queries are widened to f32 once; then tiles of 64 x 64 scores are made, used and forgotten, and
// tiles above the diagonal are not visited.

namespace pnb::cpu {

namespace {

inline __attribute__((always_inline)) void load_row(const Head& s, int64_t row, float* d, int64_t count, int64_t padded) {
  const char* start = s.row(row);
  if (s.dtype == PNB_DTYPE_F32) {
    std::memcpy(d, start, count * sizeof(float));
  } else {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(start);
    for (int64_t i = 0; i < count; ++i) d[i] = bf16_to_float(values[i]);
  }
  for (int64_t i = count; i < padded; ++i) d[i] = 0.0f;
}

// Rows [0, rows) as [padded rows, padded]; the padding is zero.
inline __attribute__((always_inline)) void load(const Head& s, int64_t rows, float* d, int64_t dim, int64_t padded) {
  for (int64_t i = 0; i < rows; ++i) load_row(s, i, d + i * padded, dim, padded);
  int64_t end = round_up(rows, kTile);
  std::memset(d + rows * padded, 0, (end - rows) * padded * sizeof(float));
}

// A tile [kTile, padded] as [padded, kTile].
inline __attribute__((always_inline)) void transpose(const float* s, float* d, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kLanes) {
    for (int64_t j = 0; j < kTile; ++j) {
      for (int64_t k = i; k < i + kLanes; ++k) d[k * kTile + j] = s[j * padded + k];
    }
  }
}

// Whether no element is NaN or infinite.
inline __attribute__((always_inline)) bool all_finite(const float* values, int64_t count) {
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= (to_bits(values[i]) & 0x7f800000u) == 0x7f800000u;
  return found == 0;
}

int64_t tile_rows_of(int64_t longest) { return round_up(std::max<int64_t>(longest, 1), kTile); }

// Cuts pieces off a buffer.
struct Cutter {
  float* next;

  float* take(int64_t count) {
    float* taken = next;
    next += count;
    return taken;
  }
};

struct ForwardBuffers {
  float *keys, *values;         // [key tiles][padded, kTile]; [keys, padded]
  float *query, *out, *scores;  // [kTile, padded], [kTile, padded], [kTile, kTile]

  static uint64_t bytes(int64_t longest, int64_t dim) {
    int64_t padded = round_up(dim, kLanes);
    return (2 * tile_rows_of(longest) * padded + 2 * kTile * padded + kTile * kTile) * sizeof(float);
  }

  ForwardBuffers(void* start, int64_t longest, int64_t padded) {
    Cutter cutter{static_cast<float*>(start)};
    keys = cutter.take(tile_rows_of(longest) * padded);
    values = cutter.take(tile_rows_of(longest) * padded);
    query = cutter.take(kTile * padded);
    out = cutter.take(kTile * padded);
    scores = cutter.take(kTile * kTile);
  }
};

PNB_MULTIVERSION void forward_head(const ForwardHead& h, const HeadSizes& s, const HeadLists& lists, float scale, int64_t padded,
                                   const ForwardBuffers& buffers) {
  float* values = buffers.values;
  float* scores = buffers.scores;
  float* out = buffers.out;
  float* query = buffers.query;
  // Keys are widened where the values go next, then turned tile by tile.
  load(h.k, s.keys, values, s.dim, padded);
  for (int64_t key = 0; key < s.keys; key += kTile) transpose(values + key * padded, buffers.keys + key * padded, padded);
  load(h.v, s.keys, values, s.dim, padded);
  bool finite = all_finite(values, s.keys * padded);

  for (int64_t first = 0; first < s.queries; first += kTile) {
    int64_t rows = std::min(kTile, s.queries - first);
    int64_t used = round_up(rows, 4);
    for (int64_t i = 0; i < used; ++i) {
      float* row = query + i * padded;
      if (i < rows) {
        load_row(h.q, first + i, row, s.dim, padded);
        for (int64_t d = 0; d < padded; ++d) row[d] *= scale;
      } else {
        std::memset(row, 0, padded * sizeof(float));
      }
    }
    float maximum[kTile];
    float sum[kTile];
    std::fill_n(maximum, kTile, -std::numeric_limits<float>::infinity());
    std::fill_n(sum, kTile, 0.0f);
    std::memset(out, 0, used * padded * sizeof(float));

    for (TileWalk tiles = lists.walk(first, 0, s.seen_by(first + rows - 1)); !tiles.done(); tiles.next()) {
      int64_t key = tiles.row();
      tile_product(scores, kTile, query, padded, 1, buffers.keys + key * padded, kTile, used, kTile, s.dim, false);
      for (int64_t i = 0; i < used; ++i) {
        float* row = scores + i * kTile;
        int64_t seen = i < rows ? s.visible(first + i, key) : 0;
        if (seen == 0) {
          std::memset(row, 0, kTile * sizeof(float));
          continue;
        }
        float highest = maximum[i];
        for (int64_t j = 0; j < seen; ++j) highest = row[j] > highest ? row[j] : highest;
        float correction = maximum[i] == highest ? 1.0f : exp_not_positive(maximum[i] - highest);
        Vector lanes{};
        int64_t j = 0;
        for (; j + kLanes <= seen; j += kLanes) {
          for (int64_t lane = 0; lane < kLanes; ++lane) row[j + lane] = exp_not_positive(row[j + lane] - highest);
          lanes += *reinterpret_cast<const Vector*>(row + j);
        }
        float total = 0.0f;
        for (; j < seen; ++j) {
          row[j] = exp_not_positive(row[j] - highest);
          total += row[j];
        }
        for (; j < kTile; ++j) row[j] = 0.0f;
        for (int lane = 0; lane < kLanes; ++lane) total += lanes[lane];
        sum[i] = sum[i] * correction + total;
        maximum[i] = highest;
        if (correction != 1.0f) {
          for (int64_t d = 0; d < padded; ++d) out[i * padded + d] *= correction;
        }
      }
      int64_t depth = s.visible(first + rows - 1, key);
      if (finite) {
        tile_product(out, padded, scores, kTile, 1, values + key * padded, padded, used, padded, depth, true);
        continue;
      }
      // The probability of a key that a query does not see is 0, and 0 * NaN is not: such products are left out.
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < s.visible(first + i, key); ++j) {
          for (int64_t d = 0; d < padded; ++d) out[i * padded + d] += scores[i * kTile + j] * values[(key + j) * padded + d];
        }
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      bool blind = sum[i] == 0.0f;  // a key that is seen adds more than 0, or NaN
      float inverse = blind ? 0.0f : 1.0f / sum[i];
      for (int64_t d = 0; d < padded; ++d) out[i * padded + d] *= inverse;
      store_row(out + i * padded, h.o, first + i, s.dim);
      if (h.lse != nullptr) h.lse[first + i] = blind ? 0.0f : maximum[i] + std::log(sum[i]);
    }
  }
}

struct BackwardBuffers {
  float *query, *d_out, *d_query, *delta;  // [rows, padded] x 3, [rows]
  float *key, *key_t, *value_t, *d_key, *d_value;  // [kTile, padded] or its transpose
  float *scores, *d_scores;  // [kTile, kTile]

  static uint64_t bytes(int64_t longest, int64_t dim) {
    int64_t padded = round_up(dim, kLanes);
    int64_t rows = tile_rows_of(longest);
    return (3 * rows * padded + rows + 5 * kTile * padded + 2 * kTile * kTile) * sizeof(float);
  }

  BackwardBuffers(void* start, int64_t longest, int64_t padded) {
    int64_t rows = tile_rows_of(longest);
    Cutter cutter{static_cast<float*>(start)};
    query = cutter.take(rows * padded);
    d_out = cutter.take(rows * padded);
    d_query = cutter.take(rows * padded);
    delta = cutter.take(rows);
    key = cutter.take(kTile * padded);
    key_t = cutter.take(kTile * padded);
    value_t = cutter.take(kTile * padded);
    d_key = cutter.take(kTile * padded);
    d_value = cutter.take(kTile * padded);
    scores = cutter.take(kTile * kTile);
    d_scores = cutter.take(kTile * kTile);
  }
};

// A tile of keys, as it is and turned, and one of values, turned.
inline __attribute__((always_inline)) void load_key_tile(const BackwardHead& h, int64_t key, int64_t keys, int64_t dim,
                                                         int64_t padded, const BackwardBuffers& b) {
  Head tile = h.k;
  tile.data += key * tile.row_bytes;
  load(tile, keys, b.key, dim, padded);
  transpose(b.key, b.key_t, padded);
  tile = h.v;
  tile.data += key * tile.row_bytes;
  load(tile, keys, b.d_value, dim, padded);
  transpose(b.d_value, b.value_t, padded);
}

// As the bf16 kernel's: of operands in bf16 the sum of p * (d_o . v) is not d_o . o, whose o is rounded.
PNB_MULTIVERSION void exact_deltas(const BackwardHead& h, const HeadSizes& s, float scale, int64_t padded,
                                   const BackwardBuffers& b) {
  int64_t n = s.queries;
  std::fill_n(b.delta, n, 0.0f);
  for (int64_t key = 0; key < n; key += kTile) {
    load_key_tile(h, key, std::min(kTile, n - key), s.dim, padded, b);
    for (int64_t first = key; first < n; first += kTile) {
      int64_t rows = std::min(kTile, n - first);
      int64_t used = round_up(rows, 4);
      tile_product(b.scores, kTile, b.query + first * padded, padded, 1, b.key_t, kTile, used, kTile, s.dim, false);
      tile_product(b.d_scores, kTile, b.d_out + first * padded, padded, 1, b.value_t, kTile, used, kTile, s.dim, false);
      for (int64_t i = 0; i < rows; ++i) {
        float sum = 0.0f;
        for (int64_t j = 0; j < s.visible(first + i, key); ++j) {
          float score = b.scores[i * kTile + j] * scale - h.lse[first + i];
          sum += exp_not_positive(score > 0.0f ? 0.0f : score) * b.d_scores[i * kTile + j];
        }
        b.delta[first + i] += sum;
      }
    }
  }
}

PNB_MULTIVERSION void backward_head(const BackwardHead& h, const HeadSizes& s, const HeadLists& lists, float scale, int64_t padded,
                                    const BackwardBuffers& b) {
  int64_t n = s.queries;
  bool wants_d_key = h.dk.data != nullptr;
  load(h.q, n, b.query, s.dim, padded);
  load(h.d_o, n, b.d_out, s.dim, padded);
  std::memset(b.d_query, 0, round_up(n, kTile) * padded * sizeof(float));
  if (h.o.dtype == PNB_DTYPE_BF16 && lists.indices == nullptr) {
    exact_deltas(h, s, scale, padded, b);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      load_row(h.o, i, b.key, s.dim, padded);
      float sum = 0.0f;
      for (int64_t d = 0; d < s.dim; ++d) sum += b.key[d] * b.d_out[i * padded + d];
      b.delta[i] = sum;
    }
  }
  for (int64_t key = 0; key < n; key += kTile) {
    int64_t keys = std::min(kTile, n - key);
    load_key_tile(h, key, keys, s.dim, padded, b);
    std::memset(b.d_key, 0, kTile * padded * sizeof(float));
    std::memset(b.d_value, 0, kTile * padded * sizeof(float));

    for (TileWalk tiles = lists.walk(key, key, n); !tiles.done(); tiles.next()) {
      int64_t first = tiles.row();
      int64_t rows = std::min(kTile, n - first);
      int64_t used = round_up(rows, 4);
      const float* query = b.query + first * padded;
      const float* d_out = b.d_out + first * padded;
      tile_product(b.scores, kTile, query, padded, 1, b.key_t, kTile, used, kTile, s.dim, false);
      tile_product(b.d_scores, kTile, d_out, padded, 1, b.value_t, kTile, used, kTile, s.dim, false);
      for (int64_t i = 0; i < used; ++i) {
        float* p = b.scores + i * kTile;
        float* ds = b.d_scores + i * kTile;
        int64_t seen = i < rows ? s.visible(first + i, key) : 0;
        float lse = i < rows ? h.lse[first + i] : 0.0f;
        float delta = i < rows ? b.delta[first + i] : 0.0f;
        for (int64_t j = 0; j < kTile; ++j) {
          float score = p[j] * scale - lse;
          float probability = exp_not_positive(score > 0.0f ? 0.0f : score);
          p[j] = j < seen ? probability : 0.0f;
          ds[j] = p[j] * (ds[j] - delta) * scale;
        }
      }
      // The transposes are read through exchanged strides.
      tile_product(b.d_value, padded, b.scores, 1, kTile, d_out, padded, kTile, padded, rows, true);
      if (wants_d_key) tile_product(b.d_key, padded, b.d_scores, 1, kTile, query, padded, kTile, padded, rows, true);
      tile_product(b.d_query + first * padded, padded, b.d_scores, kTile, 1, b.key, padded, used, padded, keys, true);
    }
    for (int64_t j = 0; j < keys; ++j) {
      if (wants_d_key) store_row(b.d_key + j * padded, h.dk, key + j, s.dim);
      store_row(b.d_value + j * padded, h.dv, key + j, s.dim);
    }
  }
  for (int64_t i = 0; i < n; ++i) store_row(b.d_query + i * padded, h.dq, i, s.dim);
}

struct MassBuffers {
  float *keys, *tile;      // [key tiles][padded, kTile]; [kTile, padded]
  float *query, *scores;   // [kTile, padded], [kTile, kTile]

  static uint64_t bytes(int64_t longest, int64_t dim) {
    int64_t padded = round_up(dim, kLanes);
    return (tile_rows_of(longest) * padded + 2 * kTile * padded + kTile * kTile) * sizeof(float);
  }

  MassBuffers(void* start, int64_t longest, int64_t padded) {
    Cutter cutter{static_cast<float*>(start)};
    keys = cutter.take(tile_rows_of(longest) * padded);
    tile = cutter.take(kTile * padded);
    query = cutter.take(kTile * padded);
    scores = cutter.take(kTile * kTile);
  }
};

PNB_MULTIVERSION void mass_head(const MassHead& h, const HeadSizes& s, float scale, int64_t padded, const MassBuffers& b) {
  for (int64_t key = 0; key < s.keys; key += kTile) {
    Head tile = h.k;
    tile.data += key * tile.row_bytes;
    load(tile, std::min(kTile, s.keys - key), b.tile, s.dim, padded);
    transpose(b.tile, b.keys + key * padded, padded);
  }
  for (int64_t next = 0; next < s.queries;) {
    // A tile's worth of the sampled queries of one block.
    int64_t block = next / h.block_rows, end = std::min((block + 1) * h.block_rows, s.queries), count = 0;
    int64_t rows[kTile];
    for (; next < end && count < kTile; ++next) {
      if (!h.sampled(next, s.queries)) continue;
      load_row(h.q, next, b.query + count * padded, s.dim, padded);
      rows[count++] = next;
    }
    if (count == 0) continue;
    int64_t used = round_up(count, 4);
    std::memset(b.query + count * padded, 0, (used - count) * padded * sizeof(float));
    for (int64_t key = 0; key <= rows[count - 1]; key += kTile) {
      tile_product(b.scores, kTile, b.query, padded, 1, b.keys + key * padded, kTile, used, kTile, s.dim, false);
      Vector lanes{};
      for (int64_t i = 0; i < count; ++i) {
        float* row = b.scores + i * kTile;
        float lse = h.lse[rows[i]];
        int64_t seen = s.visible(rows[i], key);
        for (int64_t j = 0; j < kTile; ++j) {
          float score = row[j] * scale - lse;
          float probability = exp_not_positive(score > 0.0f ? 0.0f : score);
          row[j] = j < seen ? probability : 0.0f;
        }
        for (int64_t j = 0; j < kTile; j += kLanes) lanes += *reinterpret_cast<const Vector*>(row + j);
      }
      h.mass[block * h.width + key / h.block_rows] += lane_sum(lanes);
    }
  }
}

}  // namespace

const HeadKernels& f32_heads() {
  static const HeadKernels kernels{
      ForwardBuffers::bytes,
      [](const ForwardHead& h, const HeadSizes& sizes, const HeadLists& lists, float scale, int64_t longest, void* buffer) {
        int64_t padded = round_up(sizes.dim, kLanes);
        forward_head(h, sizes, lists, scale, padded, ForwardBuffers(buffer, longest, padded));
      },
      false,
      BackwardBuffers::bytes,
      [](const BackwardHead& h, const HeadSizes& sizes, const HeadLists& lists, float scale, int64_t longest, void* buffer) {
        int64_t padded = round_up(sizes.dim, kLanes);
        backward_head(h, sizes, lists, scale, padded, BackwardBuffers(buffer, longest, padded));
      },
      MassBuffers::bytes,
      [](const MassHead& h, const HeadSizes& sizes, float scale, int64_t longest, void* buffer) {
        int64_t padded = round_up(sizes.dim, kLanes);
        mass_head(h, sizes, scale, padded, MassBuffers(buffer, longest, padded));
      }};
  return kernels;
}

}  // namespace pnb::cpu
