// The dropout stream is the Philox4x32-10 that gemm.h states, not just any generator that agrees with itself.
#include "cpu/philox.h"
#include "harness.h"

int main() {
  uint64_t state[2] = {0, 0};
  // Philox4x32-10 of counter 0 and key 0.
  const uint32_t words[4] = {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u};
  for (float p : {0.399f, 0.3995f, 0.6f, 0.61f, 0.735f, 0.737f, 0.88f, 0.8815f}) {
    pnb_dropout dropout{p, 0, {state, PNB_DTYPE_U64, 1, {2}, {1}}};
    float row[4] = {1, 1, 1, 1};
    pnb::cpu::DropoutMask(dropout).apply(row, 0, 4);
    for (int i = 0; i < 4; ++i) {
      bool dropped = words[i] < static_cast<double>(p) * 0x1p32;
      test::expect((row[i] == 0) == dropped, "element " + std::to_string(i) + " at p " + std::to_string(p));
    }
  }
  return test::finish("lora_test");
}
