#include "core/backend.h"

#include "core/library_backend.h"
#include "cpu/cpu_backend.h"

namespace pnb {

std::unique_ptr<Backend> create_backend(const pnb_context_params& params) {
  return params.device == PNB_DEVICE_CPU ? cpu::create(params) : create_cuda_backend(params);
}

}  // namespace pnb
