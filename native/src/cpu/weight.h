// Frozen weights in oneDNN's packed layouts.
#pragma once

#include <span>

#include "core/backend.h"
#include "cpu/block_lists.h"
#include "cpu/matmul.h"

namespace pnb::cpu {

// Columns of oneDNN's tiles on AVX-512.
constexpr int64_t kColumnTile = 64;

struct PackedWeight final : pnb_weight {
  Matrix forward;   // W^T [in, out], when uses has FORWARD
  Matrix backward;  // W [out, in], when uses has BACKWARD

  const Matrix& matrix(int32_t use) const { return use == PNB_WEIGHT_FORWARD ? forward : backward; }

  // Whether a weight, or what the description of one would be packed as, lies in tiles for a use that it has.
  static bool tiled(Matmul& matmul, const pnb_weight& weight, int32_t use);

  // The same operand made of the neurons in `runs` only, one after another, `neurons` of them; gathered into `scratch`, which
  // is given room for `most`.
  Matrix listed(int32_t use, std::span<const Run> runs, int64_t neurons, int64_t most, Scratch& scratch, int threads) const;

  // Columns [first, first + count) of a gathered FORWARD operand; first is a multiple of kColumnTile. Only where tiled() says so.
  static Matrix columns(const Matrix& listed, int64_t first, int64_t count);
  static bool tiled(const Matrix& listed) { return listed.desc.get_inner_nblks() > 0; }
};

uint64_t weight_storage(Matmul& matmul, const pnb_weight_params& p);
std::unique_ptr<PackedWeight> weight_create(Matmul& matmul, const pnb_weight_params& p);

}  // namespace pnb::cpu
