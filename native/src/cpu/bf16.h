// bf16 and f16 as bit patterns.
#pragma once

#include <cstdint>
#include <cstring>

namespace pnb::cpu {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bf16_to_float(uint16_t value) { return from_bits(static_cast<uint32_t>(value) << 16); }

// Rounds to nearest even; NaN stays a quiet NaN.
inline uint16_t float_to_bf16(float value) {
  uint32_t bits = to_bits(value);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

inline float f16_to_float(uint16_t value) {
  uint32_t sign = static_cast<uint32_t>(value & 0x8000u) << 16;
  uint32_t magnitude = value & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Shifting the exponent by a multiplication handles subnormal numbers as well.
  float scaled = from_bits(magnitude << 13) * 0x1p112f;
  return from_bits(sign | to_bits(scaled));
}

}  // namespace pnb::cpu
