#include "cuda/cuda_backend.h"

#include "core/tensor.h"
#include "cuda/kernels/attention/attention.h"
#include "cuda/kernels/embedding/embedding.h"
#include "cuda/kernels/lora/lora.h"
#include "cuda/kernels/loss/loss.h"
#include "cuda/kernels/memory/memory.h"
#include "cuda/kernels/norm/norm.h"
#include "cuda/kernels/optimizer/optimizer.h"
#include "cuda/kernels/sparse/sparse.h"

namespace pnb::cuda {

namespace {

// The C ABI also has an f32 x among bf16 matrices, which only the CPU computes.
void require_one_dtype(const char* op, const pnb_tensor& x, const char* name, const pnb_tensor& other) {
  if (other.dtype == x.dtype) return;
  fail(PNB_ERROR_UNSUPPORTED, "%s: expected %s in %s as x is, found %s: on a GPU they have one dtype", op, name, dtype_name(x.dtype),
       dtype_name(other.dtype));
}

}  // namespace

CudaBackend::CudaBackend(const pnb_context_params& params)
    : device_(open_device(params.ordinal, params.deterministic != 0)), gemm_(device_) {
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "context");
  text_ = "cuda:" + std::to_string(device_.ordinal) + ", " + device_.name + ", " + std::to_string(device_.multiprocessors) +
          " multiprocessors, driver for CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) +
          ", built with CUDA " + std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

void CudaBackend::fill(const pnb_fill_params& p) { cuda::fill(device_, p); }
void CudaBackend::convert(const pnb_convert_params& p) { cuda::convert(device_, p); }
uint64_t CudaBackend::weight_storage(const pnb_weight_params& p) { return cuda::weight_storage(p); }
std::unique_ptr<pnb_weight> CudaBackend::weight_create(const pnb_weight_params& p) { return cuda::weight_create(device_, p); }
void CudaBackend::gemm(const pnb_gemm_params& p) { gemm_.run(p); }
uint64_t CudaBackend::gemm_workspace(const pnb_gemm_params& p) { return gemm_.workspace(p); }
void CudaBackend::lora_project(const pnb_lora_project_params& p) { cuda::lora_project(device_, p); }
void CudaBackend::lora_gradients(const pnb_lora_gradients_params& p) {
  for (const auto* one = &p; one != nullptr; one = one->next) require_one_dtype("lora_gradients", one->x, "dy", one->dy);
  cuda::lora_gradients(device_, p);
}
uint64_t CudaBackend::lora_gradients_workspace(const pnb_lora_gradients_params& p) {
  return cuda::lora_gradients_workspace(device_, p);
}
void CudaBackend::attention_forward(const pnb_attention_forward_params& p) { cuda::attention_forward(device_, p); }
void CudaBackend::attention_backward(const pnb_attention_backward_params& p) { cuda::attention_backward(device_, p); }
uint64_t CudaBackend::attention_backward_workspace(const pnb_attention_backward_params& p) {
  return cuda::attention_backward_workspace(device_, p);
}
void CudaBackend::layer_norm_forward(const pnb_layer_norm_forward_params& p) {
  require_one_dtype("layer_norm_forward", p.x, "y", p.y);
  cuda::layer_norm_forward(device_, p);
}
void CudaBackend::layer_norm_backward(const pnb_layer_norm_backward_params& p) {
  require_one_dtype("layer_norm_backward", p.x, "dy", p.dy);
  cuda::layer_norm_backward(device_, p);
}
void CudaBackend::embedding(const pnb_embedding_params& p) { cuda::embedding(device_, p); }
void CudaBackend::linear_cross_entropy(const pnb_linear_cross_entropy_params& p) { cuda::linear_cross_entropy(device_, gemm_, p); }
uint64_t CudaBackend::linear_cross_entropy_workspace(const pnb_linear_cross_entropy_params& p) {
  return cuda::linear_cross_entropy_workspace(device_, gemm_, p);
}
void CudaBackend::activation_mass(const pnb_activation_mass_params& p) { cuda::activation_mass(device_, p); }
uint64_t CudaBackend::activation_mass_workspace(const pnb_activation_mass_params& p) { return cuda::activation_mass_workspace(p); }
void CudaBackend::predict_mass(const pnb_predict_mass_params& p) { cuda::predict_mass(device_, p); }
uint64_t CudaBackend::predict_mass_workspace(const pnb_predict_mass_params& p) { return cuda::predict_mass_workspace(p); }
void CudaBackend::relative_mass(const pnb_relative_mass_params& p) { cuda::relative_mass(p); }
void CudaBackend::select_blocks(const pnb_select_blocks_params& p) { cuda::select_blocks(p); }
void CudaBackend::attention_mass(const pnb_attention_mass_params& p) { cuda::attention_mass(p); }
void CudaBackend::predict_attention(const pnb_predict_attention_params& p) { cuda::predict_attention(device_, p); }
uint64_t CudaBackend::predict_attention_workspace(const pnb_predict_attention_params& p) {
  return cuda::predict_attention_workspace(device_, p);
}
void CudaBackend::select_attention(const pnb_select_attention_params& p) { cuda::select_attention(device_, p); }
uint64_t CudaBackend::select_attention_workspace(const pnb_select_attention_params& p) {
  return cuda::select_attention_workspace(p);
}
void CudaBackend::adamw(const pnb_adamw_params& p) { cuda::adamw(device_, p); }
uint64_t CudaBackend::adamw_workspace(const pnb_adamw_params& p) { return cuda::adamw_workspace(device_, p); }

}  // namespace pnb::cuda
