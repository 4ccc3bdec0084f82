// What a device's backend implements. capi has validated every argument before a backend sees it:
// pointers that are needed are there, shapes and dtypes agree, strides fit; a backend rejects only what it does not compute.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "penumbra/penumbra.h"

// A packed frozen weight; each backend derives its own.
struct pnb_weight {
  virtual ~pnb_weight() = default;

  int64_t out = 0;
  int64_t in = 0;
  int32_t dtype = 0;
  int32_t uses = 0;
  bool described = false;  // by its shape alone: nothing is packed, and workspace queries are all that may read it
};

namespace pnb {

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const std::string& describe() const = 0;
  virtual uint64_t memory() const = 0;

  virtual void fill(const pnb_fill_params& p) = 0;
  virtual void convert(const pnb_convert_params& p) = 0;

  virtual uint64_t weight_storage(const pnb_weight_params& p) = 0;
  virtual std::unique_ptr<pnb_weight> weight_create(const pnb_weight_params& p) = 0;

  virtual void gemm(const pnb_gemm_params& p) = 0;
  virtual uint64_t gemm_workspace(const pnb_gemm_params& p) = 0;
  virtual void lora_project(const pnb_lora_project_params& p) = 0;
  virtual void lora_gradients(const pnb_lora_gradients_params& p) = 0;
  virtual uint64_t lora_gradients_workspace(const pnb_lora_gradients_params& p) = 0;
  virtual void attention_forward(const pnb_attention_forward_params& p) = 0;
  virtual void attention_backward(const pnb_attention_backward_params& p) = 0;
  virtual uint64_t attention_backward_workspace(const pnb_attention_backward_params& p) = 0;
  virtual void layer_norm_forward(const pnb_layer_norm_forward_params& p) = 0;
  virtual void layer_norm_backward(const pnb_layer_norm_backward_params& p) = 0;
  virtual void embedding(const pnb_embedding_params& p) = 0;
  virtual void linear_cross_entropy(const pnb_linear_cross_entropy_params& p) = 0;
  virtual uint64_t linear_cross_entropy_workspace(const pnb_linear_cross_entropy_params& p) = 0;
  virtual void activation_mass(const pnb_activation_mass_params& p) = 0;
  virtual uint64_t activation_mass_workspace(const pnb_activation_mass_params& p) = 0;
  virtual void predict_mass(const pnb_predict_mass_params& p) = 0;
  virtual uint64_t predict_mass_workspace(const pnb_predict_mass_params& p) = 0;
  virtual void relative_mass(const pnb_relative_mass_params& p) = 0;
  virtual void select_blocks(const pnb_select_blocks_params& p) = 0;
  virtual void attention_mass(const pnb_attention_mass_params& p) = 0;
  virtual void predict_attention(const pnb_predict_attention_params& p) = 0;
  virtual uint64_t predict_attention_workspace(const pnb_predict_attention_params& p) = 0;
  virtual void select_attention(const pnb_select_attention_params& p) = 0;
  virtual uint64_t select_attention_workspace(const pnb_select_attention_params& p) = 0;
  virtual void adamw(const pnb_adamw_params& p) = 0;
  virtual uint64_t adamw_workspace(const pnb_adamw_params& p) = 0;
};

// Creates the backend of params.device, or throws PNB_ERROR_UNAVAILABLE with the reason.
std::unique_ptr<Backend> create_backend(const pnb_context_params& params);

}  // namespace pnb
