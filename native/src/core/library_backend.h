// Backends that live in libraries of their own, opened when they are first asked for.
#pragma once

#include <memory>

#include "core/backend.h"

namespace pnb {

// Opens libpenumbra_cuda (already loaded by its soname, beside this library, or on the system's path) and creates its
// backend, or throws PNB_ERROR_UNAVAILABLE with the reason.
std::unique_ptr<Backend> create_cuda_backend(const pnb_context_params& params);

}  // namespace pnb
