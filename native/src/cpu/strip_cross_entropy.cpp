#include "cpu/strip_cross_entropy.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <vector>

#include "core/tensor.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"
#include "cpu/strip_kernel.h"

// Attention's way of doing softmax(x * W^T) * W: a thread has a part of the vocabulary and takes it in chunks. A chunk's logits
// become exponentials relative to the highest logit so far, their sums and their product with the chunk's rows of W go on from
// chunk to chunk and shrink when a higher logit turns up, and the threads' parts are put together at the end. A chunk's logits
// are 360 KB; a gradient is rounded to bf16 once.
//
// A thread that is done with its part takes half of another's rows for the rest of theirs, in the other's sums: a row's chunks
// have one order, whoever takes them, so that equal threads give equal bits.

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

// The workspace: what all threads read, then what each has; maxima and sums are those of a part of the vocabulary.
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

// Some rows of a block and the chunks of one part of the vocabulary that they have not met: [next, end).
struct Job {
  int64_t part, first, rows, next, end;
};

// Jobs that threads take, and halve for those who find none left.
class Jobs {
 public:
  explicit Jobs(std::vector<Job> jobs) : open_(std::move(jobs)) {}

  // Waits for a job; none when all are done.
  std::optional<Job> take() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.wait(lock, [&] { return !open_.empty() || working_ == 0; });
    --waiting_;
    if (open_.empty()) return std::nullopt;
    Job job = open_.back();
    open_.pop_back();
    ++working_;
    return job;
  }

  // Between two chunks: gives away half of a job's rows where somebody waits for them.
  void share(Job& job) {
    if (waiting_.load(std::memory_order_relaxed) == 0 || job.rows < 2 * kStripRows) return;
    std::lock_guard lock(mutex_);
    if (waiting_ <= static_cast<int>(open_.size())) return;
    int64_t kept = groups_of(job.rows) / 2 * kStripRows;
    open_.push_back({job.part, job.first + kept, job.rows - kept, job.next, job.end});
    job.rows = kept;
    changed_.notify_one();
  }

  void done() {
    std::lock_guard lock(mutex_);
    if (--working_ == 0) changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Job> open_;
  std::atomic<int> waiting_ = 0;
  int working_ = 0;
};

// One block of rows of the head.
struct Block {
  const pnb_linear_cross_entropy_params& p;
  const PackedWeight& weight;
  const Buffers& buffers;
  int64_t first, rows;
  bool gradient;

  const int32_t* row() const { return static_cast<const int32_t*>(p.rows.data) + first; }
  const int32_t* target() const { return static_cast<const int32_t*>(p.targets.data) + first; }

  // Asks oneDNN: not for every element.
  static int64_t tile_bytes(const Matrix& b) { return b.desc.get_padded_dims()[0] / 2 * kPairBytes; }

  void load(int64_t i, int64_t threads) const {
    const uint16_t* source = static_cast<const uint16_t*>(p.x.data) + row()[i] * p.x.stride[0];
    uint16_t* d = buffers.x + i * buffers.width;
    std::copy_n(source, weight.in, d);
    std::fill(d + weight.in, d + buffers.width, uint16_t{0});
    for (int64_t part = 0; part < threads; ++part) {
      buffers.parts(part)[i] = {0.0, kLowest};
      std::fill_n(buffers.sums(part) + i * buffers.columns, gradient ? buffers.columns : 0, 0.0f);
    }
  }

  // All of a job but what is given away meanwhile. Logits and exponentials are the thread's, maxima and sums the part's.
  void run(int64_t thread, Job job, Jobs& jobs) const {
    int64_t forward_tile = tile_bytes(weight.forward), backward_tile = gradient ? tile_bytes(weight.backward) : 0;
    const char* forward = static_cast<const char*>(weight.forward.data);
    while (job.next < job.end) {
      jobs.share(job);
      int64_t chunk = job.next, count = std::min(kChunk, job.end - chunk);
      job.next += kChunk;
      const uint16_t* x = buffers.x + job.first * buffers.width;
      float* sums = buffers.sums(job.part) + job.first * buffers.columns;
      float* logits = buffers.logits(thread) + job.first * kChunk;
      uint16_t* exponentials = buffers.exponentials(thread) + job.first * kChunk;
      const char* ahead = forward + chunk / kColumnTile * forward_tile;
      for (int64_t j = 0; j < count; j += kColumnTile) {
        const char* b = ahead;
        ahead = j + kColumnTile < count ? b + forward_tile : gradient ? backward(chunk) : b;
        multiply<false>(logits + j, kChunk, x, buffers.width, job.rows, b, buffers.width / 2, ahead);
      }
      for (int64_t i = 0; i < job.rows; ++i) {
        int64_t at = target()[job.first + i] - chunk;
        if (at >= 0 && at < count) buffers.target[job.first + i] = logits[i * kChunk + at];
        take_in(logits + i * kChunk, count, buffers.parts(job.part)[job.first + i], sums + i * buffers.columns,
                gradient ? buffers.columns : 0, exponentials + i * kChunk);
      }
      if (!gradient) continue;
      ahead = backward(chunk);
      for (int64_t j = 0; j < buffers.columns; j += kColumnTile) {
        const char* b = ahead;
        ahead = j + kColumnTile < buffers.columns ? b + backward_tile
                : chunk + kChunk < job.end        ? forward + (chunk + kChunk) / kColumnTile * forward_tile
                                                  : b;
        multiply<true>(sums + j, buffers.columns, exponentials, kChunk, job.rows, b, (count + 1) / 2, ahead);
      }
    }
  }

  // Rows of W as pairs, from that of `token` on.
  const char* backward(int64_t token) const { return static_cast<const char*>(weight.backward.data) + token / 2 * kPairBytes; }

  // Puts a row's parts together: writes its gradient, returns its loss.
  PNB_AVX512_BF16 double finish(int64_t i, int64_t threads) const {
    float maximum = kLowest;
    for (int64_t thread = 0; thread < threads; ++thread) maximum = std::max(maximum, buffers.parts(thread)[i].maximum);
    std::vector<float> factors(threads);
    double sum = 0;
    for (int64_t thread = 0; thread < threads; ++thread) {
      double shrink = std::exp(static_cast<double>(buffers.parts(thread)[i].maximum) - maximum);
      sum += buffers.parts(thread)[i].sum * shrink;
      factors[thread] = static_cast<float>(shrink);
    }
    if (gradient) {
      float scale = *static_cast<const float*>(p.grad_scale.data);
      for (float& factor : factors) factor = static_cast<float>(factor * (scale / sum));
      // W's row of the target lies in one half of the pairs of its tiles.
      __m512i half = _mm512_set1_epi32(target()[i] % 2 == 0 ? 16 : 0), upper = _mm512_set1_epi32(~0xffff);
      const char* pairs = backward(target()[i]);
      int64_t tile = tile_bytes(weight.backward);
      uint16_t* d = static_cast<uint16_t*>(p.dx.data) + row()[i] * p.dx.stride[0];
      for (int64_t j = 0; j < weight.in; j += kLanes) {
        __m512 total = _mm512_setzero_ps();
        for (int64_t thread = 0; thread < threads; ++thread) {
          __m512 sums = _mm512_loadu_ps(buffers.sums(thread) + i * buffers.columns + j);
          total = _mm512_fmadd_ps(_mm512_set1_ps(factors[thread]), sums, total);
        }
        __m512i words = _mm512_loadu_si512(pairs + j / kColumnTile * tile + j % kColumnTile * 4);
        __m512 w = _mm512_castsi512_ps(_mm512_and_si512(_mm512_sllv_epi32(words, half), upper));
        total = _mm512_fnmadd_ps(_mm512_set1_ps(scale), w, total);
        __mmask16 here = static_cast<__mmask16>(weight.in - j >= kLanes ? 0xffff : (1 << (weight.in - j)) - 1);
        _mm256_mask_storeu_epi16(d + j, here, (__m256i)_mm512_cvtneps_pbh(total));
      }
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
    std::vector<Job> parts;
    for (int64_t part = 0; part < threads; ++part) {
      parts.push_back({part, 0, rows.rows, strips * part / threads * kColumnTile,
                       std::min<int64_t>(weight.out, strips * (part + 1) / threads * kColumnTile)});
    }
    Jobs jobs(std::move(parts));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows.rows; ++i) rows.load(i, threads);
      while (std::optional<Job> job = jobs.take()) {
        rows.run(omp_get_thread_num(), *job, jobs);
        jobs.done();
      }
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows.rows; ++i) losses[i] = rows.finish(i, threads);
    }
    for (int64_t i = 0; i < rows.rows; ++i) loss += losses[i];
  }
  return loss;
}

}  // namespace pnb::cpu
