// What every entry point does: look at the context and the struct's size, run, turn exceptions into a status.
#pragma once

#include <new>

#include "core/backend.h"
#include "core/error.h"

struct pnb_context {
  std::unique_ptr<pnb::Backend> backend;
};

namespace pnb {

// Keeps the text for pnb_last_error() and hands the status back.
pnb_status report(pnb_status status, const char* text) noexcept;

template <typename Body>
pnb_status guarded(const char* op, Body&& body) noexcept {
  try {
    body();
    return PNB_OK;
  } catch (const Error& error) {
    return report(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return report(PNB_ERROR_OUT_OF_MEMORY, (std::string(op) + ": host memory is exhausted").c_str());
  } catch (const std::exception& error) {
    return report(PNB_ERROR_INTERNAL, (std::string(op) + ": " + error.what()).c_str());
  } catch (...) {
    return report(PNB_ERROR_INTERNAL, op);
  }
}

template <typename Params>
void check_params(const char* op, const Params* params) {
  if (params == nullptr) fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected params, found NULL", op);
  if (params->struct_size != sizeof(Params)) {
    fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected struct_size %zu, found %u: header and library differ", op, sizeof(Params),
         params->struct_size);
  }
}

template <typename Params, typename Body>
pnb_status entry(const char* op, pnb_context* context, const Params* params, Body&& body) noexcept {
  return guarded(op, [&] {
    if (context == nullptr) fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected a context, found NULL", op);
    check_params(op, params);
    body(*context->backend);
  });
}

// A workspace or storage query: as entry, with somewhere to put the answer.
template <typename Params, typename Body>
pnb_status query(const char* op, pnb_context* context, const Params* params, uint64_t* bytes, Body&& body) noexcept {
  return entry(op, context, params, [&](Backend& backend) {
    if (bytes == nullptr) fail(PNB_ERROR_INVALID_ARGUMENT, "%s: expected somewhere to write the bytes, found NULL", op);
    *bytes = body(backend);
  });
}

}  // namespace pnb
