// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11) and the dropout drawn from it.
#pragma once

#include <cmath>
#include <cstdint>

#include "penumbra/gemm.h"

namespace pnb::cpu {

class DropoutMask {
 public:
  explicit DropoutMask(const pnb_dropout& d) {
    if (d.p == 0.0f) return;
    const uint64_t* state = static_cast<const uint64_t*>(d.state.data);
    uint64_t key = state[0] ^ (d.stream * 0x9E3779B97F4A7C15ull);
    key_[0] = static_cast<uint32_t>(key);
    key_[1] = static_cast<uint32_t>(key >> 32);
    offset_ = state[1];
    threshold_ = static_cast<uint64_t>(std::llround(static_cast<double>(d.p) * 0x1p32));
    keep_ = 1.0f / (1.0f - d.p);
  }

  bool active() const { return threshold_ != 0; }

  // row[i] = dropped ? 0 : row[i] / (1 - p), for the elements [first, first + count) of the stream.
  void apply(float* row, int64_t first, int64_t count) const {
    uint32_t words[4];
    uint64_t block = ~0ull;
    for (int64_t i = 0; i < count; ++i) {
      uint64_t element = static_cast<uint64_t>(first + i);
      if (element / 4 != block) {
        block = element / 4;
        draw(block, words);
      }
      row[i] = words[element % 4] < threshold_ ? 0.0f : row[i] * keep_;
    }
  }

 private:
  void draw(uint64_t block, uint32_t words[4]) const {
    uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
    uint32_t c2 = static_cast<uint32_t>(offset_), c3 = static_cast<uint32_t>(offset_ >> 32);
    uint32_t k0 = key_[0], k1 = key_[1];
    for (int round = 0; round < 10; ++round) {
      uint64_t p0 = 0xD2511F53ull * c0;
      uint64_t p1 = 0xCD9E8D57ull * c2;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<uint32_t>(p1);
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
  }

  uint32_t key_[2] = {0, 0};
  uint64_t offset_ = 0;
  uint64_t threshold_ = 0;
  float keep_ = 1.0f;
};

}  // namespace pnb::cpu
