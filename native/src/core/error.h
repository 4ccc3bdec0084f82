// The one exception that backends throw; capi turns it into a pnb_status and this thread's text.
#pragma once

#include <cstdarg>
#include <stdexcept>
#include <string>

#include "penumbra/status.h"

namespace pnb {

class __attribute__((visibility("default"))) Error : public std::runtime_error {
 public:
  Error(pnb_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  pnb_status status() const noexcept { return status_; }

 private:
  pnb_status status_;
};

// Throws Error with a printf-formatted text.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(pnb_status status, const char* format, ...);

}  // namespace pnb
