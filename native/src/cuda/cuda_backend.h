// The CUDA backend: one object a context, which hands each operation to its kernels.
#pragma once

#include "core/backend.h"
#include "core/error.h"
#include "cuda/kernels/gemm/gemm.h"
#include "cuda/runtime/device.h"

namespace pnb::cuda {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const pnb_context_params& params);

  const Device& device() const { return device_; }

  const std::string& describe() const override { return text_; }
  uint64_t memory() const override { return 0; }

  void fill(const pnb_fill_params& p) override;
  void convert(const pnb_convert_params& p) override;
  uint64_t weight_storage(const pnb_weight_params& p) override;
  std::unique_ptr<pnb_weight> weight_create(const pnb_weight_params& p) override;
  void gemm(const pnb_gemm_params& p) override;
  uint64_t gemm_workspace(const pnb_gemm_params& p) override;
  void lora_project(const pnb_lora_project_params& p) override;
  void lora_gradients(const pnb_lora_gradients_params& p) override;
  uint64_t lora_gradients_workspace(const pnb_lora_gradients_params& p) override;
  void attention_forward(const pnb_attention_forward_params& p) override;
  void attention_backward(const pnb_attention_backward_params& p) override;
  uint64_t attention_backward_workspace(const pnb_attention_backward_params& p) override;
  void layer_norm_forward(const pnb_layer_norm_forward_params& p) override;
  void layer_norm_backward(const pnb_layer_norm_backward_params& p) override;
  void embedding(const pnb_embedding_params& p) override;
  void linear_cross_entropy(const pnb_linear_cross_entropy_params& p) override;
  uint64_t linear_cross_entropy_workspace(const pnb_linear_cross_entropy_params& p) override;
  void activation_mass(const pnb_activation_mass_params& p) override;
  uint64_t activation_mass_workspace(const pnb_activation_mass_params& p) override;
  void predict_mass(const pnb_predict_mass_params& p) override;
  uint64_t predict_mass_workspace(const pnb_predict_mass_params& p) override;
  void relative_mass(const pnb_relative_mass_params& p) override;
  void select_blocks(const pnb_select_blocks_params& p) override;
  void attention_mass(const pnb_attention_mass_params& p) override;
  void predict_attention(const pnb_predict_attention_params& p) override;
  uint64_t predict_attention_workspace(const pnb_predict_attention_params& p) override;
  void select_attention(const pnb_select_attention_params& p) override;
  uint64_t select_attention_workspace(const pnb_select_attention_params& p) override;
  void adamw(const pnb_adamw_params& p) override;
  uint64_t adamw_workspace(const pnb_adamw_params& p) override;

 private:
  Device device_;
  Gemm gemm_;
  std::string text_;
};

}  // namespace pnb::cuda
