#include "cpu/lora.h"

#include <algorithm>

#include "core/tensor.h"
#include "cpu/block_lists.h"
#include "cpu/convert.h"
#include "cpu/philox.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

// Every thread takes a run of tokens, sixteen at a time, and reads each of their rows once: dy for dh and dB, x for dA. Each
// sums dA and dB of its own, and these are added in the order of the threads, so equal threads give equal bits. Factors lie as
// [rank, columns], with ranks padded to 4 and columns to 16 by zeros. Rows that share a list of blocks are one pass, over
// factors and sums that are as compact as the rows.

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

// What a pass reads of a matrix's rows: the columns that stand for `runs` of its `width` neurons.
struct Columns {
  std::span<const Run> runs;
  int64_t width;
  int64_t count;   // columns in use
  int64_t padded;

  Columns(const BlockLists& lists, int64_t row, int64_t width)
      : runs(lists.runs(row)), width(width), count(lists.columns(row)), padded(padded_columns(count)) {}
};

// A row becomes its layer norm.
PNB_MULTIVERSION void normalise(float* row, float mean, float rstd, const float* gamma, const float* beta, int64_t count) {
  for (int64_t c = 0; c < count; ++c) row[c] = (row[c] - mean) * rstd * gamma[c] + beta[c];
}

// Rows [first, first + count) of t, or of its norm where there is one, in f32 with dropout, as [kRows, padded columns]; what is
// missing is zero.
void widen(const pnb_tensor& t, const pnb_layer_norm& norm, int64_t first, int64_t count, const Columns& columns,
           const DropoutMask& mask, float* d) {
  for (int64_t i = 0; i < count; ++i) {
    float* row = d + i * columns.padded;
    row_to_float(static_cast<const char*>(t.data) + (first + i) * t.stride[0] * dtype_size(t.dtype), t.dtype, row, columns.count);
    if (present(norm.mean)) {
      normalise(row, static_cast<const float*>(norm.mean.data)[first + i], static_cast<const float*>(norm.rstd.data)[first + i],
                static_cast<const float*>(norm.gamma.data), static_cast<const float*>(norm.beta.data), columns.count);
    }
    for (const Run& run : columns.runs) {
      if (mask.active()) mask.apply(row + run.column, (first + i) * columns.width + run.neuron, run.count);
    }
    std::fill(row + columns.count, row + columns.padded, 0.0f);
  }
  std::fill_n(d + count * columns.padded, (kRows - count) * columns.padded, 0.0f);
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
void load_factor(const pnb_tensor& f, int rank_dim, const Columns& columns, float* d) {
  int64_t ranks = f.shape[rank_dim];
  std::fill_n(d, padded_rank(ranks) * columns.padded, 0.0f);
  for (int64_t j = 0; j < ranks; ++j) {
    const float* row = static_cast<const float*>(f.data) + j * f.stride[rank_dim];
    float* target = d + j * columns.padded;
    for (const Run& run : columns.runs) {
      for (int64_t c = 0; c < run.count; ++c) target[run.column + c] = row[(run.neuron + c) * f.stride[1 - rank_dim]];
    }
  }
}

// gradient += scale * sums, whose ranks run along dimension `rank_dim` of the gradient.
void add_gradient(const float* sums, float scale, const Columns& columns, const pnb_tensor& gradient, int rank_dim) {
  for (int64_t j = 0; j < gradient.shape[rank_dim]; ++j) {
    float* row = static_cast<float*>(gradient.data) + j * gradient.stride[rank_dim];
    int64_t stride = gradient.stride[1 - rank_dim];
    for (const Run& run : columns.runs) {
      add_scaled(sums + j * columns.padded + run.column, scale, row + run.neuron * stride, stride, run.count);
    }
  }
}

// The tokens of one thread's share of [begin, end): [first, last).
struct Share {
  int64_t first, last;

  Share(int64_t begin, int64_t end, int64_t part, int64_t parts)
      : first(begin + (end - begin) * part / parts), last(begin + (end - begin) * (part + 1) / parts) {}
};

// Where the pieces of the gradients' workspace lie, in floats: the factor B^T, then what each thread has.
struct GradientLayout {
  int64_t ranks, in, out;        // padded, with room for every list
  int64_t thread_floats, total;

  GradientLayout(const pnb_lora_gradients_params& p, int threads)
      : ranks(padded_rank(p.a.shape[0])), in(padded_columns(p.x.shape[1])), out(padded_columns(p.dy.shape[1])) {
    thread_floats = ranks * (in + out) + kRows * std::max(in, out) + 2 * kRows * ranks;
    total = ranks * out + threads * thread_floats;
  }
};

// Rows [begin, end) share their lists.
void project_rows(const pnb_lora_project_params& p, int64_t begin, int64_t end, const Columns& columns, int threads,
                  Scratch& scratch) {
  int64_t ranks = padded_rank(p.a.shape[0]);
  int64_t thread_floats = kRows * (columns.padded + ranks);
  float* factor = scratch.floats(ranks * columns.padded + threads * thread_floats);
  float* buffers = factor + ranks * columns.padded;
  load_factor(p.a, 0, columns, factor);
  DropoutMask mask(p.dropout);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < threads; ++part) {
    float* rows = buffers + part * thread_floats;
    float* sums = rows + kRows * columns.padded;
    Share share(begin, end, part, threads);
    for (int64_t first = share.first; first < share.last; first += kRows) {
      int64_t count = std::min(kRows, share.last - first);
      widen(p.x, pnb_layer_norm{}, first, count, columns, mask, rows);
      dot_rows(rows, factor, columns.padded, ranks, sums);
      store_ranks(sums, 1.0f, p.h, first, count);
    }
  }
}

void gradients_of_rows(const pnb_lora_gradients_params& p, int64_t begin, int64_t end, const Columns& in, const Columns& out,
                       int threads) {
  GradientLayout layout(p, threads);
  float* factor = static_cast<float*>(p.workspace.data);
  float* buffers = factor + layout.ranks * layout.out;
  load_factor(p.b, 1, out, factor);
  DropoutMask mask(p.dropout);
  DropoutMask none{pnb_dropout{}};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < threads; ++part) {
    float* da = buffers + part * layout.thread_floats;  // [ranks, in]
    float* db = da + layout.ranks * layout.in;          // [ranks, out]
    float* rows = db + layout.ranks * layout.out;
    float* h = rows + kRows * std::max(layout.in, layout.out);
    float* dh = h + kRows * layout.ranks;
    std::fill_n(da, layout.ranks * in.padded, 0.0f);
    std::fill_n(db, layout.ranks * out.padded, 0.0f);
    Share share(begin, end, part, threads);
    for (int64_t first = share.first; first < share.last; first += kRows) {
      int64_t count = std::min(kRows, share.last - first);
      widen(p.dy, pnb_layer_norm{}, first, count, out, none, rows);
      dot_rows(rows, factor, out.padded, layout.ranks, dh);
      store_ranks(dh, p.scaling, p.dh, first, count);
      load_ranks(p.h, first, count, h);
      add_outer(db, h, rows, out.padded, layout.ranks);
      widen(p.x, p.norm, first, count, in, mask, rows);
      add_outer(da, dh, rows, in.padded, layout.ranks);
    }
  }
  for (int64_t part = 0; part < threads; ++part) {
    const float* da = buffers + part * layout.thread_floats;
    add_gradient(da, 1.0f, in, p.da, 0);
    add_gradient(da + layout.ranks * layout.in, p.scaling, out, p.db, 1);
  }
}

}  // namespace

void lora_project(const pnb_lora_project_params& first, int threads, Scratch& scratch) {
  for (const pnb_lora_project_params* p = &first; p != nullptr; p = p->next) {
    int64_t m = p->x.shape[0], in = p->a.shape[1];
    BlockLists lists("lora_project", p->x_blocks, m, in);
    for (int64_t begin = 0, end; begin < m; begin = end) {
      end = lists.end_of_list(begin, m);
      project_rows(*p, begin, end, Columns(lists, begin, in), threads, scratch);
    }
  }
}

uint64_t lora_gradients_workspace(const pnb_lora_gradients_params& first, int threads) {
  uint64_t bytes = 0;
  for (const pnb_lora_gradients_params* p = &first; p != nullptr; p = p->next) {
    bytes = std::max(bytes, GradientLayout(*p, threads).total * sizeof(float));
  }
  return bytes;
}

void lora_gradients(const pnb_lora_gradients_params& first, int threads) {
  for (const pnb_lora_gradients_params* next = &first; next != nullptr; next = next->next) {
    pnb_lora_gradients_params p = *next;
    p.workspace = first.workspace;
    int64_t m = p.x.shape[0], in = p.a.shape[1], out = p.b.shape[0];
    BlockLists x_lists("lora_gradients", p.x_blocks, m, in);
    BlockLists dy_lists("lora_gradients", p.dy_blocks, m, out);
    for (int64_t begin = 0, end; begin < m; begin = end) {
      end = std::min(x_lists.end_of_list(begin, m), dy_lists.end_of_list(begin, m));
      gradients_of_rows(p, begin, end, Columns(x_lists, begin, in), Columns(dy_lists, begin, out), threads);
    }
  }
}

}  // namespace pnb::cpu
