// Memory that grows and is then kept; aligned for any vector.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace pnb::cpu {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // At least `count` bytes, valid until the next call; what they held before is lost when they grow.
  void* bytes(size_t count) {
    if (count <= size_) return data_;
    size_t rounded = (count + kPage - 1) / kPage * kPage;
    void* grown = std::aligned_alloc(kPage, rounded);
    if (grown == nullptr) throw std::bad_alloc();
    std::free(data_);
    data_ = grown;
    size_ = rounded;
    return data_;
  }

  float* floats(size_t count) { return static_cast<float*>(bytes(count * sizeof(float))); }
  size_t size() const { return size_; }

 private:
  static constexpr size_t kPage = 4096;

  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pnb::cpu
