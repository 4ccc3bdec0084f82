#include "core/library_backend.h"

#include <dlfcn.h>

#include <cstring>

#include "core/backend_library.h"
#include "core/error.h"

namespace pnb {

namespace {

// Runs one function of the table and throws what it reports.
template <typename Call>
auto checked(Call&& call) {
  LibraryError error;
  struct Raise {
    LibraryError& error;
    void operator()() const {
      if (error.status != PNB_OK) throw Error(error.status, error.text);
    }
  } raise{error};
  if constexpr (std::is_void_v<decltype(call(&error))>) {
    call(&error);
    raise();
  } else {
    auto result = call(&error);
    raise();
    return result;
  }
}

class LibraryBackend final : public Backend {
 public:
  LibraryBackend(const BackendLibrary& library, const pnb_context_params& params)
      : library_(library), backend_(checked([&](LibraryError* e) { return library.create(&params, e); })),
        text_(library.describe(backend_)) {}
  ~LibraryBackend() override { library_.destroy(backend_); }

  LibraryBackend(const LibraryBackend&) = delete;
  LibraryBackend& operator=(const LibraryBackend&) = delete;

  const std::string& describe() const override { return text_; }
  uint64_t memory() const override {
    return checked([&](LibraryError* e) { return library_.memory(backend_, e); });
  }
  std::unique_ptr<pnb_weight> weight_create(const pnb_weight_params& p) override {
    return std::unique_ptr<pnb_weight>(checked([&](LibraryError* e) { return library_.weight_create(backend_, &p, e); }));
  }

#define PNB_FORWARD(name)                                                   \
  void name(const pnb_##name##_params& p) override {                        \
    checked([&](LibraryError* e) { return library_.name(backend_, &p, e); }); \
  }
  PNB_BACKEND_OPERATIONS(PNB_FORWARD)
#undef PNB_FORWARD
#define PNB_FORWARD(name, op)                                                      \
  uint64_t name(const pnb_##op##_params& p) override {                             \
    return checked([&](LibraryError* e) { return library_.name(backend_, &p, e); }); \
  }
  PNB_BACKEND_SIZES(PNB_FORWARD)
#undef PNB_FORWARD

 private:
  const BackendLibrary& library_;
  Backend* backend_;
  std::string text_;
};

// Opened once and kept: a CUDA library that goes away would take its device's context with it.
const BackendLibrary& cuda_library() {
  static const BackendLibrary* const library = [] {
    void* handle = dlopen(kCudaLibraryName, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) fail(PNB_ERROR_UNAVAILABLE, "context: %s cannot be loaded: %s", kCudaLibraryName, dlerror());
    auto function = reinterpret_cast<BackendLibraryFunction>(dlsym(handle, kCudaLibrarySymbol));
    if (function == nullptr) fail(PNB_ERROR_UNAVAILABLE, "context: %s does not export %s", kCudaLibraryName, kCudaLibrarySymbol);
    const BackendLibrary* table = function();
    if (table->struct_size != sizeof(BackendLibrary) || std::strcmp(table->version, pnb_version()) != 0) {
      fail(PNB_ERROR_UNAVAILABLE, "context: expected %s of version %s, found %s", kCudaLibraryName, pnb_version(), table->version);
    }
    return table;
  }();
  return *library;
}

}  // namespace

std::unique_ptr<Backend> create_cuda_backend(const pnb_context_params& params) {
  return std::make_unique<LibraryBackend>(cuda_library(), params);
}

}  // namespace pnb
