// Sixteen f32 values as one operand, whatever the processor's vectors are, loaded from and stored as f32 or bf16.
#pragma once

#include <cstdint>

#include "cpu/bf16.h"

namespace pnb::cpu {

constexpr int64_t kLanes = 16;

// One AVX-512 register, two of AVX2, four of SSE.
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t LaneBits __attribute__((vector_size(64)));
typedef uint16_t LaneHalves __attribute__((vector_size(32), aligned(2), may_alias));

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Vectors go by reference: by value their ABI would depend on the instruction set.
inline __attribute__((always_inline)) void load_lanes(const float* s, Vector& d) { d = *reinterpret_cast<const Vector*>(s); }

inline __attribute__((always_inline)) void load_lanes(const uint16_t* s, Vector& d) {
  d = (Vector)(__builtin_convertvector(*reinterpret_cast<const LaneHalves*>(s), LaneBits) << 16);
}

inline __attribute__((always_inline)) void store_lanes(const Vector& s, float* d) { *reinterpret_cast<Vector*>(d) = s; }

// As float_to_bf16.
inline __attribute__((always_inline)) void store_lanes(const Vector& s, uint16_t* d) {
  LaneBits bits = (LaneBits)s;
  LaneBits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  LaneBits quiet = (bits >> 16) | 0x40u;
  LaneBits nan = (LaneBits)((bits & 0x7fffffffu) > 0x7f800000u);
  *reinterpret_cast<LaneHalves*>(d) = __builtin_convertvector((quiet & nan) | (rounded & ~nan), LaneHalves);
}

inline float to_float(float value) { return value; }
inline float to_float(uint16_t value) { return bf16_to_float(value); }
inline void from_float(float s, float* d) { *d = s; }
inline void from_float(float s, uint16_t* d) { *d = float_to_bf16(s); }

// The sum of the lanes, in an order that does not depend on the vector width.
inline __attribute__((always_inline)) float lane_sum(const Vector& lanes) {
  float part[kLanes];
  store_lanes(lanes, part);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) part[lane] += part[lane + half];
  }
  return part[0];
}

}  // namespace pnb::cpu
