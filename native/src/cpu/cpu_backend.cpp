#include "cpu/cpu_backend.h"

#include <omp.h>

#include "cpu/adamw.h"
#include "cpu/attention.h"
#include "cpu/block_mass.h"
#include "cpu/convert.h"
#include "cpu/cross_entropy.h"
#include "cpu/embedding.h"
#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/layer_norm.h"
#include "cpu/lora.h"
#include "cpu/matmul.h"
#include "cpu/predict_attention.h"
#include "cpu/select_attention.h"
#include "cpu/select_blocks.h"
#include "cpu/weight.h"

namespace pnb::cpu {

namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : threads_(threads), matmul_(threads), gemm_(matmul_, threads) {
    const dnnl_version_t* version = dnnl_version();
    const char* isa = matmul_.bf16() ? (has_avx512_bf16() ? "AVX-512 bf16" : "AVX-512, bf16 emulated")
                      : __builtin_cpu_supports("avx2")     ? "AVX2, bf16 computed in f32"
                                                           : "x86-64, bf16 computed in f32";
    text_ = "cpu, " + std::string(isa) + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads") + ", oneDNN " +
            std::to_string(version->major) + "." + std::to_string(version->minor) + "." + std::to_string(version->patch);
  }

  const std::string& describe() const override { return text_; }
  uint64_t memory() const override { return matmul_.memory() + gemm_.memory() + scratch_.size(); }

  void fill(const pnb_fill_params& p) override { cpu::fill(p, threads_); }
  void convert(const pnb_convert_params& p) override { cpu::convert(p, threads_); }
  uint64_t weight_storage(const pnb_weight_params& p) override { return cpu::weight_storage(matmul_, p); }
  std::unique_ptr<pnb_weight> weight_create(const pnb_weight_params& p) override { return cpu::weight_create(matmul_, p); }
  void gemm(const pnb_gemm_params& p) override { gemm_.run(p); }
  uint64_t gemm_workspace(const pnb_gemm_params&) override { return 0; }
  void lora_project(const pnb_lora_project_params& p) override { cpu::lora_project(p, threads_, scratch_); }
  void lora_gradients(const pnb_lora_gradients_params& p) override { cpu::lora_gradients(p, threads_); }
  uint64_t lora_gradients_workspace(const pnb_lora_gradients_params& p) override {
    return cpu::lora_gradients_workspace(p, threads_);
  }
  void attention_forward(const pnb_attention_forward_params& p) override { cpu::attention_forward(p, threads_, scratch_); }
  void attention_backward(const pnb_attention_backward_params& p) override { cpu::attention_backward(p, threads_); }
  uint64_t attention_backward_workspace(const pnb_attention_backward_params& p) override {
    return cpu::attention_backward_workspace(p, threads_);
  }
  void layer_norm_forward(const pnb_layer_norm_forward_params& p) override {
    cpu::layer_norm_forward(p, threads_);
    if (p.project != nullptr) lora_project(*p.project);
  }
  void layer_norm_backward(const pnb_layer_norm_backward_params& p) override { cpu::layer_norm_backward(p, threads_); }
  void embedding(const pnb_embedding_params& p) override { cpu::embedding(p, threads_); }
  void linear_cross_entropy(const pnb_linear_cross_entropy_params& p) override {
    cpu::linear_cross_entropy(matmul_, gemm_, p, threads_);
  }
  uint64_t linear_cross_entropy_workspace(const pnb_linear_cross_entropy_params& p) override {
    return cpu::linear_cross_entropy_workspace(matmul_, p, threads_);
  }
  void activation_mass(const pnb_activation_mass_params& p) override { cpu::activation_mass(p, threads_); }
  uint64_t activation_mass_workspace(const pnb_activation_mass_params&) override { return 0; }
  void predict_mass(const pnb_predict_mass_params& p) override { cpu::predict_mass(matmul_, p, threads_); }
  uint64_t predict_mass_workspace(const pnb_predict_mass_params& p) override { return cpu::predict_mass_workspace(p); }
  void relative_mass(const pnb_relative_mass_params& p) override { cpu::relative_mass(p); }
  void select_blocks(const pnb_select_blocks_params& p) override { cpu::select_blocks(p); }
  void attention_mass(const pnb_attention_mass_params& p) override { cpu::attention_mass(p, threads_, scratch_); }
  void predict_attention(const pnb_predict_attention_params& p) override { cpu::predict_attention(p, threads_); }
  uint64_t predict_attention_workspace(const pnb_predict_attention_params& p) override {
    return cpu::predict_attention_workspace(p, threads_);
  }
  void select_attention(const pnb_select_attention_params& p) override { cpu::select_attention(p, threads_, scratch_); }
  uint64_t select_attention_workspace(const pnb_select_attention_params&) override { return 0; }
  void adamw(const pnb_adamw_params& p) override { cpu::adamw(p, threads_); }
  uint64_t adamw_workspace(const pnb_adamw_params& p) override { return cpu::adamw_workspace(p, threads_); }

 private:
  int threads_;
  Matmul matmul_;
  Gemm gemm_;
  Scratch scratch_;  // buffers of the operations that are given no workspace, one operation at a time
  std::string text_;
};

}  // namespace

std::unique_ptr<Backend> create(const pnb_context_params& params) {
  choose_isa();
  return std::make_unique<CpuBackend>(params.threads > 0 ? params.threads : omp_get_num_procs());
}

}  // namespace pnb::cpu
