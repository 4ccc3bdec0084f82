#include "cpu/block_mass.h"

#include <algorithm>

#include "core/tensor.h"
#include "cpu/lanes.h"
#include "cpu/simd.h"

// Activations are read once, in strips of columns that a thread sums on its own: the order of a sum does not depend on the
// number of threads. A few dozen rows are summed at a time, so that a sum over thousands of tokens keeps its last digits.

namespace pnb::cpu {

namespace {

constexpr int64_t kStrip = 128;  // columns: a multiple of every block size; its sums stay in the first-level cache
constexpr int64_t kSumRows = 64;

// A strip's sums over rows: of max(0, x) or of bits, and of the rows above 0.
struct Sums {
  float mass[kStrip];
  float fired[kStrip];
};

template <typename T>
inline __attribute__((always_inline)) void sum_body(const T* x, int64_t stride, int64_t rows, int64_t columns, Sums& sums) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    Vector mass{}, fired{};
    for (int64_t i = 0; i < rows; ++i) {
      Vector value;
      load_lanes(x + i * stride + j, value);
      auto above = value > 0.0f;  // not for NaN
      mass += (Vector)((LaneBits)value & (LaneBits)above);
      fired -= __builtin_convertvector(above, Vector);
    }
    *reinterpret_cast<Vector*>(sums.mass + j) += mass;
    *reinterpret_cast<Vector*>(sums.fired + j) += fired;
  }
}

PNB_MULTIVERSION void sum_f32(const void* x, int64_t stride, int64_t rows, int64_t columns, Sums& sums) {
  sum_body(static_cast<const float*>(x), stride, rows, columns, sums);
}

PNB_MULTIVERSION void sum_bf16(const void* x, int64_t stride, int64_t rows, int64_t columns, Sums& sums) {
  sum_body(static_cast<const uint16_t*>(x), stride, rows, columns, sums);
}

PNB_MULTIVERSION void sum_bits(const void* mask, int64_t stride, int64_t rows, int64_t columns, Sums& sums) {
  const LaneBits bit = {1u, 2u, 4u, 8u, 16u, 32u, 64u, 128u, 256u, 512u, 1024u, 2048u, 4096u, 8192u, 16384u, 32768u};
  for (int64_t j = 0; j < columns; j += kLanes) {
    LaneBits count{};
    for (int64_t i = 0; i < rows; ++i) {
      const uint8_t* bytes = static_cast<const uint8_t*>(mask) + i * stride + j / 8;
      uint32_t word = bytes[0] | bytes[1] << 8;
      count -= (LaneBits)((bit & word) != 0);
    }
    Vector counted = __builtin_convertvector(count, Vector);
    *reinterpret_cast<Vector*>(sums.mass + j) += counted;
    *reinterpret_cast<Vector*>(sums.fired + j) += counted;
  }
}

float* floats(const pnb_tensor& t) { return static_cast<float*>(t.data); }

}  // namespace

void activation_mass(const pnb_activation_mass_params& p, int threads) {
  bool bits = present(p.relu_mask);
  const pnb_tensor& given = bits ? p.relu_mask : p.x;
  int64_t m = given.shape[0];
  int64_t n = bits ? given.shape[1] * 8 : given.shape[1];
  int64_t valid = present(p.valid_rows) ? std::min<int64_t>(*static_cast<const int32_t*>(p.valid_rows.data), m) : m;
  int64_t lists = m / p.rows_per_list + (m % p.rows_per_list > 0 ? 1 : 0);
  int64_t blocks = n / p.block_size;
  auto sum = bits ? sum_bits : given.dtype == PNB_DTYPE_F32 ? sum_f32 : sum_bf16;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < n; first += kStrip) {
    int64_t columns = std::min(kStrip, n - first);
    Sums all{};
    for (int64_t list = 0; list < lists; ++list) {
      Sums sums{};
      int64_t end = std::min((list + 1) * p.rows_per_list, valid);
      for (int64_t row = list * p.rows_per_list; row < end; row += kSumRows) {
        const char* start = static_cast<const char*>(given.data) + row * given.stride[0] * dtype_size(given.dtype) +
                            (bits ? first / 8 : first * dtype_size(given.dtype));
        Sums piece{};
        sum(start, given.stride[0], std::min(kSumRows, end - row), columns, piece);
        for (int64_t j = 0; j < columns; ++j) {
          sums.mass[j] += piece.mass[j];
          sums.fired[j] += piece.fired[j];
        }
      }
      for (int64_t j = 0; j < columns; ++j) {
        if (present(p.norms)) sums.mass[j] *= floats(p.norms)[first + j];
        all.mass[j] += sums.mass[j];
        all.fired[j] += sums.fired[j];
      }
      for (int64_t block = 0; present(p.block_mass) && block < columns / p.block_size; ++block) {
        float mass = 0;
        for (int64_t j = 0; j < p.block_size; ++j) mass += sums.mass[block * p.block_size + j];
        floats(p.block_mass)[list * blocks + first / p.block_size + block] = mass;
      }
    }
    for (int64_t j = 0; j < columns; ++j) {
      if (present(p.neuron_mass)) floats(p.neuron_mass)[first + j] += all.mass[j];
      if (present(p.neuron_fired)) floats(p.neuron_fired)[first + j] += all.fired[j];
    }
  }
}

uint64_t predict_mass_workspace(const pnb_predict_mass_params& p) {
  return static_cast<uint64_t>(p.pooled.shape[0] * (p.a.shape[0] + p.b.shape[0])) * sizeof(float);
}

void predict_mass(Matmul& matmul, const pnb_predict_mass_params& p, int threads) {
  int64_t rows = p.pooled.shape[0], rank = p.a.shape[0], units = p.b.shape[0], h = p.a.shape[1];
  int64_t scores = p.scores.shape[1];
  if (units == 0) return;
  float* z = static_cast<float*>(p.workspace.data);  // [rows, rank]
  float* unit = z + rows * rank;                     // [rows, units]
  auto matrix = [](void* data, int64_t r, int64_t c, int64_t row_stride, int64_t column_stride) {
    return plain_matrix(data, PNB_DTYPE_F32, r, c, row_stride, column_stride);
  };
  Fusion bias;
  bias.bias = floats(p.bias);
  matmul.run(matrix(p.pooled.data, rows, h, p.pooled.stride[0], 1), matrix(p.a.data, h, rank, 1, h),
             matrix(z, rows, rank, rank, 1));
  matmul.run(matrix(z, rows, rank, rank, 1), matrix(p.b.data, rank, units, 1, rank), matrix(unit, rows, units, units, 1), bias);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t score = 0; score < scores; ++score) {
    for (int64_t list = 0; list < p.scores.shape[0]; ++list) {
      int64_t end = std::min((list + 1) * p.pooled_per_list, rows);
      float sum = 0;
      for (int64_t row = list * p.pooled_per_list; row < end; ++row) {
        for (int64_t j = score * p.units_per_score; j < (score + 1) * p.units_per_score; ++j) {
          float value = unit[row * units + j];
          if (value > 0) sum += present(p.norms) ? value * floats(p.norms)[j] : value;
        }
      }
      floats(p.scores)[list * scores + score] = sum;
    }
  }
}

void relative_mass(const pnb_relative_mass_params& p) {
  for (int64_t block = 0; block < p.scores.shape[1]; ++block) {
    const float* mass = floats(p.neuron_mass) + block * p.block_size;
    float sum = 0, largest = 0;
    for (int32_t j = 0; j < p.block_size; ++j) {
      sum += mass[j];
      largest = std::max(largest, mass[j]);
    }
    int64_t small = 0;
    for (int32_t j = 0; j < p.block_size; ++j) small += mass[j] < p.threshold * largest;
    floats(p.scores)[block] = static_cast<float>(small) >= p.share * static_cast<float>(p.block_size) ? 0.0f : sum;
  }
}

}  // namespace pnb::cpu
