#include "cuda/kernels/gemm/sm90_maps.h"

#include "core/error.h"
#include "penumbra/penumbra.h"

namespace pnb::cuda::sm90 {

namespace {

constexpr int kPanel = 32;  // columns

// Boxes of so many panels of so many columns each; a panel's columns are the map's first dimension, its number the third.
CUtensorMap encode(void* data, int64_t rows, int64_t columns, int64_t stride, int box_columns, int box_rows, int box_panels,
                   CUtensorMapSwizzle swizzle) {
  CUtensorMap map;
  int64_t panels = box_panels > 0 ? columns / box_columns : 0;
  const cuuint64_t shape[] = {static_cast<cuuint64_t>(box_panels > 0 ? box_columns : columns), static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(panels)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 2, static_cast<cuuint64_t>(box_columns) * 2};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows),
                            static_cast<cuuint32_t>(box_panels)};
  const cuuint32_t ones[] = {1, 1, 1};
  CUresult result = cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, box_panels > 0 ? 3 : 2, data, shape, strides, box,
                                           ones, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return map;
  fail(PNB_ERROR_INTERNAL, "gemm: the driver refused a tensor map of [%lld, %lld] with error %d", static_cast<long long>(rows),
       static_cast<long long>(columns), static_cast<int>(result));
}

}  // namespace

CUtensorMap operand_map(void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  return encode(data, rows, columns, stride, 64, box_rows, 0, CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap result_map(void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  return encode(data, rows, columns, stride, kPanel, box_rows, 0, CU_TENSOR_MAP_SWIZZLE_64B);
}

bool whole_panels(int64_t columns) { return columns % kPanel == 0; }

CUtensorMap panels_map(void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows, int box_panels) {
  return encode(data, rows, columns, stride, kPanel, box_rows, box_panels, CU_TENSOR_MAP_SWIZZLE_64B);
}

}  // namespace pnb::cuda::sm90
