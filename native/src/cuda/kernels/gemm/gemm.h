// Matrix products, and the frozen weights they read.
#pragma once

#include <memory>

#include "core/backend.h"
#include "cuda/runtime/device.h"

namespace pnb::cuda {

struct Exponentials;

// W [out, in] in the dtype it is computed in, rows contiguous and padded to 16 bytes: one copy serves both uses.
struct Weight final : pnb_weight {
  const void* data = nullptr;
  int64_t row_stride = 0;  // elements
};

uint64_t weight_storage(const pnb_weight_params& p);
std::unique_ptr<pnb_weight> weight_create(const Device& device, const pnb_weight_params& p);

// Chooses a kernel for a product and runs it: tensor cores fed by bulk copies where the operands allow it, else a plain one.
class Gemm {
 public:
  explicit Gemm(const Device& device) : device_(device) {}

  void run(const pnb_gemm_params& p);
  uint64_t workspace(const pnb_gemm_params& p);

  // d[i] = the bare product over the i-th of `ranges` equal ranges of k, + residual[i]: d and residual are [ranges, m, n] in f32,
  // and given as their first [m, n]. For a weight's backward use whose operands copies can read, ranges' beginnings among them.
  void run(const pnb_gemm_params& p, int ranges);
  // As many ranges as fill the device best: few, where they do as well as more.
  int ranges(int64_t m, int64_t n, int64_t k) const;

  // d becomes the bare product's exponentials.
  void run(const pnb_gemm_params& p, const Exponentials& exponentials);
  // Whether the operands allow that.
  bool exponentiates(const pnb_gemm_params& p) const;

 private:
  const Device& device_;
};

}  // namespace pnb::cuda
