#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <omp.h>

#include "core/error.h"
#include "core/tensor.h"
#include "cpu/bf16.h"
#include "cpu/exp.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

// One task is one head of one sample. Its keys, values and queries are widened to f32 once; then tiles of 64 x 64 scores are
// made, used and forgotten, and tiles above the diagonal are not visited. No two tasks write the same element, so the order
// in which threads take tasks does not show in the result.

namespace pnb::cpu {

namespace {

constexpr int64_t kTile = 64;  // a tile of scores is 16 KB: two of them fit a first-level cache with a row of operands

// One head of one sample: rows of a [tokens, heads, head_dim] tensor.
struct Head {
  char* data;
  int32_t dtype;
  int64_t row_bytes;

  Head(const pnb_tensor& t, int64_t first, int64_t head)
      : data(static_cast<char*>(t.data) + (first * t.stride[0] + head * t.stride[1]) * dtype_size(t.dtype)),
        dtype(t.dtype),
        row_bytes(t.stride[0] * dtype_size(t.dtype)) {}
};

inline __attribute__((always_inline)) void load_row(const Head& s, int64_t row, float* d, int64_t count, int64_t padded) {
  const char* start = s.data + row * s.row_bytes;
  if (s.dtype == PNB_DTYPE_F32) {
    std::memcpy(d, start, count * sizeof(float));
  } else {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(start);
    for (int64_t i = 0; i < count; ++i) d[i] = bf16_to_float(values[i]);
  }
  for (int64_t i = count; i < padded; ++i) d[i] = 0.0f;
}

inline __attribute__((always_inline)) void store_row(const float* s, const Head& d, int64_t row, int64_t count) {
  char* start = d.data + row * d.row_bytes;
  if (d.dtype == PNB_DTYPE_F32) {
    std::memcpy(start, s, count * sizeof(float));
  } else {
    uint16_t* values = reinterpret_cast<uint16_t*>(start);
    for (int64_t i = 0; i < count; ++i) values[i] = float_to_bf16(s[i]);
  }
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

struct Sizes {
  int64_t queries, keys, dim, padded;

  // How many keys of the tile that starts at `key` query `query` sees: its last query sees all keys.
  int64_t visible(int64_t query, int64_t key) const {
    return std::clamp<int64_t>(query + keys - queries - key + 1, 0, kTile);
  }
};

// Buffers of one thread in the forward pass; they grow to the longest sample and stay.
struct ForwardBuffers {
  std::vector<float> keys, values;       // [key tiles][padded, kTile]; [keys, padded]
  std::vector<float> query, out, scores;  // [kTile, padded], [kTile, padded], [kTile, kTile]

  void reserve(const Sizes& s) {
    size_t rows = round_up(s.keys, kTile);
    if (keys.size() < rows * s.padded) keys.resize(rows * s.padded);
    if (values.size() < rows * s.padded) values.resize(rows * s.padded);
    query.resize(kTile * s.padded);
    out.resize(kTile * s.padded);
    scores.resize(kTile * kTile);
  }
};

PNB_MULTIVERSION void forward_head(const Head& q, const Head& k, const Head& v, const Head& o, float* lse, const Sizes& s,
                                   float scale, ForwardBuffers& buffers) {
  float* values = buffers.values.data();
  float* scores = buffers.scores.data();
  float* out = buffers.out.data();
  float* query = buffers.query.data();
  int64_t padded = s.padded;
  // Keys are widened where the values go next, then turned tile by tile.
  load(k, s.keys, values, s.dim, padded);
  for (int64_t key = 0; key < s.keys; key += kTile) transpose(values + key * padded, buffers.keys.data() + key * padded, padded);
  load(v, s.keys, values, s.dim, padded);

  for (int64_t first = 0; first < s.queries; first += kTile) {
    int64_t rows = std::min(kTile, s.queries - first);
    int64_t used = round_up(rows, 4);
    for (int64_t i = 0; i < used; ++i) {
      float* row = query + i * padded;
      if (i < rows) {
        load_row(q, first + i, row, s.dim, padded);
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

    for (int64_t key = 0; key < s.keys && s.visible(first + rows - 1, key) > 0; key += kTile) {
      tile_product(scores, kTile, query, padded, 1, buffers.keys.data() + key * padded, kTile, used, kTile, s.dim, false);
      for (int64_t i = 0; i < used; ++i) {
        float* row = scores + i * kTile;
        int64_t seen = i < rows ? std::min(s.visible(first + i, key), s.keys - key) : 0;
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
      tile_product(out, padded, scores, kTile, 1, values + key * padded, padded, used, padded,
                   std::min(kTile, s.keys - key), true);
    }
    for (int64_t i = 0; i < rows; ++i) {
      float inverse = sum[i] > 0.0f ? 1.0f / sum[i] : 0.0f;
      for (int64_t d = 0; d < padded; ++d) out[i * padded + d] *= inverse;
      store_row(out + i * padded, o, first + i, s.dim);
      if (lse != nullptr) lse[first + i] = sum[i] > 0.0f ? maximum[i] + std::log(sum[i]) : 0.0f;
    }
  }
}

// Buffers of one thread in the backward pass, cut from the workspace.
struct BackwardBuffers {
  float *query, *d_out, *d_query, *delta;  // [rows, padded] x 3, [rows]
  float *key, *key_t, *value_t, *d_key, *d_value;
  float *scores, *d_scores;

  static int64_t floats(int64_t longest, int64_t padded) {
    int64_t rows = round_up(std::max<int64_t>(longest, 1), kTile);
    return round_up(3 * rows * padded + rows + 5 * kTile * padded + 2 * kTile * kTile, 64);
  }

  BackwardBuffers(float* start, int64_t longest, int64_t padded) {
    int64_t rows = round_up(std::max<int64_t>(longest, 1), kTile);
    auto take = [&](int64_t count) {
      float* taken = start;
      start += count;
      return taken;
    };
    query = take(rows * padded);
    d_out = take(rows * padded);
    d_query = take(rows * padded);
    delta = take(rows);
    key = take(kTile * padded);
    key_t = take(kTile * padded);
    value_t = take(kTile * padded);
    d_key = take(kTile * padded);
    d_value = take(kTile * padded);
    scores = take(kTile * kTile);
    d_scores = take(kTile * kTile);
  }
};

struct BackwardHead {
  Head q, k, v, o, d_o, dq, dk, dv;
  const float* lse;
};

PNB_MULTIVERSION void backward_head(const BackwardHead& h, const Sizes& s, float scale, BackwardBuffers& b) {
  int64_t padded = s.padded;
  int64_t n = s.queries;
  load(h.q, n, b.query, s.dim, padded);
  load(h.d_o, n, b.d_out, s.dim, padded);
  std::memset(b.d_query, 0, round_up(n, kTile) * padded * sizeof(float));
  for (int64_t i = 0; i < n; ++i) {
    load_row(h.o, i, b.key, s.dim, padded);
    float sum = 0.0f;
    for (int64_t d = 0; d < s.dim; ++d) sum += b.key[d] * b.d_out[i * padded + d];
    b.delta[i] = sum;
  }
  for (int64_t key = 0; key < n; key += kTile) {
    int64_t keys = std::min(kTile, n - key);
    Head tile = h.k;
    tile.data += key * tile.row_bytes;
    load(tile, keys, b.key, s.dim, padded);
    transpose(b.key, b.key_t, padded);
    tile = h.v;
    tile.data += key * tile.row_bytes;
    load(tile, keys, b.d_value, s.dim, padded);
    transpose(b.d_value, b.value_t, padded);
    std::memset(b.d_key, 0, kTile * padded * sizeof(float));
    std::memset(b.d_value, 0, kTile * padded * sizeof(float));

    for (int64_t first = key; first < n; first += kTile) {
      int64_t rows = std::min(kTile, n - first);
      int64_t used = round_up(rows, 4);
      const float* query = b.query + first * padded;
      const float* d_out = b.d_out + first * padded;
      tile_product(b.scores, kTile, query, padded, 1, b.key_t, kTile, used, kTile, s.dim, false);
      tile_product(b.d_scores, kTile, d_out, padded, 1, b.value_t, kTile, used, kTile, s.dim, false);
      for (int64_t i = 0; i < used; ++i) {
        float* p = b.scores + i * kTile;
        float* ds = b.d_scores + i * kTile;
        int64_t seen = i < rows ? std::min(s.visible(first + i, key), keys) : 0;
        float lse = i < rows ? h.lse[first + i] : 0.0f;
        float delta = i < rows ? b.delta[first + i] : 0.0f;
        for (int64_t j = 0; j < kTile; ++j) {
          float score = p[j] * scale - lse;
          float probability = exp_not_positive(score < 0.0f ? score : 0.0f);
          p[j] = j < seen ? probability : 0.0f;
          ds[j] = p[j] * (ds[j] - delta) * scale;
        }
      }
      // The transposes are read through exchanged strides.
      tile_product(b.d_value, padded, b.scores, 1, kTile, d_out, padded, kTile, padded, rows, true);
      tile_product(b.d_key, padded, b.d_scores, 1, kTile, query, padded, kTile, padded, rows, true);
      tile_product(b.d_query + first * padded, padded, b.d_scores, kTile, 1, b.key, padded, used, padded, keys, true);
    }
    for (int64_t j = 0; j < keys; ++j) {
      store_row(b.d_key + j * padded, h.dk, key + j, s.dim);
      store_row(b.d_value + j * padded, h.dv, key + j, s.dim);
    }
  }
  for (int64_t i = 0; i < n; ++i) store_row(b.d_query + i * padded, h.dq, i, s.dim);
}

// Borders are data, so they are looked at here: ascending, from 0, within the tokens.
const int32_t* borders(const char* op, const char* name, const pnb_tensor& t, int64_t tokens, int64_t longest) {
  const int32_t* cu = static_cast<const int32_t*>(t.data);
  for (int64_t s = 0; s < t.shape[0]; ++s) {
    int64_t before = s == 0 ? 0 : cu[s - 1];
    if (cu[s] < before || cu[s] > tokens || (s == 0 && cu[0] != 0) || cu[s] - before > longest) {
      fail(PNB_ERROR_INVALID_ARGUMENT,
           "%s: expected %s ascending from 0 to at most %lld in steps of at most %lld, found %d after %lld at %lld", op, name,
           static_cast<long long>(tokens), static_cast<long long>(longest), cu[s], static_cast<long long>(before),
           static_cast<long long>(s));
    }
  }
  return cu;
}

void zero_rows(const pnb_tensor& t, int64_t from) {
  size_t bytes = t.shape[2] * dtype_size(t.dtype);
  for (int64_t row = from; row < t.shape[0]; ++row) {
    for (int64_t head = 0; head < t.shape[1]; ++head) std::memset(Head(t, row, head).data, 0, bytes);
  }
}

}  // namespace

void attention_forward(const pnb_attention_forward_params& p, int threads) {
  int64_t heads = p.q.shape[1];
  int64_t samples = p.cu_seqlens_q.shape[0] - 1;
  const int32_t* cu_q = borders("attention_forward", "cu_seqlens_q", p.cu_seqlens_q, p.q.shape[0], p.max_seqlen);
  const int32_t* cu_k = borders("attention_forward", "cu_seqlens_k", p.cu_seqlens_k, p.k.shape[0], p.max_seqlen);
  for (int64_t s = 0; s < samples; ++s) {
    if (cu_q[s + 1] - cu_q[s] > cu_k[s + 1] - cu_k[s]) {
      fail(PNB_ERROR_INVALID_ARGUMENT, "attention_forward: expected no more queries than keys, found %d and %d in sample %lld",
           cu_q[s + 1] - cu_q[s], cu_k[s + 1] - cu_k[s], static_cast<long long>(s));
    }
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < samples * heads; ++task) {
    int64_t sample = task / heads;
    int64_t head = task % heads;
    Sizes sizes{cu_q[sample + 1] - cu_q[sample], cu_k[sample + 1] - cu_k[sample], p.q.shape[2], round_up(p.q.shape[2], kLanes)};
    if (sizes.queries == 0) continue;
    static thread_local ForwardBuffers buffers;
    buffers.reserve(sizes);
    float* lse = present(p.lse) ? static_cast<float*>(p.lse.data) + head * p.lse.stride[0] + cu_q[sample] : nullptr;
    forward_head(Head(p.q, cu_q[sample], head), Head(p.k, cu_k[sample], head), Head(p.v, cu_k[sample], head),
                 Head(p.o, cu_q[sample], head), lse, sizes, p.scale, buffers);
  }
  zero_rows(p.o, cu_q[samples]);
}

uint64_t attention_backward_workspace(const pnb_attention_backward_params& p, int threads) {
  return BackwardBuffers::floats(p.max_seqlen, round_up(p.q.shape[2], kLanes)) * sizeof(float) * threads;
}

void attention_backward(const pnb_attention_backward_params& p, int threads) {
  int64_t heads = p.q.shape[1];
  int64_t samples = p.cu_seqlens.shape[0] - 1;
  int64_t padded = round_up(p.q.shape[2], kLanes);
  const int32_t* cu = borders("attention_backward", "cu_seqlens", p.cu_seqlens, p.q.shape[0], p.max_seqlen);
  int64_t floats = BackwardBuffers::floats(p.max_seqlen, padded);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < samples * heads; ++task) {
    int64_t first = cu[task / heads];
    int64_t head = task % heads;
    int64_t length = cu[task / heads + 1] - first;
    if (length == 0) continue;
    BackwardBuffers buffers(static_cast<float*>(p.workspace.data) + omp_get_thread_num() * floats, p.max_seqlen, padded);
    BackwardHead operands{Head(p.q, first, head),   Head(p.k, first, head),  Head(p.v, first, head),  Head(p.o, first, head),
                          Head(p.d_o, first, head), Head(p.dq, first, head), Head(p.dk, first, head), Head(p.dv, first, head),
                          static_cast<const float*>(p.lse.data) + head * p.lse.stride[0] + first};
    backward_head(operands, Sizes{length, length, p.q.shape[2], padded}, p.scale, buffers);
  }
  zero_rows(p.dq, cu[samples]);
  zero_rows(p.dk, cu[samples]);
  zero_rows(p.dv, cu[samples]);
}

}  // namespace pnb::cpu
