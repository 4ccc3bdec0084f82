// What a backend in a library of its own hands to libpenumbra: one table of functions. Nothing is thrown across it; the
// side that computes writes status and text, and the side that called throws them again.
#pragma once

#include <cstdint>

#include "core/backend.h"

namespace pnb {

struct LibraryError {
  pnb_status status = PNB_OK;
  char text[1024] = "";
};

// Operations that take their params and give nothing back.
#define PNB_BACKEND_OPERATIONS(X) \
  X(fill)                         \
  X(convert)                      \
  X(gemm)                         \
  X(lora_project)                 \
  X(lora_gradients)               \
  X(attention_forward)            \
  X(attention_backward)           \
  X(layer_norm_forward)           \
  X(layer_norm_backward)          \
  X(embedding)                    \
  X(linear_cross_entropy)         \
  X(activation_mass)              \
  X(predict_mass)                 \
  X(relative_mass)                \
  X(select_blocks)                \
  X(attention_mass)               \
  X(predict_attention)            \
  X(select_attention)             \
  X(adamw)

// Questions about bytes: the method, and the operation whose params it reads.
#define PNB_BACKEND_SIZES(X)                              \
  X(weight_storage, weight)                               \
  X(gemm_workspace, gemm)                                 \
  X(lora_gradients_workspace, lora_gradients)             \
  X(attention_backward_workspace, attention_backward)     \
  X(linear_cross_entropy_workspace, linear_cross_entropy) \
  X(activation_mass_workspace, activation_mass)           \
  X(predict_mass_workspace, predict_mass)                 \
  X(predict_attention_workspace, predict_attention)       \
  X(select_attention_workspace, select_attention)         \
  X(adamw_workspace, adamw)

struct BackendLibrary {
  uint32_t struct_size;
  const char* version;  // equal to pnb_version(), or the table is not used

  Backend* (*create)(const pnb_context_params* params, LibraryError* error);
  void (*destroy)(Backend* backend);
  const char* (*describe)(Backend* backend);
  uint64_t (*memory)(Backend* backend, LibraryError* error);
  pnb_weight* (*weight_create)(Backend* backend, const pnb_weight_params* params, LibraryError* error);

#define PNB_DECLARE(name) void (*name)(Backend * backend, const pnb_##name##_params* params, LibraryError* error);
  PNB_BACKEND_OPERATIONS(PNB_DECLARE)
#undef PNB_DECLARE
#define PNB_DECLARE(name, op) uint64_t (*name)(Backend * backend, const pnb_##op##_params* params, LibraryError* error);
  PNB_BACKEND_SIZES(PNB_DECLARE)
#undef PNB_DECLARE
};

// The one symbol that libpenumbra_cuda exports.
inline constexpr const char kCudaLibraryName[] = "libpenumbra_cuda.so";
inline constexpr const char kCudaLibrarySymbol[] = "pnb_cuda_backend_library";
using BackendLibraryFunction = const BackendLibrary* (*)();

}  // namespace pnb
