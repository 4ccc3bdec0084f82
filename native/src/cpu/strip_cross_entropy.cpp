#include "cpu/strip_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/tensor.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"
#include "cpu/strip_kernel.h"

// Attention's way of doing softmax(x * W^T) * W: a thread has a part of the vocabulary and takes it in chunks. A chunk's logits
// become exponentials relative to the highest logit so far, their sums and their product with the chunk's rows of W go on from
// chunk to chunk and shrink when a higher logit turns up, and the threads' parts are put together at the end. A chunk's logits
// are 360 KB; a gradient is rounded to bf16 once.

namespace pnb::cpu {

namespace {

// Rows of a block: 360 KB of x of 768 columns. Of half as many, which read W twice as often, the whole takes 3% longer.
constexpr int64_t kBlockRows = 240;
// Tokens of a chunk: a sum of the second product takes 192 vdpbf16ps for each time that it is loaded and stored.
constexpr int64_t kChunk = 384;
constexpr uint64_t kAlignment = 64;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// A row's softmax over a part of the vocabulary.
struct Part {
  double sum;  // of exponentials relative to the maximum
  float maximum;
};

// The workspace: what all threads read, then what each has.
struct Buffers {
  int64_t width, columns;  // of x and of sums: hidden, rounded up to pairs and to strips
  uint16_t* x;             // [kBlockRows, width]
  float* target;           // [kBlockRows]: the target's logit
  char* of_threads;
  uint64_t thread_bytes, bytes;

  Buffers(void* start, int64_t hidden, int threads) : width(round_up(hidden, 2)), columns(round_up(hidden, kColumnTile)) {
    uint64_t next = 0;
    auto take = [&](uint64_t count) {
      uint64_t taken = next;
      next += (count + kAlignment - 1) / kAlignment * kAlignment;
      return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(start) + taken);
    };
    x = reinterpret_cast<uint16_t*>(take(kBlockRows * width * sizeof(uint16_t)));
    target = reinterpret_cast<float*>(take(kBlockRows * sizeof(float)));
    thread_bytes = kBlockRows * (columns * sizeof(float) + kChunk * (sizeof(float) + sizeof(uint16_t)) + sizeof(Part));
    of_threads = take(thread_bytes * threads);
    bytes = next;
  }

  // [kBlockRows, columns]
  float* sums(int64_t thread) const { return reinterpret_cast<float*>(of_threads + thread * thread_bytes); }
  // [kBlockRows, kChunk], and so are the exponentials
  float* logits(int64_t thread) const { return sums(thread) + kBlockRows * columns; }
  Part* parts(int64_t thread) const { return reinterpret_cast<Part*>(logits(thread) + kBlockRows * kChunk); }
  uint16_t* exponentials(int64_t thread) const { return reinterpret_cast<uint16_t*>(parts(thread) + kBlockRows); }
};

int64_t groups_of(int64_t rows) { return (rows + kStripRows - 1) / kStripRows; }

// c [rows, 64] = or += a * b over pairs of columns of a. `ahead` is read next.
template <bool Add>
PNB_AVX512_BF16 void multiply(float* c, int64_t c_row, const uint16_t* a, int64_t a_row, int64_t rows, const char* b, int64_t pairs,
                              const char* ahead) {
  constexpr int W = 4;
  int64_t groups = groups_of(rows);
  for (int64_t group = 0; group < groups; ++group) {
    int64_t row = group * kStripRows, count = std::min(kStripRows, rows - row);
    int64_t a_bytes = a_row * static_cast<int64_t>(sizeof(uint16_t));
    StripRows strip_rows(a, a_bytes, row, count, (group + 1 < groups ? kStripRows : -row) * a_bytes);
    __m512 sum[kStripRows][W];
    clear<W>(sum);
    add_pairs<W>(sum, strip_rows, 0, b, pairs, {ahead, group, groups});
#pragma GCC unroll 6
    for (int i = 0; i < kStripRows; ++i) {
      if (i >= count) break;
      float* target = c + (row + i) * c_row;
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) {
        _mm512_storeu_ps(target + w * kLanes, Add ? _mm512_add_ps(sum[i][w], _mm512_loadu_ps(target + w * kLanes)) : sum[i][w]);
      }
    }
  }
}

// Takes in a chunk's logits of a row: exponentials [kChunk] relative to the highest logit so far, 0 past the last; `sums` of the
// chunks before shrink to it.
PNB_AVX512_BF16 void take_in(const float* logits, int64_t count, Part& part, float* sums, int64_t columns, uint16_t* exponentials) {
  __m512 highest = _mm512_set1_ps(part.maximum);
  auto lanes_at = [&](int64_t j) {
    return static_cast<__mmask16>(count - j >= kLanes ? 0xffff : count > j ? (1 << (count - j)) - 1 : 0);
  };
  for (int64_t j = 0; j < count; j += kLanes) {
    __m512 value = _mm512_loadu_ps(logits + j);
    highest = _mm512_mask_max_ps(highest, lanes_at(j), value, highest);  // in this order NaN goes
  }
  float maximum = _mm512_reduce_max_ps(highest);
  if (maximum != part.maximum) {
    float shrink = std::exp(part.maximum - maximum);  // 0 for the first chunk, whose sums are 0
    part.sum *= shrink;
    part.maximum = maximum;
    for (int64_t j = 0; j < columns; j += kLanes) {
      _mm512_storeu_ps(sums + j, _mm512_mul_ps(_mm512_loadu_ps(sums + j), _mm512_set1_ps(shrink)));
    }
  }
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < kChunk; j += kLanes) {
    __m512 value = exp_lanes(_mm512_sub_ps(_mm512_loadu_ps(logits + j), _mm512_set1_ps(maximum)));
    value = _mm512_maskz_mov_ps(lanes_at(j), value);
    sum = _mm512_add_ps(sum, value);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(exponentials + j), (__m256i)_mm512_cvtneps_pbh(value));
  }
  part.sum += _mm512_reduce_add_ps(sum);
}

// One block of rows of the head.
struct Block {
  const pnb_linear_cross_entropy_params& p;
  const PackedWeight& weight;
  const Buffers& buffers;
  int64_t first, rows;
  bool gradient;

  const int32_t* row() const { return static_cast<const int32_t*>(p.rows.data) + first; }
  const int32_t* target() const { return static_cast<const int32_t*>(p.targets.data) + first; }

  static int64_t tile_bytes(const Matrix& b) { return b.desc.get_padded_dims()[0] / 2 * kPairBytes; }

  void load(int64_t i) const {
    const uint16_t* source = static_cast<const uint16_t*>(p.x.data) + row()[i] * p.x.stride[0];
    uint16_t* d = buffers.x + i * buffers.width;
    std::copy_n(source, weight.in, d);
    std::fill(d + weight.in, d + buffers.width, uint16_t{0});
  }

  // Vocabulary [begin, end).
  void run(int64_t thread, int64_t begin, int64_t end) const {
    float *sums = buffers.sums(thread), *logits = buffers.logits(thread);
    uint16_t* exponentials = buffers.exponentials(thread);
    Part* parts = buffers.parts(thread);
    std::fill_n(parts, rows, Part{0.0, kLowest});
    std::fill_n(sums, gradient ? rows * buffers.columns : 0, 0.0f);
    int64_t forward_tile = tile_bytes(weight.forward);
    const char* forward = static_cast<const char*>(weight.forward.data);
    for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
      int64_t count = std::min(kChunk, end - chunk);
      const char* ahead = forward + chunk / kColumnTile * forward_tile;
      for (int64_t j = 0; j < count; j += kColumnTile) {
        const char* b = ahead;
        ahead = j + kColumnTile < count ? b + forward_tile : gradient ? backward(chunk) : b;
        multiply<false>(logits + j, kChunk, buffers.x, buffers.width, rows, b, buffers.width / 2, ahead);
      }
      for (int64_t i = 0; i < rows; ++i) {
        int64_t at = target()[i] - chunk;
        if (at >= 0 && at < count) buffers.target[i] = logits[i * kChunk + at];
        take_in(logits + i * kChunk, count, parts[i], sums + i * buffers.columns, gradient ? buffers.columns : 0,
                exponentials + i * kChunk);
      }
      if (!gradient) continue;
      ahead = backward(chunk);
      for (int64_t j = 0; j < buffers.columns; j += kColumnTile) {
        const char* b = ahead;
        ahead = j + kColumnTile < buffers.columns ? b + tile_bytes(weight.backward)
                : chunk + kChunk < end            ? forward + (chunk + kChunk) / kColumnTile * forward_tile
                                                  : b;
        multiply<true>(sums + j, buffers.columns, exponentials, kChunk, rows, b, (count + 1) / 2, ahead);
      }
    }
  }

  // Rows of W from `token` on, an even one, as pairs.
  const char* backward(int64_t token) const { return static_cast<const char*>(weight.backward.data) + token / 2 * kPairBytes; }

  // W[token][column]
  float element(int64_t token, int64_t column) const {
    const char* pair = backward(token) + column / kColumnTile * tile_bytes(weight.backward) + column % kColumnTile * 4;
    return bf16_to_float(reinterpret_cast<const uint16_t*>(pair)[token % 2]);
  }

  // Puts a row's parts together: writes its gradient, returns its loss.
  double finish(int64_t i, int64_t threads) const {
    float maximum = kLowest;
    for (int64_t thread = 0; thread < threads; ++thread) maximum = std::max(maximum, buffers.parts(thread)[i].maximum);
    auto shrink = [&](int64_t thread) { return std::exp(static_cast<double>(buffers.parts(thread)[i].maximum) - maximum); };
    double sum = 0;
    for (int64_t thread = 0; thread < threads; ++thread) sum += buffers.parts(thread)[i].sum * shrink(thread);
    if (gradient) {
      float scale = *static_cast<const float*>(p.grad_scale.data);
      float* total = buffers.sums(0) + i * buffers.columns;
      for (int64_t thread = 0; thread < threads; ++thread) {
        const float* other = buffers.sums(thread) + i * buffers.columns;
        float factor = static_cast<float>(shrink(thread) * scale / sum);
        for (int64_t j = 0; j < weight.in; ++j) total[j] = (thread == 0 ? 0.0f : total[j]) + factor * other[j];
      }
      uint16_t* d = static_cast<uint16_t*>(p.dx.data) + row()[i] * p.dx.stride[0];
      for (int64_t j = 0; j < weight.in; ++j) d[j] = float_to_bf16(total[j] - scale * element(target()[i], j));
    }
    return std::log(sum) + maximum - buffers.target[i];
  }
};

}  // namespace

bool serves_strip_cross_entropy(Matmul& matmul, const pnb_linear_cross_entropy_params& p) {
  // A query tells by its shape alone that dx is wanted.
  bool gradient = p.dx.rank > 0 && (p.weight->uses & PNB_WEIGHT_BACKWARD) != 0;
  return has_avx512_bf16() && p.weight->dtype == PNB_DTYPE_BF16 && PackedWeight::tiled(matmul, *p.weight, PNB_WEIGHT_FORWARD) &&
         (!gradient || PackedWeight::tiled(matmul, *p.weight, PNB_WEIGHT_BACKWARD));
}

uint64_t strip_cross_entropy_workspace(const pnb_linear_cross_entropy_params& p, int threads) {
  return Buffers(nullptr, p.weight->in, threads).bytes;
}

double strip_cross_entropy(const pnb_linear_cross_entropy_params& p, int64_t supervised, int threads) {
  const auto& weight = *static_cast<const PackedWeight*>(p.weight);
  Buffers buffers(p.workspace.data, weight.in, threads);
  int64_t strips = (weight.out + kColumnTile - 1) / kColumnTile;
  int64_t blocks = (groups_of(supervised) * kStripRows + kBlockRows - 1) / kBlockRows;
  double losses[kBlockRows], loss = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t first = groups_of(supervised) * block / blocks * kStripRows;
    int64_t last = std::min(supervised, groups_of(supervised) * (block + 1) / blocks * kStripRows);
    Block rows{p, weight, buffers, first, last - first, present(p.dx)};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows.rows; ++i) rows.load(i);
#pragma omp for schedule(static, 1)
      for (int64_t thread = 0; thread < threads; ++thread) {
        rows.run(thread, strips * thread / threads * kColumnTile,
                 std::min<int64_t>(weight.out, strips * (thread + 1) / threads * kColumnTile));
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows.rows; ++i) losses[i] = rows.finish(i, threads);
    }
    for (int64_t i = 0; i < rows.rows; ++i) loss += losses[i];
  }
  return loss;
}

}  // namespace pnb::cpu
