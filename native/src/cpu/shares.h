// Work that threads share evenly, and again where one of them falls behind.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace pnb::cpu {

// Pieces [0, count) of a loop. Each thread has a run of them, which it takes from its front; whoever has none left takes from
// the back of another's. A processor that has something else to do meanwhile does less, and nobody waits for it longer than for
// a piece. Who takes a piece is left to chance: a piece's result must not depend on it.
class Shares {
 public:
  Shares(int64_t count, int threads) : runs_(threads) {
    for (int64_t i = 0; i < threads; ++i) {
      runs_[i].rest = pack(static_cast<uint32_t>(count * i / threads), static_cast<uint32_t>(count * (i + 1) / threads));
    }
  }

  // The next piece for thread `thread`; -1: all are taken.
  int64_t take(int thread) {
    int64_t piece = take(runs_[thread], true);
    for (size_t i = 1; piece < 0 && i < runs_.size(); ++i) piece = take(runs_[(thread + i) % runs_.size()], false);
    return piece;
  }

 private:
  struct alignas(64) Run {
    std::atomic<uint64_t> rest;  // the first piece that nobody has taken, and the end
  };

  static uint64_t pack(uint32_t next, uint32_t end) { return static_cast<uint64_t>(end) << 32 | next; }

  static int64_t take(Run& run, bool front) {
    uint64_t rest = run.rest.load(std::memory_order_relaxed);
    while (true) {
      uint32_t next = static_cast<uint32_t>(rest), end = static_cast<uint32_t>(rest >> 32);
      if (next == end) return -1;
      uint64_t left = front ? pack(next + 1, end) : pack(next, end - 1);
      if (run.rest.compare_exchange_weak(rest, left, std::memory_order_relaxed)) return front ? next : end - 1;
    }
  }

  std::vector<Run> runs_;
};

}  // namespace pnb::cpu
