// What the processor can do, as oneDNN sees it: ONEDNN_MAX_CPU_ISA may hold it back, so that tests reach the slower paths.
#pragma once

namespace pnb::cpu {

bool has_avx512();
bool has_avx512_bf16();

}  // namespace pnb::cpu
