// Checks of operands that several operations take.
#pragma once

#include "capi/check.h"
#include "penumbra/gemm.h"

namespace pnb::check {

void dropout(const Checker& check, const pnb_dropout& d);
// A weight that is there, packed where the operation computes with it.
void weight(const Checker& check, Place place, const pnb_weight* weight);

}  // namespace pnb::check
