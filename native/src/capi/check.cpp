#include "capi/check.h"

#include <cstdarg>
#include <cstdio>

namespace pnb::check {

void Checker::that(bool condition, const char* format, ...) const {
  if (condition) return;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fail(PNB_ERROR_INVALID_ARGUMENT, "%s: %s", op_, text);
}

void Checker::form(const pnb_tensor& t, const char* name, int rank, std::initializer_list<int32_t> dtypes) const {
  that(t.rank == rank, "expected %s of rank %d, found rank %d", name, rank, t.rank);
  bool known = false;
  std::string wanted;
  for (int32_t dtype : dtypes) {
    known |= t.dtype == dtype;
    wanted += std::string(wanted.empty() ? "" : " or ") + dtype_name(dtype);
  }
  that(known, "expected %s in %s, found %s (code %d)", name, wanted.c_str(), dtype_name(t.dtype), t.dtype);
  for (int i = 0; i < rank; ++i) {
    that(t.shape[i] >= 0, "expected %s with dimensions of 0 or more, found %s", name, shape_text(t).c_str());
    that(t.stride[i] >= 0, "expected %s with strides of 0 or more, found stride %lld in dimension %d", name,
         static_cast<long long>(t.stride[i]), i);
  }
}

void Checker::tensor(const pnb_tensor& t, const char* name, int rank, std::initializer_list<int32_t> dtypes) const {
  that(place_ == kShapeOnly || present(t), "expected %s, found no data", name);
  form(t, name, rank, dtypes);
}

bool Checker::optional(const pnb_tensor& t, const char* name, int rank, std::initializer_list<int32_t> dtypes) const {
  // A query describes an absent operand by rank 0 and a present one by its shape.
  if (!present(t) && (place_ == kNeeded || t.rank == 0)) return false;
  form(t, name, rank, dtypes);
  return true;
}

void Checker::dim(const pnb_tensor& t, const char* name, int index, int64_t expected) const {
  that(t.shape[index] == expected, "expected %s with %lld in dimension %d, found %s", name, static_cast<long long>(expected),
       index, shape_text(t).c_str());
}

void Checker::shape(const pnb_tensor& t, const char* name, std::initializer_list<int64_t> expected) const {
  pnb_tensor wanted{};
  wanted.rank = static_cast<int32_t>(expected.size());
  int i = 0;
  bool equal = t.rank == wanted.rank;
  for (int64_t size : expected) {
    wanted.shape[i] = size;
    equal = equal && t.shape[i] == size;
    ++i;
  }
  that(equal, "expected %s of shape %s, found %s", name, shape_text(wanted).c_str(), shape_text(t).c_str());
}

void Checker::dtype(const pnb_tensor& t, const char* name, int32_t expected) const {
  that(t.dtype == expected, "expected %s in %s, found %s", name, dtype_name(expected), dtype_name(t.dtype));
}

void Checker::rows_contiguous(const pnb_tensor& t, const char* name) const {
  int last = t.rank - 1;
  that(t.shape[last] <= 1 || t.stride[last] == 1, "expected %s with contiguous rows, found stride %lld in its last dimension",
       name, static_cast<long long>(t.stride[last]));
}

void Checker::contiguous(const pnb_tensor& t, const char* name) const {
  that(is_contiguous(t), "expected %s to be contiguous, found a strided view of shape %s", name, shape_text(t).c_str());
}

void Checker::workspace(const pnb_workspace& w, uint64_t needed) const {
  that(w.bytes >= needed && (needed == 0 || w.data != nullptr), "expected a workspace of %llu bytes, found %llu",
       static_cast<unsigned long long>(needed), static_cast<unsigned long long>(w.data ? w.bytes : 0));
}

}  // namespace pnb::check
