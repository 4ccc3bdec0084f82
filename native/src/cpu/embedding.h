// Token embedding and learned positions.
#pragma once

#include "penumbra/embedding.h"

namespace pnb::cpu {

void embedding(const pnb_embedding_params& p, int threads);

}  // namespace pnb::cpu
