// The copy engine's views of a product's bf16 matrices: rows of `columns` elements, `stride` elements apart.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace pnb::cuda::sm90 {

// An operand in boxes of so many rows of 64 elements, swizzled over 128 bytes; zeros outside of it.
CUtensorMap operand_map(void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows);

// d or the residual in boxes of so many rows of 32 elements, swizzled over 64 bytes; nothing is written outside of it.
CUtensorMap result_map(void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows);

// Likewise, where the columns are a whole number of panels of 32: in boxes of so many panels, at column, row and panel.
bool whole_panels(int64_t columns);
CUtensorMap panels_map(void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows, int box_panels);

}  // namespace pnb::cuda::sm90
