#pragma once

#include "cuda/runtime/device.h"

namespace pnb::cuda {

void activation_mass(const Device& device, const pnb_activation_mass_params& p);
uint64_t activation_mass_workspace(const pnb_activation_mass_params& p);
void predict_mass(const Device& device, const pnb_predict_mass_params& p);
uint64_t predict_mass_workspace(const pnb_predict_mass_params& p);
void relative_mass(const pnb_relative_mass_params& p);
void select_blocks(const pnb_select_blocks_params& p);

}  // namespace pnb::cuda
