#include "cpu/strip_product.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/tensor.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"
#include "cpu/shares.h"
#include "cpu/strip_kernel.h"

// What follows a product (terms, bias, ReLU and its mask, residual, rounding) is done with the sums before they are stored, where
// oneDNN would need an f32 product and a second pass; and listed neurons are read where the packed weight has them.

namespace pnb::cpu {

namespace {

constexpr int64_t kRows = kStripRows;
// A panel of rows of a, which meets one strip after another, stays in the second-level cache beside two of them.
constexpr int64_t kPanelBytes = 600 << 10;
// At most: with a strip of 768 rows of b, the least that a thread takes, they are a tenth of a millisecond.
constexpr int64_t kPanelGroups = 44;

// A tile's columns of d, or a half's.
struct Strip {
  const char* b;
  int64_t column, neuron;
  bool whole;
};

// Pairs of columns of a, and the pairs of rows of b that they meet.
struct Pairs {
  int64_t a, b, count;
};

struct Job {
  const StripProduct& product;
  std::vector<Strip> strips;
  std::vector<Pairs> pairs;
  int64_t groups;  // of kRows rows

  explicit Job(const StripProduct& given) : product(given), groups((given.rows + kRows - 1) / kRows) {
    int64_t tile_bytes = given.b.desc.get_padded_dims()[0] / 2 * kPairBytes;
    for (const Run& run : given.columns) {
      for (int64_t done = 0, count; done < run.count; done += count) {
        int64_t neuron = run.neuron + done, in_tile = neuron % kColumnTile;
        count = std::min(run.count - done, kColumnTile - in_tile);
        const char* b = static_cast<const char*>(given.b.data) + neuron / kColumnTile * tile_bytes + in_tile * 4;
        strips.push_back({b, run.column + done, neuron, count == kColumnTile});
      }
    }
    for (const Run& run : given.inner) pairs.push_back({run.column / 2, run.neuron / 2, run.count / 2});
  }
};

template <typename T>
T* element(const pnb_tensor& t, int64_t row, int64_t column) {
  return static_cast<T*>(t.data) + row * t.stride[0] + column;
}

PNB_AVX512_BF16 inline __attribute__((always_inline)) __m512 load_bf16(const uint16_t* s) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(s))), 16));
}

// What follows a product, of `count` rows from `row` on.
template <int W>
PNB_AVX512_BF16 inline __attribute__((always_inline)) void finish(const StripProduct& product, const Strip& strip, int64_t row,
                                                                  int64_t count, __m512 (&sum)[kRows][W]) {
  const pnb_gemm_params& p = product.p;
  for (int t = 0; t < p.low_rank_count; ++t) {
    const pnb_low_rank& term = p.low_rank[t];
    int64_t rank = term.b.shape[1], width = term.b.shape[0];
    const float* h[kRows];
    for (int64_t i = 0; i < kRows; ++i) h[i] = element<const float>(term.h, row + std::min(i, count - 1), 0);
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) {
      int64_t column = strip.neuron + w * kLanes - term.column;
      if (column < 0 || column >= width) continue;
      __m512 added[kRows] = {};
      for (int64_t r = 0; r < rank; ++r) {
        __m512 factor = _mm512_loadu_ps(product.factors[t] + r * width + column);
#pragma GCC unroll 6
        for (int i = 0; i < kRows; ++i) added[i] = _mm512_fmadd_ps(_mm512_set1_ps(h[i][r]), factor, added[i]);
      }
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) sum[i][w] = _mm512_add_ps(sum[i][w], added[i]);
    }
  }
#pragma GCC unroll 4
  for (int w = 0; w < W; ++w) {
    int64_t neuron = strip.neuron + w * kLanes, column = strip.column + w * kLanes;
    int64_t mask_byte = (product.compact_mask ? column : neuron) / 8;
    __m512 bias = present(p.bias) ? _mm512_loadu_ps(static_cast<const float*>(p.bias.data) + neuron) : _mm512_setzero_ps();
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      if (i >= count) break;
      __m512 value = _mm512_add_ps(sum[i][w], bias);
      if (p.epilogue == PNB_EPILOGUE_RELU) {
        __mmask16 below = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_LE_OQ);  // not NaN
        value = _mm512_mask_mov_ps(value, below, _mm512_setzero_ps());
        if (present(p.relu_mask)) {
          __mmask16 bits = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_GT_OQ);
          std::memcpy(element<uint8_t>(p.relu_mask, row + i, mask_byte), &bits, sizeof bits);
        }
      } else if (p.epilogue == PNB_EPILOGUE_DRELU) {
        __mmask16 bits;
        std::memcpy(&bits, element<uint8_t>(p.relu_mask, row + i, mask_byte), sizeof bits);
        value = _mm512_maskz_mov_ps(bits, value);
      }
      if (present(p.residual)) {
        value = _mm512_add_ps(value, p.residual.dtype == PNB_DTYPE_F32
                                         ? _mm512_loadu_ps(element<float>(p.residual, row + i, column))
                                         : load_bf16(element<uint16_t>(p.residual, row + i, column)));
      }
      if (p.d.dtype == PNB_DTYPE_F32) {
        _mm512_storeu_ps(element<float>(p.d, row + i, column), value);
      } else {
        auto* d = reinterpret_cast<__m256i*>(element<uint16_t>(p.d, row + i, column));
        _mm256_storeu_si256(d, (__m256i)_mm512_cvtneps_pbh(value));
      }
    }
  }
}

// Groups [begin, end) of rows.
template <int W>
PNB_AVX512_BF16 void run_strip(const Job& job, const Strip& strip, const char* ahead, int64_t begin, int64_t end) {
  const StripProduct& product = job.product;
  const char* a = element<const char>(product.p.a, 0, 0);
  int64_t row_bytes = product.p.a.stride[0] * 2;
  for (int64_t group = begin; group < end; ++group) {
    int64_t row = product.first + group * kRows;
    int64_t count = std::min(kRows, product.first + product.rows - row);
    int64_t to_next = (group + 1 < end ? kRows : (begin - group) * kRows) * row_bytes;
    StripRows rows(a, row_bytes, row, count, to_next);
    __m512 sum[kRows][W];
    clear<W>(sum);
    for (const Pairs& run : job.pairs) {
      int64_t skipped = run.b * kPairBytes;
      add_pairs<W>(sum, rows, run.a * 4, strip.b + skipped, run.count, {ahead + skipped, group - begin, end - begin});
    }
    finish<W>(product, strip, row, count, sum);
  }
}

void run_strip(const Job& job, const Strip& strip, const char* ahead, int64_t begin, int64_t end) {
  strip.whole ? run_strip<4>(job, strip, ahead, begin, end) : run_strip<2>(job, strip, ahead, begin, end);
}

}  // namespace

bool StripProduct::serves(const pnb_gemm_params& p, const Matrix& b) {
  if (!has_avx512_bf16() || p.a.dtype != PNB_DTYPE_BF16 || !PackedWeight::tiled(b)) return false;
  auto whole = [](int64_t columns, int64_t multiple) { return columns % multiple == 0; };
  if (p.a.stride[1] != 1 || !whole(b.desc.get_dims()[0], 2) || !whole(b.desc.get_dims()[1], kColumnTile / 2)) return false;
  for (int t = 0; t < p.low_rank_count; ++t) {
    const pnb_low_rank& term = p.low_rank[t];
    if (term.dropout.p != 0.0f || !whole(term.column, kLanes) || !whole(term.b.shape[0], kLanes)) return false;
  }
  return true;
}

void StripProduct::run(int threads) const {
  Job job(*this);
  int64_t strips = static_cast<int64_t>(job.strips.size());
  int64_t most = std::clamp<int64_t>(kPanelBytes / std::max<int64_t>(p.a.shape[1] * 2 * kRows, 1), 1, kPanelGroups);
  int64_t panels = (job.groups + most - 1) / most;
  // Panel by panel: a thread has rows of d, and mostly those that it has in the passes before and after.
  Shares shares(strips * panels, threads);
#pragma omp parallel num_threads(threads)
  for (int64_t next; (next = shares.take(omp_get_thread_num())) >= 0;) {
    int64_t panel = next / strips, strip = next % strips;
    const Strip& ahead = job.strips[(strip + 1) % strips];
    run_strip(job, job.strips[strip], ahead.b, job.groups * panel / panels, job.groups * (panel + 1) / panels);
  }
}

}  // namespace pnb::cpu
