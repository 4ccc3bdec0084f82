#include "cpu/attention_lists.h"

#include "core/error.h"

namespace pnb::cpu {

const int32_t* borders(const char* op, const char* name, const pnb_tensor& t, int64_t tokens, int64_t longest) {
  const int32_t* cu = static_cast<const int32_t*>(t.data);
  for (int64_t s = 0; s < t.shape[0]; ++s) {
    int64_t before = s == 0 ? 0 : cu[s - 1];
    if (cu[s] < before || cu[s] > tokens || (s == 0 && cu[0] != 0) || cu[s] - before > longest) {
      fail(PNB_ERROR_INVALID_ARGUMENT,
           "%s: expected %s ascending from 0 to at most %lld in steps of at most %lld, found %d after %lld at %lld", op, name,
           static_cast<long long>(tokens), static_cast<long long>(longest), cu[s], static_cast<long long>(before),
           static_cast<long long>(s));
    }
  }
  return cu;
}

void check_lists(const char* op, const pnb_attention_blocks& blocks, bool transposed, const int32_t* cu, int64_t samples) {
  const pnb_tensor& indices = transposed ? blocks.t_indices : blocks.indices;
  const int32_t* counts = static_cast<const int32_t*>((transposed ? blocks.t_counts : blocks.counts).data);
  const char* kind = transposed ? "the transposed list" : "the list";
  int64_t slots = indices.shape[1], width = indices.shape[2];
  for (int64_t head = 0; head < indices.shape[0]; ++head) {
    for (int64_t sample = 0; sample < samples; ++sample) {
      SampleBlocks own(cu, sample, blocks.size);
      for (int64_t block = 0; block < own.count; ++block) {
        int64_t slot = own.first_slot + block;
        const int32_t* list = static_cast<const int32_t*>(indices.data) + (head * slots + slot) * width;
        int32_t count = counts[head * slots + slot];
        if (count < 0 || count > width) {
          fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected 0 to %lld blocks in %s of head %lld, slot %lld, found %d", op,
               static_cast<long long>(width), kind, static_cast<long long>(head), static_cast<long long>(slot), count);
        }
        int64_t end = transposed ? own.count : block + 1;
        int64_t least = transposed ? block : 0;
        for (int32_t c = 0; c < count; ++c) {
          if (list[c] < least || list[c] >= end) {
            fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected block %d of %s of head %lld, slot %lld in [%lld, %lld), found %d", op, c,
                 kind, static_cast<long long>(head), static_cast<long long>(slot), static_cast<long long>(least),
                 static_cast<long long>(end), list[c]);
          }
          least = list[c] + 1;
        }
      }
    }
  }
}

}  // namespace pnb::cpu
