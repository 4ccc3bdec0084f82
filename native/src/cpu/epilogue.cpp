#include "cpu/epilogue.h"

#include <cstring>

#include "cpu/bf16.h"
#include "cpu/simd.h"

namespace pnb::cpu {

namespace {

constexpr int64_t kMaskLanes = 16;  // columns whose mask bits are handled at once

// A value is kept unless it compares below or equal to 0, so NaN is.
inline float relu(float value) { return value <= 0.0f ? 0.0f : value; }

inline uint16_t relu(uint16_t value) {
  bool nan = (value & 0x7fffu) > 0x7f80u;
  return static_cast<int16_t>(value) > 0 || nan ? value : uint16_t{0};
}

inline bool above_zero(float value) { return value > 0.0f; }

// As a signed number a bf16 pattern is ordered like its value; patterns above 0x7f80 are NaN.
inline bool above_zero(uint16_t value) { return static_cast<int16_t>(value) > 0 && value <= 0x7f80u; }

template <typename T>
inline __attribute__((always_inline)) void mask_body(const T* row, uint8_t* mask, int64_t columns) {
  int64_t whole = columns / 8;
  for (int64_t byte = 0; byte < whole; ++byte) {
    unsigned bits = 0;
    for (int bit = 0; bit < 8; ++bit) bits |= static_cast<unsigned>(above_zero(row[byte * 8 + bit])) << bit;
    mask[byte] = static_cast<uint8_t>(bits);
  }
  if (columns % 8 != 0) {
    unsigned bits = 0;
    for (int64_t j = whole * 8; j < columns; ++j) bits |= static_cast<unsigned>(above_zero(row[j])) << (j % 8);
    mask[whole] = static_cast<uint8_t>(bits);
  }
}

// Two bytes of the mask are spread over the lanes of a vector, each lane looks at its own bit.
template <typename Bits, typename T>
inline __attribute__((always_inline)) void keep_body(T* row, const uint8_t* mask, int64_t columns) {
  typedef Bits Lanes __attribute__((vector_size(kMaskLanes * sizeof(Bits)), aligned(alignof(Bits)), may_alias));
  const Lanes bit = {1u, 2u, 4u, 8u, 16u, 32u, 64u, 128u, 256u, 512u, 1024u, 2048u, 4096u, 8192u, 16384u, 32768u};
  int64_t j = 0;
  for (; j + kMaskLanes <= columns; j += kMaskLanes) {
    uint16_t word;
    std::memcpy(&word, mask + j / 8, sizeof word);
    Lanes* values = reinterpret_cast<Lanes*>(row + j);
    *values &= (bit & static_cast<Bits>(word)) != 0;
  }
  for (; j < columns; ++j) row[j] = (mask[j / 8] >> (j % 8)) & 1 ? row[j] : T(0);
}

}  // namespace

PNB_MULTIVERSION void add_low_rank(float* row, const float* h, const float* b, int64_t rank, int64_t b_row, int64_t columns) {
  int64_t r = 0;
  for (; r + 4 <= rank; r += 4) {  // four terms for each time that the row is read and written
    const float* b0 = b + r * b_row;
    const float* b1 = b0 + b_row;
    const float* b2 = b1 + b_row;
    const float* b3 = b2 + b_row;
    float h0 = h[r], h1 = h[r + 1], h2 = h[r + 2], h3 = h[r + 3];
    for (int64_t j = 0; j < columns; ++j) row[j] += h0 * b0[j] + h1 * b1[j] + (h2 * b2[j] + h3 * b3[j]);
  }
  for (; r < rank; ++r) {
    const float* b0 = b + r * b_row;
    for (int64_t j = 0; j < columns; ++j) row[j] += h[r] * b0[j];
  }
}

PNB_MULTIVERSION void add_row(float* row, const float* other, int64_t columns) {
  for (int64_t j = 0; j < columns; ++j) row[j] += other[j];
}

PNB_MULTIVERSION void add_bf16_row(float* row, const uint16_t* other, int64_t columns) {
  for (int64_t j = 0; j < columns; ++j) row[j] += bf16_to_float(other[j]);
}

PNB_MULTIVERSION void relu_row(float* row, int64_t columns) {
  for (int64_t j = 0; j < columns; ++j) row[j] = relu(row[j]);
}

PNB_MULTIVERSION void relu_bf16_row(uint16_t* row, int64_t columns) {
  for (int64_t j = 0; j < columns; ++j) row[j] = relu(row[j]);
}

PNB_MULTIVERSION void mask_row(const float* row, uint8_t* mask, int64_t columns) { mask_body(row, mask, columns); }

PNB_MULTIVERSION void mask_bf16_row(const uint16_t* row, uint8_t* mask, int64_t columns) { mask_body(row, mask, columns); }

PNB_MULTIVERSION void keep_row(float* row, const uint8_t* mask, int64_t columns) { keep_body<uint32_t>(row, mask, columns); }

PNB_MULTIVERSION void keep_bf16_row(uint16_t* row, const uint8_t* mask, int64_t columns) {
  keep_body<uint16_t>(row, mask, columns);
}

}  // namespace pnb::cpu
