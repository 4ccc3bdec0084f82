// What the processor can do, as oneDNN sees it: ONEDNN_MAX_CPU_ISA may hold it back, so that tests reach the slower paths.
#pragma once

namespace pnb::cpu {

// Keeps oneDNN from AMX unless ONEDNN_MAX_CPU_ISA asks for it: on a Xeon with 16 threads its 3.8.1 gave NaN in bf16 training
// and crashed in generated code, where 2 and 8 threads, and every instruction set below, agreed with the GPU.
void choose_isa();

bool has_avx512();
bool has_avx512_bf16();

}  // namespace pnb::cpu
