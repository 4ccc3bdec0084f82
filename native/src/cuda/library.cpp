// The table that this library exports.
#include "core/backend_library.h"

#include <cstdio>
#include <new>

#include "cuda/cuda_backend.h"

namespace pnb::cuda {

namespace {

void write(LibraryError* error, pnb_status status, const char* text) {
  error->status = status;
  std::snprintf(error->text, sizeof error->text, "%s", text);
}

// Runs body with the backend's device selected on the calling thread; turns what it throws into *error.
template <typename Body>
auto guarded(LibraryError* error, Body&& body) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (const Error& e) {
    write(error, e.status(), e.what());
  } catch (const std::bad_alloc&) {
    write(error, PNB_ERROR_OUT_OF_MEMORY, "host memory is exhausted");
  } catch (const std::exception& e) {
    write(error, PNB_ERROR_INTERNAL, e.what());
  }
  return decltype(body())();
}

CudaBackend& selected(Backend* backend) {
  auto& cuda = *static_cast<CudaBackend*>(backend);
  check(cudaSetDevice(cuda.device().ordinal), "context");
  return cuda;
}

const BackendLibrary kLibrary = {
    sizeof(BackendLibrary),
    PENUMBRA_VERSION,
    [](const pnb_context_params* p, LibraryError* e) { return guarded(e, [&]() -> Backend* { return new CudaBackend(*p); }); },
    [](Backend* b) { delete b; },
    [](Backend* b) { return b->describe().c_str(); },
    [](Backend* b, LibraryError* e) { return guarded(e, [&] { return b->memory(); }); },
    [](Backend* b, const pnb_weight_params* p, LibraryError* e) {
      return guarded(e, [&] { return selected(b).weight_create(*p).release(); });
    },
#define PNB_ENTRY(name) \
  [](Backend* b, const pnb_##name##_params* p, LibraryError* e) { guarded(e, [&] { selected(b).name(*p); }); },
    PNB_BACKEND_OPERATIONS(PNB_ENTRY)
#undef PNB_ENTRY
#define PNB_ENTRY(name, op) \
  [](Backend* b, const pnb_##op##_params* p, LibraryError* e) { return guarded(e, [&] { return selected(b).name(*p); }); },
        PNB_BACKEND_SIZES(PNB_ENTRY)
#undef PNB_ENTRY
};

}  // namespace

}  // namespace pnb::cuda

extern "C" PNB_API const pnb::BackendLibrary* pnb_cuda_backend_library() { return &pnb::cuda::kLibrary; }
