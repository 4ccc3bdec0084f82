// exp for softmax, written out so that the loops around it vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace pnb::cpu {

// exp(x) for x <= 0 as 2^n * p(f), |f| <= ln 2 / 2; relative error below 2e-7. Arguments below -87 give exp(-87) = 1.6e-38.
inline __attribute__((always_inline)) float exp_not_positive(float x) {
  x = x < -87.0f ? -87.0f : x;
  float n = std::nearbyintf(x * 1.44269504f);
  float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  float value = p * f * f + f + 1.0f;
  int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &exponent, sizeof power);
  return value * power;
}

}  // namespace pnb::cpu
