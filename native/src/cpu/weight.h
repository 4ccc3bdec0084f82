// Frozen weights in oneDNN's packed layouts.
#pragma once

#include <span>

#include "core/backend.h"
#include "cpu/block_lists.h"
#include "cpu/matmul.h"

namespace pnb::cpu {

struct PackedWeight final : pnb_weight {
  Matrix forward;   // W^T [in, out], when uses has FORWARD
  Matrix backward;  // W [out, in], when uses has BACKWARD

  const Matrix& matrix(int32_t use) const { return use == PNB_WEIGHT_FORWARD ? forward : backward; }

  // The same operand made of the neurons in `runs` only, one after another, `neurons` of them; packed into `scratch`, or the
  // weight itself where all are wanted.
  Matrix listed(int32_t use, std::span<const Run> runs, int64_t neurons, Scratch& scratch, int threads) const;
};

uint64_t weight_storage(Matmul& matmul, const pnb_weight_params& p);
std::unique_ptr<PackedWeight> weight_create(Matmul& matmul, const pnb_weight_params& p);

}  // namespace pnb::cpu
