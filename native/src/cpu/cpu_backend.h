// The CPU backend: oneDNN for matrix products, plain loops for the rest.
#pragma once

#include "core/backend.h"

namespace pnb::cpu {

std::unique_ptr<Backend> create(const pnb_context_params& params);

}  // namespace pnb::cpu
