// Probabilities are powers of two: scores are multiplied by log2(e) first.
#pragma once

namespace pnb::cuda::attention {

constexpr float kLog2E = 1.4426950408889634f;

// 2^x to 2 units in the last place; denormal results become 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace pnb::cuda::attention
