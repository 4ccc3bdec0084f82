// What blocks of neurons are chosen by: how much a batch used them, or is expected to.
#pragma once

#include "cpu/matmul.h"
#include "penumbra/sparse.h"

namespace pnb::cpu {

void activation_mass(const pnb_activation_mass_params& p, int threads);

void predict_mass(Matmul& matmul, const pnb_predict_mass_params& p, int threads);
uint64_t predict_mass_workspace(const pnb_predict_mass_params& p);

void relative_mass(const pnb_relative_mass_params& p);

}  // namespace pnb::cpu
