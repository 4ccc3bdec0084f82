// A low-rank guess of what blocks of keys weigh with blocks of queries.
#pragma once

#include "penumbra/attention.h"

namespace pnb::cpu {

void predict_attention(const pnb_predict_attention_params& p, int threads);
uint64_t predict_attention_workspace(const pnb_predict_attention_params& p, int threads);

}  // namespace pnb::cpu
