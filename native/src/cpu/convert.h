// Conversion of element types, in rows.
#pragma once

#include <cstdint>

#include "penumbra/memory.h"

namespace pnb::cpu {

void fill(const pnb_fill_params& p, int threads);
void convert(const pnb_convert_params& p, int threads);

// Contiguous elements; s is f32, bf16 or f16.
void row_to_float(const void* s, int32_t dtype, float* d, int64_t count);
// Contiguous elements; d is f32 or bf16.
void row_from_float(const float* s, void* d, int32_t dtype, int64_t count);

}  // namespace pnb::cpu
