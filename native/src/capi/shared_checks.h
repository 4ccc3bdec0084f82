// Checks of operands that several operations take.
#pragma once

#include "capi/check.h"
#include "penumbra/gemm.h"

namespace pnb::check {

void dropout(const Checker& check, const pnb_dropout& d);

}  // namespace pnb::check
