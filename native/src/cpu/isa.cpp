#include "cpu/isa.h"

#include <cstdlib>
#include <oneapi/dnnl/dnnl.hpp>

namespace pnb::cpu {

namespace {

bool has(dnnl::cpu_isa wanted) {  // oneDNN's codes are bit sets
  int bits = static_cast<int>(wanted);
  return (static_cast<int>(dnnl::get_effective_cpu_isa()) & bits) == bits;
}

}  // namespace

void choose_isa() {
  if (std::getenv("ONEDNN_MAX_CPU_ISA") != nullptr) return;
  // Has no effect once oneDNN has computed something, and then it was called before.
  dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_fp16);
}

bool has_avx512() { return has(dnnl::cpu_isa::avx512_core); }

bool has_avx512_bf16() { return has(dnnl::cpu_isa::avx512_core_bf16); }

}  // namespace pnb::cpu
