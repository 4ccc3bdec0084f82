// Validation of arguments: every message names the operation and the argument, what was expected and what was found.
#pragma once

#include <initializer_list>

#include "core/error.h"
#include "core/tensor.h"

namespace pnb::check {

enum Place { kNeeded, kShapeOnly };  // a workspace query reads shapes and dtypes, not pointers

class Checker {
 public:
  explicit Checker(const char* op, Place place = kNeeded) : op_(op), place_(place) {}

  const char* op() const { return op_; }

  // A tensor that must be there, of this rank and one of these dtypes.
  void tensor(const pnb_tensor& t, const char* name, int rank, std::initializer_list<int32_t> dtypes) const;
  // As above where the tensor is present; says whether it is.
  bool optional(const pnb_tensor& t, const char* name, int rank, std::initializer_list<int32_t> dtypes) const;

  void dim(const pnb_tensor& t, const char* name, int index, int64_t expected) const;
  void shape(const pnb_tensor& t, const char* name, std::initializer_list<int64_t> expected) const;
  void dtype(const pnb_tensor& t, const char* name, int32_t expected) const;
  // The last dimension's stride is 1.
  void rows_contiguous(const pnb_tensor& t, const char* name) const;
  void contiguous(const pnb_tensor& t, const char* name) const;
  void workspace(const pnb_workspace& w, uint64_t needed) const;
  void that(bool condition, const char* format, ...) const __attribute__((format(printf, 3, 4)));

 private:
  void form(const pnb_tensor& t, const char* name, int rank, std::initializer_list<int32_t> dtypes) const;

  const char* op_;
  Place place_;
};

}  // namespace pnb::check
