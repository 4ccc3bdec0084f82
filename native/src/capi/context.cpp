#include "capi/check.h"
#include "capi/entry.h"

namespace pnb {

namespace {
thread_local std::string last_error;
}

pnb_status report(pnb_status status, const char* text) noexcept {
  try {
    last_error = text;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

}  // namespace pnb

extern "C" {

const char* pnb_last_error(void) { return pnb::last_error.c_str(); }

const char* pnb_version(void) { return PENUMBRA_VERSION; }

pnb_status pnb_context_create(const pnb_context_params* params, pnb_context** context) {
  return pnb::guarded("context", [&] {
    pnb::check_params("context", params);
    pnb::check::Checker check("context");
    check.that(context != nullptr, "expected somewhere to write the context, found NULL");
    check.that(params->device == PNB_DEVICE_CPU || params->device == PNB_DEVICE_CUDA,
               "expected device 0 (CPU) or 1 (CUDA), found %d", params->device);
    check.that(params->ordinal >= 0, "expected an ordinal of 0 or more, found %d", params->ordinal);
    check.that(params->threads >= 0 && params->threads <= 1024, "expected 0 to 1024 threads, found %d", params->threads);
    auto created = std::make_unique<pnb_context>();
    created->backend = pnb::create_backend(*params);
    *context = created.release();
  });
}

void pnb_context_destroy(pnb_context* context) { delete context; }

pnb_status pnb_context_describe(pnb_context* context, const char** text) {
  return pnb::guarded("context", [&] {
    pnb::check::Checker check("context");
    check.that(context != nullptr && text != nullptr, "expected a context and somewhere to write the text, found NULL");
    *text = context->backend->describe().c_str();
  });
}

pnb_status pnb_context_memory(pnb_context* context, uint64_t* bytes) {
  return pnb::guarded("context", [&] {
    pnb::check::Checker check("context");
    check.that(context != nullptr && bytes != nullptr, "expected a context and somewhere to write the bytes, found NULL");
    *bytes = context->backend->memory();
  });
}

}  // extern "C"
