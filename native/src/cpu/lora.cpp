#include "cpu/lora.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "cpu/block_lists.h"
#include "cpu/convert.h"
#include "cpu/philox.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

// Every thread takes a run of tokens, sixteen at a time, and reads each of their rows once: dy for dh and dB, x, which all
// adapters of a chain share, for dA. Each sums dA and dB of its own, and these are added in the order of the threads, so equal
// threads give equal bits. Factors lie as [rank, columns], with ranks padded to 4 and columns to 16 by zeros. Rows that share
// their lists of blocks are one pass, over factors and sums that are as compact as the rows.
//
// Memory is what these passes wait for: while sixteen rows are looked at, the next sixteen come to the second-level cache.

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

// Brings a row to the second-level cache.
void prefetch_row(const char* row, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(row + at, 0, 2);
}

// A row becomes its layer norm.
PNB_MULTIVERSION void normalise(float* row, float mean, float rstd, const float* gamma, const float* beta, int64_t count) {
  for (int64_t c = 0; c < count; ++c) row[c] = (row[c] - mean) * rstd * gamma[c] + beta[c];
}

// Rows [first, first + count) of t, or of its norm where there is one, in f32 with dropout, as [kRows, padded columns]; what is
// missing is zero. The rows behind them, up to `last`, are read next.
void widen(const pnb_tensor& t, const pnb_layer_norm& norm, int64_t first, int64_t count, int64_t last, const Columns& columns,
           const DropoutMask& mask, float* d) {
  int64_t size = dtype_size(t.dtype);
  for (int64_t i = 0; i < count; ++i) {
    float* row = d + i * columns.padded;
    const char* source = static_cast<const char*>(t.data) + (first + i) * t.stride[0] * size;
    if (first + i + kRows < last) prefetch_row(source + kRows * t.stride[0] * size, columns.count * size);
    row_to_float(source, t.dtype, row, columns.count);
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

// The rows of x that all adapters of a chain read, widened again only where an adapter drops others of their elements.
struct SharedRows {
  const pnb_tensor& x;
  const pnb_layer_norm& norm;
  const Columns& columns;
  float* rows;         // [kRows, padded columns]
  bool whole = false;  // whether they are there and nothing of them was dropped

  void load(int64_t first, int64_t count, int64_t last, const DropoutMask& mask) {
    if (!whole || mask.active()) widen(x, norm, first, count, last, columns, mask, rows);
    whole = !mask.active();
  }
};

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

template <typename P>
std::vector<const P*> chain_of(const P& first) {
  std::vector<const P*> chain;
  for (const P* p = &first; p != nullptr; p = p->next) chain.push_back(p);
  return chain;
}

// Where the pieces of the gradients' workspace lie, in floats, with room for every list.
struct GradientLayout {
  struct Adapter {
    int64_t ranks;       // padded
    int64_t factor;      // B^T, which all threads read
    int64_t da, db, dh;  // [ranks, in], [ranks, out], [kRows, ranks] of a thread's
  };
  std::vector<Adapter> adapters;
  int64_t rows, h;                 // [kRows, columns of x or dy], [kRows, ranks] of a thread's
  int64_t threads, thread_floats;  // where the threads' pieces begin, and how much each has
  int64_t total;

  GradientLayout(const pnb_lora_gradients_params& first, int thread_count) : threads(0), thread_floats(0) {
    auto take = [](int64_t& next, int64_t count) { return std::exchange(next, next + count); };
    int64_t widest = 0, most_ranks = 0;
    for (const auto* p : chain_of(first)) {
      int64_t ranks = padded_rank(p->a.shape[0]), in = padded_columns(p->x.shape[1]), out = padded_columns(p->dy.shape[1]);
      widest = std::max({widest, in, out});
      most_ranks = std::max(most_ranks, ranks);
      int64_t factor = take(threads, ranks * out), da = take(thread_floats, ranks * in), db = take(thread_floats, ranks * out);
      adapters.push_back({ranks, factor, da, db, take(thread_floats, kRows * ranks)});
    }
    rows = take(thread_floats, kRows * widest);
    h = take(thread_floats, kRows * most_ranks);
    total = threads + thread_count * thread_floats;
  }
};

// Rows [begin, end) share their lists.
void project_rows(const pnb_lora_project_params& first_adapter, int64_t begin, int64_t end, const Columns& columns, int threads,
                  Scratch& scratch) {
  struct Adapter {
    const pnb_lora_project_params& p;
    DropoutMask mask;
    int64_t ranks, factor;
  };
  std::vector<Adapter> adapters;
  int64_t factors = 0, most_ranks = 0;
  for (const auto* p : chain_of(first_adapter)) {
    int64_t ranks = padded_rank(p->a.shape[0]);
    adapters.push_back({*p, DropoutMask(p->dropout), ranks, factors});
    factors += ranks * columns.padded;
    most_ranks = std::max(most_ranks, ranks);
  }
  int64_t thread_floats = kRows * (columns.padded + most_ranks);
  float* factor = scratch.floats(factors + threads * thread_floats);
  for (const Adapter& adapter : adapters) load_factor(adapter.p.a, 0, columns, factor + adapter.factor);
  const pnb_layer_norm none{};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < threads; ++part) {
    float* rows = factor + factors + part * thread_floats;
    float* sums = rows + kRows * columns.padded;
    Share share(begin, end, part, threads);
    for (int64_t first = share.first; first < share.last; first += kRows) {
      int64_t count = std::min(kRows, share.last - first);
      SharedRows x{first_adapter.x, none, columns, rows};
      for (const Adapter& adapter : adapters) {
        x.load(first, count, share.last, adapter.mask);
        dot_rows(rows, factor + adapter.factor, columns.padded, adapter.ranks, sums);
        store_ranks(sums, 1.0f, adapter.p.h, first, count);
      }
    }
  }
}

// Rows [begin, end) share their lists: `in` of x, `outs` of each adapter's dy.
void gradients_of_rows(const pnb_lora_gradients_params& first_adapter, int64_t begin, int64_t end, const Columns& in,
                       std::span<const Columns> outs, int threads) {
  GradientLayout layout(first_adapter, threads);
  float* start = static_cast<float*>(first_adapter.workspace.data);
  std::vector<const pnb_lora_gradients_params*> chain = chain_of(first_adapter);
  for (size_t k = 0; k < chain.size(); ++k) load_factor(chain[k]->b, 1, outs[k], start + layout.adapters[k].factor);
  auto of_thread = [&](int64_t part) { return start + layout.threads + part * layout.thread_floats; };
  DropoutMask none{pnb_dropout{}};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < threads; ++part) {
    float* own = of_thread(part);
    float *rows = own + layout.rows, *h = own + layout.h;
    for (size_t k = 0; k < chain.size(); ++k) {
      const GradientLayout::Adapter& at = layout.adapters[k];
      std::fill_n(own + at.da, at.ranks * in.padded, 0.0f);
      std::fill_n(own + at.db, at.ranks * outs[k].padded, 0.0f);
    }
    Share share(begin, end, part, threads);
    for (int64_t first = share.first; first < share.last; first += kRows) {
      int64_t count = std::min(kRows, share.last - first);
      for (size_t k = 0; k < chain.size(); ++k) {
        const pnb_lora_gradients_params& p = *chain[k];
        const GradientLayout::Adapter& at = layout.adapters[k];
        widen(p.dy, pnb_layer_norm{}, first, count, share.last, outs[k], none, rows);
        dot_rows(rows, start + at.factor, outs[k].padded, at.ranks, own + at.dh);
        store_ranks(own + at.dh, p.scaling, p.dh, first, count);
        load_ranks(p.h, first, count, h);
        add_outer(own + at.db, h, rows, outs[k].padded, at.ranks);
      }
      SharedRows x{first_adapter.x, first_adapter.norm, in, rows};
      for (size_t k = 0; k < chain.size(); ++k) {
        const GradientLayout::Adapter& at = layout.adapters[k];
        x.load(first, count, share.last, DropoutMask(chain[k]->dropout));
        add_outer(own + at.da, own + at.dh, rows, in.padded, at.ranks);
      }
    }
  }
  for (size_t k = 0; k < chain.size(); ++k) {
    const pnb_lora_gradients_params& p = *chain[k];
    for (int64_t part = 0; part < threads; ++part) {
      add_gradient(of_thread(part) + layout.adapters[k].da, 1.0f, in, p.da, 0);
      add_gradient(of_thread(part) + layout.adapters[k].db, p.scaling, outs[k], p.db, 1);
    }
  }
}

}  // namespace

void lora_project(const pnb_lora_project_params& p, int threads, Scratch& scratch) {
  int64_t m = p.x.shape[0], in = p.a.shape[1];
  BlockLists lists("lora_project", p.x_blocks, m, in);
  for (int64_t begin = 0, end; begin < m; begin = end) {
    end = lists.end_of_list(begin, m);
    project_rows(p, begin, end, Columns(lists, begin, in), threads, scratch);
  }
}

uint64_t lora_gradients_workspace(const pnb_lora_gradients_params& p, int threads) {
  return GradientLayout(p, threads).total * sizeof(float);
}

void lora_gradients(const pnb_lora_gradients_params& p, int threads) {
  int64_t m = p.x.shape[0], in = p.a.shape[1];
  BlockLists x_lists("lora_gradients", p.x_blocks, m, in);
  std::vector<BlockLists> dy_lists;
  for (const auto* next : chain_of(p)) dy_lists.emplace_back("lora_gradients", next->dy_blocks, m, next->b.shape[0]);
  for (int64_t begin = 0, end; begin < m; begin = end) {
    end = x_lists.end_of_list(begin, m);
    for (const BlockLists& lists : dy_lists) end = std::min(end, lists.end_of_list(begin, m));
    std::vector<Columns> outs;
    const auto* next = &p;
    for (const BlockLists& lists : dy_lists) {
      outs.emplace_back(lists, begin, next->b.shape[0]);
      next = next->next;
    }
    gradients_of_rows(p, begin, end, Columns(x_lists, begin, in), outs, threads);
  }
}

}  // namespace pnb::cpu
