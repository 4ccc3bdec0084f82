#include "core/backend.h"

#include "core/error.h"
#include "cpu/cpu_backend.h"

namespace pnb {

std::unique_ptr<Backend> create_backend(const pnb_context_params& params) {
  if (params.device == PNB_DEVICE_CPU) return cpu::create(params);
  fail(PNB_ERROR_UNAVAILABLE, "context: CUDA device %d: this build of libpenumbra has no CUDA backend", params.ordinal);
}

}  // namespace pnb
