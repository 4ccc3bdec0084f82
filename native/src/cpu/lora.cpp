#include "cpu/lora.h"

#include <algorithm>

#include "core/tensor.h"
#include "cpu/convert.h"
#include "cpu/philox.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

// Every thread takes a run of tokens, sixteen at a time, and reads each of their rows once: dy for dh and dB, x for dA. Each
// sums dA and dB of its own, and these are added in the order of the threads, so equal threads give equal bits. Factors lie as
// [rank, columns], with ranks padded to 4 and columns to 16 by zeros.

namespace pnb::cpu {

namespace {

constexpr int64_t kRows = 16;      // tokens at a time: their rows of 768 columns are 48 KB in f32, within the second-level cache
constexpr int64_t kRankBlock = 4;  // ranks, and tokens, whose sums are in registers together

int64_t padded_rank(int64_t rank) { return round_up(rank, kRankBlock); }
int64_t padded_columns(int64_t columns) { return round_up(columns, kLanes); }

// sums[i][j] = rows[i] . factor[j] for kRows rows; sums [kRows, ranks].
PNB_MULTIVERSION void dot_rows(const float* rows, const float* factor, int64_t columns, int64_t ranks, float* sums) {
  for (int64_t i = 0; i < kRows; i += kRankBlock) {
    for (int64_t j = 0; j < ranks; j += kRankBlock) {
      Vector sum[kRankBlock][kRankBlock] = {};
      for (int64_t c = 0; c < columns; c += kLanes) {
        Vector value, other[kRankBlock];
#pragma GCC unroll 4
        for (int b = 0; b < kRankBlock; ++b) load_lanes(factor + (j + b) * columns + c, other[b]);
#pragma GCC unroll 4
        for (int a = 0; a < kRankBlock; ++a) {
          load_lanes(rows + (i + a) * columns + c, value);
#pragma GCC unroll 4
          for (int b = 0; b < kRankBlock; ++b) sum[a][b] += value * other[b];
        }
      }
      for (int a = 0; a < kRankBlock; ++a) {
        for (int b = 0; b < kRankBlock; ++b) sums[(i + a) * ranks + j + b] = lane_sum(sum[a][b]);
      }
    }
  }
}

// gradient[j] += sum over kRows tokens of left[token][j] * rows[token]; gradient [ranks, columns], left [kRows, ranks].
PNB_MULTIVERSION void add_outer(float* gradient, const float* left, const float* rows, int64_t columns, int64_t ranks) {
  tile_product(gradient, columns, left, 1, ranks, rows, columns, ranks, columns, kRows, true);
}

// d[j][c] += scale * s[j][c] for a row of a gradient; d has a stride.
void add_scaled(const float* s, float scale, float* d, int64_t stride, int64_t count) {
  for (int64_t c = 0; c < count; ++c) d[c * stride] += scale * s[c];
}

// Rows [first, first + count) of t in f32 with dropout, as [kRows, padded columns]; what is missing is zero.
void widen(const pnb_tensor& t, int64_t first, int64_t count, const DropoutMask& mask, float* d) {
  int64_t columns = t.shape[1];
  int64_t padded = padded_columns(columns);
  for (int64_t i = 0; i < count; ++i) {
    float* row = d + i * padded;
    row_to_float(static_cast<const char*>(t.data) + (first + i) * t.stride[0] * dtype_size(t.dtype), t.dtype, row, columns);
    if (mask.active()) mask.apply(row, (first + i) * columns, columns);
    std::fill(row + columns, row + padded, 0.0f);
  }
  std::fill_n(d + count * padded, (kRows - count) * padded, 0.0f);
}

// Rows [first, first + count) of h as [kRows, padded rank]; what is missing is zero.
void load_ranks(const pnb_tensor& h, int64_t first, int64_t count, float* d) {
  int64_t ranks = padded_rank(h.shape[1]);
  std::fill_n(d, kRows * ranks, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const float* row = static_cast<const float*>(h.data) + (first + i) * h.stride[0];
    for (int64_t j = 0; j < h.shape[1]; ++j) d[i * ranks + j] = row[j * h.stride[1]];
  }
}

// sums *= scale, and rows [first, first + count) of h = sums.
void store_ranks(float* sums, float scale, const pnb_tensor& h, int64_t first, int64_t count) {
  int64_t ranks = padded_rank(h.shape[1]);
  for (int64_t i = 0; i < kRows * ranks; ++i) sums[i] *= scale;
  for (int64_t i = 0; i < count; ++i) {
    float* row = static_cast<float*>(h.data) + (first + i) * h.stride[0];
    for (int64_t j = 0; j < h.shape[1]; ++j) row[j * h.stride[1]] = sums[i * ranks + j];
  }
}

// A factor whose ranks run along dimension `rank_dim`, as [padded rank, padded columns].
void load_factor(const pnb_tensor& f, int rank_dim, float* d) {
  int64_t ranks = f.shape[rank_dim], columns = f.shape[1 - rank_dim];
  int64_t padded = padded_columns(columns);
  std::fill_n(d, padded_rank(ranks) * padded, 0.0f);
  for (int64_t j = 0; j < ranks; ++j) {
    const float* row = static_cast<const float*>(f.data) + j * f.stride[rank_dim];
    for (int64_t c = 0; c < columns; ++c) d[j * padded + c] = row[c * f.stride[1 - rank_dim]];
  }
}

// The tokens of one thread's share: [first, last).
struct Share {
  int64_t first, last;

  Share(int64_t tokens, int64_t part, int64_t parts) : first(tokens * part / parts), last(tokens * (part + 1) / parts) {}
};

// Where the pieces of the gradients' workspace lie, in floats: the factor B^T, then what each thread has.
struct GradientLayout {
  int64_t ranks, in, out;        // padded
  int64_t thread_floats, total;

  GradientLayout(const pnb_lora_gradients_params& p, int threads)
      : ranks(padded_rank(p.a.shape[0])), in(padded_columns(p.x.shape[1])), out(padded_columns(p.dy.shape[1])) {
    thread_floats = ranks * (in + out) + kRows * std::max(in, out) + 2 * kRows * ranks;
    total = ranks * out + threads * thread_floats;
  }
};

}  // namespace

void lora_project(const pnb_lora_project_params& p, int threads, Scratch& scratch) {
  if (p.next != nullptr) lora_project(*p.next, threads, scratch);
  int64_t m = p.x.shape[0];
  int64_t columns = padded_columns(p.x.shape[1]), ranks = padded_rank(p.a.shape[0]);
  int64_t thread_floats = kRows * (columns + ranks);
  float* factor = scratch.floats(ranks * columns + threads * thread_floats);
  float* buffers = factor + ranks * columns;
  load_factor(p.a, 0, factor);
  DropoutMask mask(p.dropout);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < threads; ++part) {
    float* rows = buffers + part * thread_floats;
    float* sums = rows + kRows * columns;
    Share share(m, part, threads);
    for (int64_t first = share.first; first < share.last; first += kRows) {
      int64_t count = std::min(kRows, share.last - first);
      widen(p.x, first, count, mask, rows);
      dot_rows(rows, factor, columns, ranks, sums);
      store_ranks(sums, 1.0f, p.h, first, count);
    }
  }
}

uint64_t lora_gradients_workspace(const pnb_lora_gradients_params& p, int threads) {
  uint64_t bytes = GradientLayout(p, threads).total * sizeof(float);
  return p.next == nullptr ? bytes : std::max(bytes, lora_gradients_workspace(*p.next, threads));
}

void lora_gradients(const pnb_lora_gradients_params& p, int threads) {
  GradientLayout layout(p, threads);
  float* factor = static_cast<float*>(p.workspace.data);
  float* buffers = factor + layout.ranks * layout.out;
  load_factor(p.b, 1, factor);
  DropoutMask mask(p.dropout);
  DropoutMask none{pnb_dropout{}};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < threads; ++part) {
    float* da = buffers + part * layout.thread_floats;  // [ranks, in]
    float* db = da + layout.ranks * layout.in;          // [ranks, out]
    float* rows = db + layout.ranks * layout.out;
    float* h = rows + kRows * std::max(layout.in, layout.out);
    float* dh = h + kRows * layout.ranks;
    std::fill_n(da, layout.ranks * (layout.in + layout.out), 0.0f);
    Share share(p.x.shape[0], part, threads);
    for (int64_t first = share.first; first < share.last; first += kRows) {
      int64_t count = std::min(kRows, share.last - first);
      widen(p.dy, first, count, none, rows);
      dot_rows(rows, factor, layout.out, layout.ranks, dh);
      store_ranks(dh, p.scaling, p.dh, first, count);
      load_ranks(p.h, first, count, h);
      add_outer(db, h, rows, layout.out, layout.ranks);
      widen(p.x, first, count, mask, rows);
      add_outer(da, dh, rows, layout.in, layout.ranks);
    }
  }
  for (int64_t part = 0; part < threads; ++part) {
    const float* da = buffers + part * layout.thread_floats;
    const float* db = da + layout.ranks * layout.in;
    for (int64_t j = 0; j < p.a.shape[0]; ++j) {
      add_scaled(da + j * layout.in, 1.0f, static_cast<float*>(p.da.data) + j * p.da.stride[0], p.da.stride[1], p.x.shape[1]);
      add_scaled(db + j * layout.out, p.scaling, static_cast<float*>(p.db.data) + j * p.db.stride[1], p.db.stride[0], p.dy.shape[1]);
    }
  }
  if (p.next != nullptr) {
    pnb_lora_gradients_params next = *p.next;
    next.workspace = p.workspace;
    lora_gradients(next, threads);
  }
}

}  // namespace pnb::cpu
