// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11) and the dropout drawn from it, as
// pnb_dropout defines it: the same mask as the CPU's, bit for bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "penumbra/gemm.h"

namespace pnb::cuda {

// What a kernel takes by value. Seed and offset stay behind the pointer: a replayed graph reads them anew.
struct DropoutParams {
  const uint64_t* state = nullptr;
  uint64_t stream_key = 0;
  uint32_t threshold = 0;  // an element whose word is below it is dropped; 0: no dropout
  float keep = 1.0f;       // what stays is multiplied by this

  DropoutParams() = default;
  explicit DropoutParams(const pnb_dropout& d) {
    if (d.p == 0.0f) return;
    state = static_cast<const uint64_t*>(d.state.data);
    stream_key = d.stream * 0x9E3779B97F4A7C15ull;
    threshold = static_cast<uint32_t>(std::llround(static_cast<double>(d.p) * 0x1p32));
    keep = 1.0f / (1.0f - d.p);
  }

  __host__ __device__ bool active() const { return threshold != 0; }
};

// One thread's generator. Only for DropoutParams that are active.
class DropoutMask {
 public:
  __device__ explicit DropoutMask(const DropoutParams& p) : offset_(p.state[1]), threshold_(p.threshold), keep_(p.keep) {
    key_ = p.state[0] ^ p.stream_key;
  }

  // The words of elements 4 block .. 4 block + 3.
  __device__ uint4 words(uint64_t block) const {
    uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
    uint32_t c2 = static_cast<uint32_t>(offset_), c3 = static_cast<uint32_t>(offset_ >> 32);
    uint32_t k0 = static_cast<uint32_t>(key_), k1 = static_cast<uint32_t>(key_ >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
      uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<uint32_t>(p1);
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
  }

  __device__ bool dropped(uint32_t word) const { return word < threshold_; }

  // value / (1 - p), or 0 where the element's word says so.
  __device__ float apply(float value, uint32_t word) const { return dropped(word) ? 0.0f : value * keep_; }

  // One element's word. Neighbours share a draw: where four of them are at hand, use words().
  __device__ uint32_t word(uint64_t element) const {
    uint4 w = words(element / 4);
    uint32_t low = element & 1 ? w.y : w.x;
    uint32_t high = element & 1 ? w.w : w.z;
    return element & 2 ? high : low;
  }

  __device__ float operator()(float value, uint64_t element) const { return apply(value, word(element)); }

 private:
  uint64_t key_;
  uint64_t offset_;
  uint32_t threshold_;
  float keep_;
};

}  // namespace pnb::cuda
