#include "cuda/kernels/attention/tile.cuh"

#include "core/tensor.h"

namespace pnb::cuda::attention {

namespace {

CUtensorMap encode(CUtensorMapDataType type, int rank, void* data, const cuuint64_t* shape, const cuuint64_t* strides,
                   const cuuint32_t* box, CUtensorMapSwizzle swizzle, const char* op) {
  CUtensorMap map;
  const cuuint32_t ones[3] = {1, 1, 1};
  CUresult result =
      cuTensorMapEncodeTiled(&map, type, rank, data, shape, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return map;
  fail(PNB_ERROR_INTERNAL, "%s: the driver refused a tensor map with error %d", op, static_cast<int>(result));
}

}  // namespace

bool is_mappable(const pnb_tensor& t) {
  auto aligned = [](uint64_t bytes) { return bytes % 16 == 0; };
  uint64_t size = dtype_size(t.dtype);
  // The engine's strides have 40 bits.
  return aligned(reinterpret_cast<uintptr_t>(t.data)) && aligned(t.stride[0] * size) && aligned(t.stride[1] * size) &&
         t.stride[0] > 0 && t.stride[1] > 0 && t.stride[0] * size < (1ull << 40) && t.stride[1] * size < (1ull << 40);
}

HeadsMap make_heads_map(const pnb_tensor& t, int rows, const char* op) {
  auto size = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const cuuint64_t shape[] = {size(t.shape[2]), size(t.shape[1]), size(t.shape[0])};
  const cuuint64_t strides[] = {size(t.stride[1] * 2), size(t.stride[0] * 2)};
  auto panel = [&](unsigned width, CUtensorMapSwizzle swizzle) {
    const cuuint32_t box[] = {width, 1, static_cast<cuuint32_t>(rows)};
    return encode(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, t.data, shape, strides, box, swizzle, op);
  };
  HeadsMap map{};
  map.wide = panel(64, CU_TENSOR_MAP_SWIZZLE_128B);
  if (t.shape[2] % 64 != 0) map.rest = panel(16, CU_TENSOR_MAP_SWIZZLE_32B);
  return map;
}

CUtensorMap make_matrix_map(const void* data, int64_t rows, int64_t columns, int box_rows, const char* op) {
  const cuuint64_t shape[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows)};
  return encode(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), shape, strides, box, CU_TENSOR_MAP_SWIZZLE_128B, op);
}

CUtensorMap make_float_map(const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows, const char* op) {
  const cuuint64_t shape[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 4};
  const cuuint32_t box[] = {32, static_cast<cuuint32_t>(box_rows)};
  return encode(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, const_cast<void*>(data), shape, strides, box, CU_TENSOR_MAP_SWIZZLE_128B, op);
}

CUtensorMap make_array_map(void* data, int64_t count, int box, const char* op) {
  const cuuint64_t shape[] = {4, static_cast<cuuint64_t>(count)}, strides[] = {16};
  const cuuint32_t size[] = {4, static_cast<cuuint32_t>(box)};
  return encode(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, data, shape, strides, size, CU_TENSOR_MAP_SWIZZLE_NONE, op);
}

}  // namespace pnb::cuda::attention
