#include <cmath>
#include <limits>

#include "cpu/attention_head.h"
#include "cpu/avx512_bf16.h"
#include "cpu/lanes.h"

// Every product is a vdpbf16ps: two bf16 pairs multiplied and added to an f32 sum, twice the rate of f32. Operands lie as pairs
// along the summed dimension, one pair a 32-bit word with the lower index in the lower half. Queries, keys, values and d_o are
// bf16 already; probabilities and score gradients are rounded to bf16 before they are multiplied.
//
// Four queries at a time make their scores against a tile of 64 keys, use them and forget them. A tile of keys and one of
// values, 8 KB each for 64 dimensions, stay in the first-level cache meanwhile. Above the diagonal nothing is computed, except
// to fill up a vector of 16 keys.

namespace pnb::cpu {

namespace {

constexpr int64_t kRows = 4;  // queries, or rows of a gradient, whose sums are in registers together: 4 x 4 of 32 registers

using Pair = uint32_t;

int64_t tile_rows_of(int64_t longest) { return round_up(std::max<int64_t>(longest, 1), kTile); }

// Words of a row of pairs: whole vectors, zero past the last dimension.
int64_t pair_row(int64_t dim) { return round_up((dim + 1) / 2, kLanes); }

// Cuts pieces off a buffer. Counts are 32-bit words.
struct Cutter {
  char* next;

  template <typename T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next);
    next += count * sizeof(T);
    return taken;
  }
};

// The lowest `count` bits; none below 0.
inline uint64_t below(int64_t count) { return count >= 64 ? ~0ull : count <= 0 ? 0ull : (1ull << count) - 1; }

// Columns [0, 16 * W) of four rows of c: = or += a * b. Pair k of row i lies at a[i * a_row + k * a_pair], pair k of column j at
// b[k * b_row + j].
template <int W>
PNB_AVX512_BF16 inline void four_rows(float* c, int64_t c_row, const Pair* a, int64_t a_row, int64_t a_pair, const Pair* b,
                                      int64_t b_row, int64_t pairs, bool add) {
  __m512 sum[kRows][W];
  for (int i = 0; i < kRows; ++i) {
    for (int w = 0; w < W; ++w) sum[i][w] = add ? _mm512_loadu_ps(c + i * c_row + w * kLanes) : _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < pairs; ++k) {
    __m512bh column[W];
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) column[w] = as_bf16(_mm512_loadu_si512(b + k * b_row + w * kLanes));
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      __m512bh row = as_bf16(_mm512_set1_epi32(static_cast<int>(a[i * a_row + k * a_pair])));
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) sum[i][w] = _mm512_dpbf16_ps(sum[i][w], row, column[w]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int w = 0; w < W; ++w) _mm512_storeu_ps(c + i * c_row + w * kLanes, sum[i][w]);
  }
}

// As above for any number of columns that is a multiple of 16.
PNB_AVX512_BF16 inline void product(float* c, int64_t c_row, const Pair* a, int64_t a_row, int64_t a_pair, const Pair* b,
                                    int64_t b_row, int64_t columns, int64_t pairs, bool add) {
  int64_t j = 0;
  for (; j + 4 * kLanes <= columns; j += 4 * kLanes) {
    four_rows<4>(c + j, c_row, a, a_row, a_pair, b + j, b_row, pairs, add);
  }
  switch ((columns - j) / kLanes) {
    case 3: four_rows<3>(c + j, c_row, a, a_row, a_pair, b + j, b_row, pairs, add); break;
    case 2: four_rows<2>(c + j, c_row, a, a_row, a_pair, b + j, b_row, pairs, add); break;
    case 1: four_rows<1>(c + j, c_row, a, a_row, a_pair, b + j, b_row, pairs, add); break;
    default: break;
  }
}

// Rows [first, first + rows) as pairs along the dimension, [kRows-rounded rows, pair_row]; rows past the end are zero.
PNB_AVX512_BF16 void load_rows(const Head& s, int64_t first, int64_t rows, int64_t dim, Pair* d) {
  int64_t width = pair_row(dim);
  std::memset(d, 0, round_up(rows, kRows) * width * sizeof(Pair));
  for (int64_t i = 0; i < rows; ++i) std::memcpy(d + i * width, s.row(first + i), dim * sizeof(uint16_t));
}

// The keys [first, first + rows) of a tile as pairs along the dimension, transposed: [pair_row, kTile]; missing keys are zero.
PNB_AVX512_BF16 void load_transposed(const Head& s, int64_t first, int64_t rows, int64_t dim, Pair* d) {
  for (int64_t i = 0; i < kTile; i += kLanes) {
    for (int64_t k = 0; k < dim; k += 2 * kLanes) {
      __mmask32 columns = static_cast<__mmask32>(below(dim - k));
      __m512i row[kLanes], other[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        row[j] = i + j < rows ? _mm512_maskz_loadu_epi16(columns, s.row(first + i + j) + k * sizeof(uint16_t))
                              : _mm512_setzero_si512();
      }
      // 16 x 16 words: single words, then pairs, then quarters of a vector change places, twice.
#pragma GCC unroll 8
      for (int j = 0; j < kLanes; j += 2) {
        other[j] = _mm512_unpacklo_epi32(row[j], row[j + 1]);
        other[j + 1] = _mm512_unpackhi_epi32(row[j], row[j + 1]);
      }
#pragma GCC unroll 4
      for (int j = 0; j < kLanes; j += 4) {
        row[j] = _mm512_unpacklo_epi64(other[j], other[j + 2]);
        row[j + 1] = _mm512_unpackhi_epi64(other[j], other[j + 2]);
        row[j + 2] = _mm512_unpacklo_epi64(other[j + 1], other[j + 3]);
        row[j + 3] = _mm512_unpackhi_epi64(other[j + 1], other[j + 3]);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        other[j] = _mm512_shuffle_i32x4(row[j], row[j + 4], 0x88);
        other[j + 4] = _mm512_shuffle_i32x4(row[j], row[j + 4], 0xdd);
        other[j + 8] = _mm512_shuffle_i32x4(row[j + 8], row[j + 12], 0x88);
        other[j + 12] = _mm512_shuffle_i32x4(row[j + 8], row[j + 12], 0xdd);
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        row[j] = _mm512_shuffle_i32x4(other[j], other[j + 8], 0x88);
        row[j + 8] = _mm512_shuffle_i32x4(other[j], other[j + 8], 0xdd);
      }
      for (int j = 0; j < kLanes; ++j) _mm512_storeu_si512(d + (k / 2 + j) * kTile + i, row[j]);
    }
  }
}

// Rows [first, first + rows) as pairs of rows, [(rows + 1) / 2, padded]; an odd last row is paired with zeros.
// Says whether every element is finite.
PNB_AVX512_BF16 bool load_row_pairs(const Head& s, int64_t first, int64_t rows, int64_t dim, int64_t padded, Pair* d) {
  constexpr uint32_t kExponent = 0x7f80u;
  uint32_t found = 0;
  for (int64_t i = 0; i < rows; i += 2) {
    const uint16_t* low = reinterpret_cast<const uint16_t*>(s.row(first + i));
    const uint16_t* high = reinterpret_cast<const uint16_t*>(s.row(first + i + 1));
    Pair* pairs = d + i / 2 * padded;
    if (i + 1 < rows) {
      for (int64_t j = 0; j < dim; ++j) {
        pairs[j] = low[j] | static_cast<uint32_t>(high[j]) << 16;
        found |= static_cast<uint32_t>((low[j] & kExponent) == kExponent) |
                 static_cast<uint32_t>((high[j] & kExponent) == kExponent);
      }
    } else {
      for (int64_t j = 0; j < dim; ++j) {
        pairs[j] = low[j];
        found |= static_cast<uint32_t>((low[j] & kExponent) == kExponent);
      }
    }
    for (int64_t j = dim; j < padded; ++j) pairs[j] = 0;
  }
  return found == 0;
}

// 16 values rounded to bf16: eight pairs of neighbours.
PNB_AVX512_BF16 inline void store_bf16(Pair* d, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(d), (__m256i)_mm512_cvtneps_pbh(values));
}

// Pairs of two rows: low[j] in the lower half of word j, high[j] in the upper.
PNB_AVX512_BF16 inline void store_row_pairs(Pair* d, __m512 low, __m512 high) {
  __m512i lower = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
  __m512i upper = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
  _mm512_storeu_si512(d, _mm512_or_si512(lower, _mm512_slli_epi32(upper, 16)));
}

struct ForwardBuffers {
  Pair *keys, *values;           // [key tiles][pair_row, kTile]; [keys / 2, padded]
  Pair *query, *probabilities;   // [kTile, pair_row]; [kRows, kTile / 2]
  float *out, *scores;           // [kTile, padded]; [kRows, kTile]

  static uint64_t bytes(int64_t longest, int64_t dim) {
    int64_t rows = tile_rows_of(longest), padded = round_up(dim, kLanes);
    return (rows * pair_row(dim) + rows / 2 * padded + kTile * pair_row(dim) + kRows * kTile / 2 + kTile * padded + kRows * kTile) *
           sizeof(Pair);
  }

  ForwardBuffers(void* start, int64_t longest, int64_t dim) {
    int64_t rows = tile_rows_of(longest), padded = round_up(dim, kLanes);
    Cutter cutter{static_cast<char*>(start)};
    keys = cutter.take<Pair>(rows * pair_row(dim));
    values = cutter.take<Pair>(rows / 2 * padded);
    query = cutter.take<Pair>(kTile * pair_row(dim));
    probabilities = cutter.take<Pair>(kRows * kTile / 2);
    out = cutter.take<float>(kTile * padded);
    scores = cutter.take<float>(kRows * kTile);
  }
};

// A query's softmax as it goes on from tile to tile; the sum in 16 parts.
struct Running {
  float maximum;
  float sums[kLanes];
};

// Takes in four queries' scores of a tile, of whose keys query r sees the first seen[r]: probabilities relative to the new
// maximum, zero for the other keys. What out holds is scaled down to the new maximum. The queries take turns, so that the
// long chain from scores to a maximum of one is hidden behind the others'.
PNB_AVX512_BF16 inline void softmax_rows(float* scores, const int64_t* seen, int64_t columns, float scale, Running* running,
                                         float* out, int64_t padded, Pair* probabilities) {
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  float highest[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    __m512 top = lowest;
    for (int64_t j = 0; j < columns; j += kLanes) {
      __mmask16 here = static_cast<__mmask16>(below(seen[r] - j));
      __m512 score = _mm512_mask_mul_ps(lowest, here, _mm512_loadu_ps(scores + r * kTile + j), _mm512_set1_ps(scale));
      _mm512_storeu_ps(scores + r * kTile + j, score);
      top = _mm512_max_ps(top, score);
    }
    highest[r] = std::max(running[r].maximum, _mm512_reduce_max_ps(top));
  }
  for (int r = 0; r < kRows; ++r) {
    if (seen[r] == 0) {
      std::memset(probabilities + r * kTile / 2, 0, columns * sizeof(uint16_t));
      continue;
    }
    __m512 sum = _mm512_loadu_ps(running[r].sums);
    if (running[r].maximum != highest[r]) {
      __m512 correction = exp_lanes(_mm512_set1_ps(running[r].maximum - highest[r]));
      sum = _mm512_mul_ps(sum, correction);
      float* row = out + r * padded;
      for (int64_t d = 0; d < padded; d += kLanes) _mm512_storeu_ps(row + d, _mm512_mul_ps(_mm512_loadu_ps(row + d), correction));
      running[r].maximum = highest[r];
    }
    for (int64_t j = 0; j < columns; j += kLanes) {
      __mmask16 here = static_cast<__mmask16>(below(seen[r] - j));
      __m512 score = _mm512_loadu_ps(scores + r * kTile + j);
      __m512 probability = _mm512_maskz_mov_ps(here, exp_lanes(_mm512_sub_ps(score, _mm512_set1_ps(highest[r]))));
      sum = _mm512_add_ps(sum, probability);
      store_bf16(probabilities + (r * kTile + j) / 2, probability);
    }
    _mm512_storeu_ps(running[r].sums, sum);
  }
}

// out[d] += probabilities * values over the `seen` first keys of a tile, one product at a time: the probability of a key that a
// query does not see is 0, and 0 * NaN is not, so these products are left out.
void add_seen_values(const Pair* probabilities, const Head& v, int64_t first, int64_t seen, int64_t dim, float* out) {
  for (int64_t j = 0; j < seen; ++j) {
    float probability = bf16_to_float(static_cast<uint16_t>(probabilities[j / 2] >> (j % 2 * 16)));
    const uint16_t* value = reinterpret_cast<const uint16_t*>(v.row(first + j));
    for (int64_t d = 0; d < dim; ++d) out[d] += probability * bf16_to_float(value[d]);
  }
}

PNB_AVX512_BF16 void forward_head(const ForwardHead& h, const HeadSizes& s, const HeadLists& lists, float scale,
                                  const ForwardBuffers& b) {
  int64_t padded = round_up(s.dim, kLanes), width = pair_row(s.dim), pairs = (s.dim + 1) / 2;
  for (int64_t key = 0; key < s.keys; key += kTile) {
    load_transposed(h.k, key, std::min(kTile, s.keys - key), s.dim, b.keys + key * width);
  }
  bool finite = load_row_pairs(h.v, 0, s.keys, s.dim, padded, b.values);

  for (int64_t first = 0; first < s.queries; first += kTile) {
    int64_t rows = std::min(kTile, s.queries - first);
    load_rows(h.q, first, rows, s.dim, b.query);
    std::memset(b.out, 0, kTile * padded * sizeof(float));
    Running running[kTile];
    for (Running& row : running) row = {-std::numeric_limits<float>::infinity(), {}};

    for (TileWalk tiles = lists.walk(first, 0, s.seen_by(first + rows - 1)); !tiles.done(); tiles.next()) {
      int64_t key = tiles.row();
      for (int64_t i = 0; i < rows; i += kRows) {
        int64_t used = std::min(kRows, rows - i);
        int64_t widest = s.visible(first + i + used - 1, key);
        if (widest == 0) continue;
        float* out = b.out + i * padded;
        product(b.scores, kTile, b.query + i * width, width, 1, b.keys + key * width, kTile, round_up(widest, kLanes), pairs,
                false);
        int64_t seen[kRows] = {};
        for (int64_t r = 0; r < used; ++r) seen[r] = s.visible(first + i + r, key);
        softmax_rows(b.scores, seen, round_up(widest, kLanes), scale, running + i, out, padded, b.probabilities);
        for (int64_t r = 0; r < used && !finite; ++r) {
          add_seen_values(b.probabilities + r * kTile / 2, h.v, key, seen[r], s.dim, out + r * padded);
        }
        if (finite) {
          product(out, padded, b.probabilities, kTile / 2, 1, b.values + key / 2 * padded, padded, padded, (widest + 1) / 2, true);
        }
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      float* out = b.out + i * padded;
      float sum = _mm512_reduce_add_ps(_mm512_loadu_ps(running[i].sums));
      bool blind = sum == 0.0f;  // a key that is seen adds more than 0, or NaN
      float inverse = blind ? 0.0f : 1.0f / sum;
      for (int64_t d = 0; d < padded; ++d) out[d] *= inverse;
      store_row(out, h.o, first + i, s.dim);
      if (h.lse != nullptr) h.lse[first + i] = blind ? 0.0f : running[i].maximum + std::log(sum);
    }
  }
}

// Which keys each query of a tile weighs is looked at twice, for the sums of their gradients come before the gradients
// themselves: meanwhile p and d_p wait in f32, of 512 keys 256 KB, which is less to read again than to compute again.
struct BackwardBuffers {
  Pair *key_t, *value_t, *key_pairs;                // [key tiles][pair_row, kTile] x 2, [keys / 2, padded]
  float *d_key, *d_value;                           // [keys, padded] x 2
  float *p, *d_p;                                   // [key tiles][kTile, kTile] x 2
  Pair *query, *d_out, *query_pairs, *d_out_pairs;  // [kTile, pair_row] x 2, [kTile / 2, padded] x 2
  float* d_query;                                   // [kTile, padded]
  Pair *p_pairs, *ds_pairs, *ds;                    // pairs of queries [kTile / 2, kTile] x 2, pairs of keys [kRows, kTile / 2]

  static uint64_t bytes(int64_t longest, int64_t dim) {
    int64_t rows = tile_rows_of(longest), padded = round_up(dim, kLanes), width = pair_row(dim);
    int64_t of_keys = 2 * rows * width + rows / 2 * padded + 2 * rows * padded + 2 * rows * kTile;
    int64_t of_tile = 2 * kTile * width + 2 * kTile * padded + kTile * kTile + kRows * kTile / 2;
    return (of_keys + of_tile) * sizeof(Pair);
  }

  BackwardBuffers(void* start, int64_t longest, int64_t dim) {
    int64_t rows = tile_rows_of(longest), padded = round_up(dim, kLanes), width = pair_row(dim);
    Cutter cutter{static_cast<char*>(start)};
    key_t = cutter.take<Pair>(rows * width);
    value_t = cutter.take<Pair>(rows * width);
    key_pairs = cutter.take<Pair>(rows / 2 * padded);
    d_key = cutter.take<float>(rows * padded);
    d_value = cutter.take<float>(rows * padded);
    p = cutter.take<float>(rows * kTile);
    d_p = cutter.take<float>(rows * kTile);
    query = cutter.take<Pair>(kTile * width);
    d_out = cutter.take<Pair>(kTile * width);
    query_pairs = cutter.take<Pair>(kTile / 2 * padded);
    d_out_pairs = cutter.take<Pair>(kTile / 2 * padded);
    d_query = cutter.take<float>(kTile * padded);
    p_pairs = cutter.take<Pair>(kTile / 2 * kTile);
    ds_pairs = cutter.take<Pair>(kTile / 2 * kTile);
    ds = cutter.take<Pair>(kRows * kTile / 2);
  }
};

// A tile of queries, [first, first + rows) of a head, and four of them.
struct QueryTile {
  const HeadSizes& sizes;
  int64_t first, rows;

  // The keys of the tile that starts at `key` which query `row` of the tile sees; none of a row past the last.
  int64_t seen(int64_t row, int64_t key) const { return row < rows ? sizes.visible(first + row, key) : 0; }

  // As above, the most of the four queries from `row` on.
  int64_t widest(int64_t row, int64_t key) const { return seen(std::min(row + kRows, rows) - 1, key); }
};

// delta = d_o . o, of one query. The operands are rows of pairs.
PNB_AVX512_BF16 float dot(const Pair* a, const Pair* b, int64_t width) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < width; k += kLanes) {
    sum = _mm512_dpbf16_ps(sum, as_bf16(_mm512_loadu_si512(a + k)), as_bf16(_mm512_loadu_si512(b + k)));
  }
  return _mm512_reduce_add_ps(sum);
}

// Probabilities, 0 for keys that are not seen, and d_p = d_o . v of a tile of keys; sums [kTile, 16] += p * d_p.
PNB_AVX512_BF16 void weigh_tile(const BackwardBuffers& b, const QueryTile& tile, int64_t key, const float* lse, float scale,
                                int64_t width, int64_t pairs, float* sums) {
  for (int64_t i = 0; i < tile.rows; i += kRows) {
    int64_t columns = round_up(tile.widest(i, key), kLanes);
    float* p = b.p + (key + i) * kTile;
    float* d_p = b.d_p + (key + i) * kTile;
    product(p, kTile, b.query + i * width, width, 1, b.key_t + key * width, kTile, columns, pairs, false);
    product(d_p, kTile, b.d_out + i * width, width, 1, b.value_t + key * width, kTile, columns, pairs, false);
    for (int64_t r = 0; r < kRows; ++r) {
      int64_t seen = tile.seen(i + r, key);
      __m512 minus_lse = _mm512_set1_ps(seen == 0 ? 0.0f : -lse[i + r]);
      __m512 sum = _mm512_loadu_ps(sums + (i + r) * kLanes);
      for (int64_t j = 0; j < columns; j += kLanes) {
        __mmask16 lanes = static_cast<__mmask16>(below(seen - j));
        __m512 score = _mm512_fmadd_ps(_mm512_loadu_ps(p + r * kTile + j), _mm512_set1_ps(scale), minus_lse);
        score = _mm512_min_ps(_mm512_setzero_ps(), score);  // in this order NaN stays
        __m512 probability = _mm512_maskz_mov_ps(lanes, exp_lanes(score));
        _mm512_storeu_ps(p + r * kTile + j, probability);
        sum = _mm512_mask3_fmadd_ps(probability, _mm512_loadu_ps(d_p + r * kTile + j), sum, lanes);
      }
      _mm512_storeu_ps(sums + (i + r) * kLanes, sum);
    }
  }
}

// Four queries' probabilities and score gradients against a tile of keys, in the pairs that products read; p is 0 for keys
// that are not seen.
PNB_AVX512_BF16 inline void gradient_rows(const BackwardBuffers& b, const QueryTile& tile, int64_t row, int64_t key,
                                          const float* delta, float scale) {
  const float* p = b.p + (key + row) * kTile;
  const float* d_p = b.d_p + (key + row) * kTile;
  Pair* p_pairs = b.p_pairs + row / 2 * kTile;
  Pair* ds_pairs = b.ds_pairs + row / 2 * kTile;
  int64_t columns = round_up(tile.widest(row, key), kLanes);
  for (int64_t j = 0; j < columns; j += kLanes) {
    for (int r = 0; r < kRows; r += 2) {
      __m512 probability[2], ds[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        int i = r + half;
        __mmask16 lanes = static_cast<__mmask16>(below(tile.seen(row + i, key) - j));
        probability[half] = _mm512_loadu_ps(p + i * kTile + j);
        __m512 difference = _mm512_sub_ps(_mm512_loadu_ps(d_p + i * kTile + j), _mm512_set1_ps(delta[row + i]));
        ds[half] = _mm512_maskz_mul_ps(lanes, _mm512_mul_ps(probability[half], _mm512_set1_ps(scale)), difference);
        store_bf16(b.ds + i * kTile / 2 + j / 2, ds[half]);
      }
      store_row_pairs(p_pairs + r / 2 * kTile + j, probability[0], probability[1]);
      store_row_pairs(ds_pairs + r / 2 * kTile + j, ds[0], ds[1]);
    }
  }
}

// The same rows where load_rows has put them: a head's own lie far apart, and each is a miss of the cache.
Head packed_rows(Head s, Pair* rows, int64_t width) {
  s.data = reinterpret_cast<char*>(rows);
  s.row_bytes = width * sizeof(Pair);
  return s;
}

// A query's delta is what its score gradients add up to 0 with. Without lists it is the sum of p * (d_o . v) over all keys that
// the query sees, from the unrounded probabilities: with d_o . o, whose o is rounded to bf16, they do not add up to 0, and a
// gradient of keys that adds them up over queries of one direction, as post-norm models have, is off by twice what rounding the
// rest makes of it. Lists may be shorter than the forward pass's: o alone tells the sum over all that a query saw.
PNB_AVX512_BF16 void backward_head(const BackwardHead& h, const HeadSizes& s, const HeadLists& lists, float scale,
                                   const BackwardBuffers& b) {
  int64_t padded = round_up(s.dim, kLanes), width = pair_row(s.dim), pairs = (s.dim + 1) / 2, n = s.queries;
  bool wants_d_key = h.dk.data != nullptr;
  for (int64_t key = 0; key < n; key += kTile) {
    int64_t keys = std::min(kTile, n - key);
    load_transposed(h.k, key, keys, s.dim, b.key_t + key * width);
    load_transposed(h.v, key, keys, s.dim, b.value_t + key * width);
  }
  load_row_pairs(h.k, 0, n, s.dim, padded, b.key_pairs);
  if (wants_d_key) std::memset(b.d_key, 0, round_up(n, kRows) * padded * sizeof(float));
  std::memset(b.d_value, 0, round_up(n, kRows) * padded * sizeof(float));

  for (int64_t first = 0; first < n; first += kTile) {
    QueryTile tile{s, first, std::min(kTile, n - first)};
    float delta[kTile] = {};
    load_rows(h.d_o, first, tile.rows, s.dim, b.d_out);
    if (lists.indices != nullptr) {
      load_rows(h.o, first, tile.rows, s.dim, b.query);
      for (int64_t i = 0; i < tile.rows; ++i) delta[i] = dot(b.query + i * width, b.d_out + i * width, width);
    }
    load_rows(h.q, first, tile.rows, s.dim, b.query);
    if (wants_d_key) load_row_pairs(packed_rows(h.q, b.query, width), 0, tile.rows, s.dim, padded, b.query_pairs);
    load_row_pairs(packed_rows(h.d_o, b.d_out, width), 0, tile.rows, s.dim, padded, b.d_out_pairs);
    std::memset(b.d_query, 0, kTile * padded * sizeof(float));

    TileWalk met = lists.walk(first, 0, first + tile.rows);
    float sums[kTile * kLanes] = {};
    for (TileWalk tiles = met; !tiles.done(); tiles.next()) {
      weigh_tile(b, tile, tiles.row(), h.lse + first, scale, width, pairs, sums);
    }
    for (int64_t i = 0; i < tile.rows && lists.indices == nullptr; ++i) {
      delta[i] = _mm512_reduce_add_ps(_mm512_loadu_ps(sums + i * kLanes));
    }
    for (TileWalk tiles = met; !tiles.done(); tiles.next()) {
      int64_t key = tiles.row();
      for (int64_t i = 0; i < tile.rows; i += kRows) {
        gradient_rows(b, tile, i, key, delta, scale);
        product(b.d_query + i * padded, padded, b.ds, kTile / 2, 1, b.key_pairs + key / 2 * padded, padded, padded,
                (tile.widest(i, key) + 1) / 2, true);
      }
      // Key j is seen by query j of a tile on the diagonal and those after it, by all queries of the tiles below.
      int64_t keys = std::min(kTile, n - key);
      for (int64_t j = 0; j < keys; j += kRows) {
        int64_t skipped = first == key ? j / 2 : 0;
        int64_t query_pairs = (tile.rows + 1) / 2 - skipped;
        const Pair* d_out = b.d_out_pairs + skipped * padded;
        float* d_value = b.d_value + (key + j) * padded;
        product(d_value, padded, b.p_pairs + skipped * kTile + j, 1, kTile, d_out, padded, padded, query_pairs, true);
        if (!wants_d_key) continue;
        const Pair* query = b.query_pairs + skipped * padded;
        float* d_key = b.d_key + (key + j) * padded;
        product(d_key, padded, b.ds_pairs + skipped * kTile + j, 1, kTile, query, padded, padded, query_pairs, true);
      }
    }
    for (int64_t i = 0; i < tile.rows; ++i) store_row(b.d_query + i * padded, h.dq, first + i, s.dim);
  }
  for (int64_t j = 0; j < n; ++j) {
    if (wants_d_key) store_row(b.d_key + j * padded, h.dk, j, s.dim);
    store_row(b.d_value + j * padded, h.dv, j, s.dim);
  }
}

struct MassBuffers {
  Pair *keys, *query;  // [key tiles][pair_row, kTile]; [kTile, pair_row]
  float* scores;       // [kRows, kTile]

  static uint64_t bytes(int64_t longest, int64_t dim) {
    return ((tile_rows_of(longest) + kTile) * pair_row(dim) + kRows * kTile) * sizeof(Pair);
  }

  MassBuffers(void* start, int64_t longest, int64_t dim) {
    Cutter cutter{static_cast<char*>(start)};
    keys = cutter.take<Pair>(tile_rows_of(longest) * pair_row(dim));
    query = cutter.take<Pair>(kTile * pair_row(dim));
    scores = cutter.take<float>(kRows * kTile);
  }
};

PNB_AVX512_BF16 void mass_head(const MassHead& h, const HeadSizes& s, float scale, const MassBuffers& b) {
  int64_t width = pair_row(s.dim), pairs = (s.dim + 1) / 2;
  for (int64_t key = 0; key < s.keys; key += kTile) {
    load_transposed(h.k, key, std::min(kTile, s.keys - key), s.dim, b.keys + key * width);
  }
  std::memset(b.query, 0, kTile * width * sizeof(Pair));
  for (int64_t next = 0; next < s.queries;) {
    // A tile's worth of the sampled queries of one block; what the tile's other rows hold is not used.
    int64_t block = next / h.block_rows, end = std::min((block + 1) * h.block_rows, s.queries), count = 0;
    int64_t rows[kTile];
    for (; next < end && count < kTile; ++next) {
      if (!h.sampled(next, s.queries)) continue;
      std::memcpy(b.query + count * width, h.q.row(next), s.dim * sizeof(uint16_t));
      rows[count++] = next;
    }
    if (count == 0) continue;
    for (int64_t key = 0; key <= rows[count - 1]; key += kTile) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < count; i += kRows) {
        int64_t used = std::min(kRows, count - i);
        int64_t columns = round_up(s.visible(rows[i + used - 1], key), kLanes);
        if (columns == 0) continue;
        product(b.scores, kTile, b.query + i * width, width, 1, b.keys + key * width, kTile, columns, pairs, false);
        for (int64_t r = 0; r < used; ++r) {
          int64_t seen = s.visible(rows[i + r], key);
          __m512 lse = _mm512_set1_ps(h.lse[rows[i + r]]);
          for (int64_t j = 0; j < columns; j += kLanes) {
            __m512 score = _mm512_fmsub_ps(_mm512_loadu_ps(b.scores + r * kTile + j), _mm512_set1_ps(scale), lse);
            score = _mm512_min_ps(_mm512_setzero_ps(), score);  // in this order NaN stays
            sum = _mm512_mask_add_ps(sum, static_cast<__mmask16>(below(seen - j)), sum, exp_lanes(score));
          }
        }
      }
      h.mass[block * h.width + key / h.block_rows] += _mm512_reduce_add_ps(sum);
    }
  }
}

}  // namespace

const HeadKernels& bf16_heads() {
  static const HeadKernels kernels{
      ForwardBuffers::bytes,
      [](const ForwardHead& h, const HeadSizes& sizes, const HeadLists& lists, float scale, int64_t longest, void* buffer) {
        forward_head(h, sizes, lists, scale, ForwardBuffers(buffer, longest, sizes.dim));
      },
      true,
      BackwardBuffers::bytes,
      [](const BackwardHead& h, const HeadSizes& sizes, const HeadLists& lists, float scale, int64_t longest, void* buffer) {
        backward_head(h, sizes, lists, scale, BackwardBuffers(buffer, longest, sizes.dim));
      },
      MassBuffers::bytes,
      [](const MassHead& h, const HeadSizes& sizes, float scale, int64_t longest, void* buffer) {
        mass_head(h, sizes, scale, MassBuffers(buffer, longest, sizes.dim));
      }};
  return kernels;
}

}  // namespace pnb::cpu
