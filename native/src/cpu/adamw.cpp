#include "cpu/adamw.h"

#include <algorithm>
#include <cmath>

#include "cpu/simd.h"

namespace pnb::cpu {

namespace {

// The norm is summed in blocks of this many elements, whatever the number of threads.
constexpr int64_t kBlock = 4096;

int64_t block_count(const pnb_adamw_params& p) { return (p.param.shape[0] + kBlock - 1) / kBlock; }

PNB_MULTIVERSION double squares(const float* values, int64_t count) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += static_cast<double>(values[i + lane]) * values[i + lane];
  }
  double sum = 0.0;
  for (; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  for (double lane : lanes) sum += lane;
  return sum;
}

struct Step {
  float clip, decay, step_size, inverse_root2, beta1, beta2, epsilon;
};

PNB_MULTIVERSION void update(float* param, const float* grad, float* m, float* v, const Step& s, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    float g = grad[i] * s.clip;
    m[i] = s.beta1 * m[i] + (1.0f - s.beta1) * g;
    v[i] = s.beta2 * v[i] + (1.0f - s.beta2) * g * g;
    param[i] = param[i] * s.decay - s.step_size * m[i] / (std::sqrt(v[i]) * s.inverse_root2 + s.epsilon);
  }
}

}  // namespace

uint64_t adamw_workspace(const pnb_adamw_params& p, int) { return block_count(p) * sizeof(double); }

void adamw(const pnb_adamw_params& p, int threads) {
  int64_t n = p.param.shape[0];
  int64_t blocks = block_count(p);
  const float* grad = static_cast<const float*>(p.grad.data);
  double* partial = static_cast<double*>(p.workspace.data);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    partial[block] = squares(grad + block * kBlock, std::min(kBlock, n - block * kBlock));
  }
  double total = 0.0;
  for (int64_t block = 0; block < blocks; ++block) total += partial[block];
  float norm = static_cast<float>(std::sqrt(total));
  *static_cast<float*>(p.grad_norm.data) = norm;
  if (!std::isfinite(norm)) return;

  const float* schedule = static_cast<const float*>(p.schedule.data);
  float lr = schedule[0];
  Step step{};
  step.clip = p.max_norm > 0.0f ? std::min(1.0f, p.max_norm / (norm + 1e-6f)) : 1.0f;
  step.decay = 1.0f - lr * p.weight_decay;
  step.step_size = lr / schedule[1];
  step.inverse_root2 = 1.0f / std::sqrt(schedule[2]);
  step.beta1 = p.beta1;
  step.beta2 = p.beta2;
  step.epsilon = p.epsilon;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t from = block * kBlock;
    update(static_cast<float*>(p.param.data) + from, grad + from, static_cast<float*>(p.m.data) + from,
           static_cast<float*>(p.v.data) + from, step, std::min(kBlock, n - from));
  }
}

}  // namespace pnb::cpu
