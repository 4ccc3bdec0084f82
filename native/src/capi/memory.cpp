#include <cmath>
#include <cstring>

#include "capi/check.h"
#include "capi/entry.h"

using pnb::Backend;
using pnb::check::Checker;

namespace {

// An element is not finite when all its exponent bits are set.
template <typename Word>
int64_t first_with_exponent(const void* data, int64_t count, Word mask) {
  const char* bytes = static_cast<const char*>(data);
  for (int64_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, bytes + i * sizeof word, sizeof word);
    if ((word & mask) == mask) return i;
  }
  return -1;
}

}  // namespace

extern "C" {

pnb_status pnb_fill(pnb_context* context, const pnb_fill_params* params) {
  return pnb::entry("fill", context, params, [&](Backend& backend) {
    Checker check("fill");
    check.that(params->d.rank >= 1 && params->d.rank <= PNB_MAX_RANK, "expected d of rank 1 to 4, found %d", params->d.rank);
    check.tensor(params->d, "d", params->d.rank,
                 {PNB_DTYPE_F32, PNB_DTYPE_BF16, PNB_DTYPE_I32, PNB_DTYPE_U8, PNB_DTYPE_U64});
    backend.fill(*params);
  });
}

pnb_status pnb_convert(pnb_context* context, const pnb_convert_params* params) {
  return pnb::entry("convert", context, params, [&](Backend& backend) {
    Checker check("convert");
    const pnb_tensor& s = params->s;
    check.that(s.rank >= 1 && s.rank <= PNB_MAX_RANK, "expected s of rank 1 to 4, found %d", s.rank);
    check.tensor(s, "s", s.rank, {PNB_DTYPE_F32, PNB_DTYPE_BF16, PNB_DTYPE_F16});
    check.tensor(params->d, "d", s.rank, {PNB_DTYPE_F32, PNB_DTYPE_BF16});
    for (int i = 0; i < s.rank; ++i) check.dim(params->d, "d", i, s.shape[i]);
    backend.convert(*params);
  });
}

pnb_status pnb_find_not_finite(pnb_context* context, const pnb_tensor* tensor, int64_t* index) {
  return pnb::guarded("find_not_finite", [&] {
    Checker check("find_not_finite");
    check.that(context != nullptr && tensor != nullptr && index != nullptr,
               "expected a context, a tensor and an index, found NULL");
    check.that(tensor->rank >= 1 && tensor->rank <= PNB_MAX_RANK, "expected a tensor of rank 1 to 4, found %d", tensor->rank);
    check.tensor(*tensor, "tensor", tensor->rank, {PNB_DTYPE_F32, PNB_DTYPE_BF16, PNB_DTYPE_F16});
    check.contiguous(*tensor, "tensor");
    int64_t count = pnb::element_count(*tensor);
    switch (tensor->dtype) {
      case PNB_DTYPE_F32: *index = first_with_exponent<uint32_t>(tensor->data, count, 0x7f800000u); break;
      case PNB_DTYPE_BF16: *index = first_with_exponent<uint16_t>(tensor->data, count, 0x7f80u); break;
      default: *index = first_with_exponent<uint16_t>(tensor->data, count, 0x7c00u); break;
    }
  });
}

}  // extern "C"
