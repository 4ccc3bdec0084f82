// What programs that time products share: weights, activations, graphs of products, and cuBLAS beside them.
#pragma once

#include <dlfcn.h>

#include <memory>

#include "cuda/harness.cuh"

namespace test {

// Weights in turn, so that none is still in L2 when it comes round again.
constexpr int kCopies = 8;

struct FrozenWeights {
  int64_t out, in;
  std::vector<std::unique_ptr<Tensor>> storage;
  std::vector<std::unique_ptr<pnb_weight>> weights;

  FrozenWeights(int64_t out, int64_t in) : out(out), in(in) {
    std::vector<uint16_t> host(out * in);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    uint16_t drawn[4099];
    for (uint16_t& bits : drawn) bits = float_to_bf16(normal(generator()));
    for (size_t e = 0; e < host.size(); ++e) host[e] = drawn[(e + e / 4099 * 17) % 4099];
    pnb_tensor part{host.data(), PNB_DTYPE_BF16, 2, {out, in}, {in, 1}};
    pnb_weight_params p{};
    p.struct_size = sizeof p;
    p.dtype = PNB_DTYPE_BF16;
    p.uses = PNB_WEIGHT_FORWARD | PNB_WEIGHT_BACKWARD;
    p.part_count = 1;
    p.parts = &part;
    p.storage_bytes = backend().weight_storage(p);
    int copies = out * in > (64 << 20) ? 1 : kCopies;
    for (int i = 0; i < copies; ++i) {
      storage.push_back(std::make_unique<Tensor>(PNB_DTYPE_U8, std::vector<int64_t>{static_cast<int64_t>(p.storage_bytes)}, 0.0));
      p.storage = storage.back()->t.data;
      weights.push_back(backend().weight_create(p));
    }
  }
};

static __global__ void fill_random(uint32_t* words, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9E3779B9u + seed;
    x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
    x = (x ^ (x >> 13)) * 0xC2B2AE35u;
    words[i] = (x & 0x80ff80ffu) | 0x3f003f00u;  // bf16: 0.5 .. 2, either sign
  }
}

// bf16 values of either sign around 1.
inline std::unique_ptr<Tensor> activations(int64_t rows, int64_t columns) {
  auto tensor = std::make_unique<Tensor>(PNB_DTYPE_BF16, std::vector<int64_t>{rows, columns}, 0.0);
  fill_random<<<1024, 256>>>(static_cast<uint32_t*>(tensor->t.data), rows * columns / 2, static_cast<uint32_t>(rows + columns));
  return tensor;
}

// A graph of kCopies products, and what one of them took each time.
class Timed {
 public:
  template <typename Body>
  explicit Timed(Body&& product) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cuda(cudaStreamCreate(&stream));
    cuda(cudaDeviceSynchronize());
    cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kCopies; ++i) product(stream, i);
    cuda(cudaStreamEndCapture(stream, &graph), "capturing products");
    cuda(cudaGraphInstantiate(&replay_, graph, 0));
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    cuda(cudaEventCreate(&start_));
    cuda(cudaEventCreate(&stop_));
  }
  ~Timed() {
    cudaGraphExecDestroy(replay_);
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

  void run(int calls, bool counted) {
    cuda(cudaEventRecord(start_));
    for (int i = 0; i < calls; ++i) cuda(cudaGraphLaunch(replay_, nullptr));
    cuda(cudaEventRecord(stop_));
    cuda(cudaEventSynchronize(stop_), "timed products");
    float ms;
    cuda(cudaEventElapsedTime(&ms, start_, stop_));
    if (counted) times_.push_back(ms / static_cast<float>(calls * kCopies));
  }

  double milliseconds() const {
    std::vector<double> sorted = times_;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }

 private:
  cudaGraphExec_t replay_;
  cudaEvent_t start_, stop_;
  std::vector<double> times_;
};

// Times several graphs in turn, so that a clock that changes changes for all of them.
inline void alternate(const std::vector<Timed*>& graphs, int rounds = 9, int calls = 3) {
  for (int round = -1; round < rounds; ++round) {
    for (Timed* graph : graphs) graph->run(calls, round >= 0);
  }
}

// cuBLAS, found at run time: the bare product, without an epilogue.
class Cublas {
 public:
  Cublas() {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
      if (library_ == nullptr) library_ = dlopen(name, RTLD_NOW);
    }
    if (library_ == nullptr) return;
    auto create = reinterpret_cast<int (*)(void**)>(dlsym(library_, "cublasCreate_v2"));
    auto set_workspace = reinterpret_cast<int (*)(void*, void*, size_t)>(dlsym(library_, "cublasSetWorkspace_v2"));
    set_stream_ = reinterpret_cast<int (*)(void*, void*)>(dlsym(library_, "cublasSetStream_v2"));
    set_workspace_ = set_workspace;
    gemm_ = reinterpret_cast<GemmEx>(dlsym(library_, "cublasGemmEx"));
    constexpr size_t kWorkspace = size_t{32} << 20;  // what PyTorch gives it on this GPU
    cuda(cudaMalloc(&workspace_, kWorkspace));
    bool created = create(&handle_) == 0;
    expect(created, "expected cuBLAS to open");
    if (!created) library_ = nullptr;
  }

  bool found() const { return library_ != nullptr; }

  // d[m, n] = a[m, k] W^T, or a W; rows contiguous.
  void product(cudaStream_t stream, const void* a, const void* w, bool forward, void* d, int64_t m, int64_t n, int64_t k) {
    constexpr int kBf16 = 14, kComputeF32 = 68, kDefault = -1;
    float one = 1.0f, zero = 0.0f;
    set_stream_(handle_, stream);
    set_workspace_(handle_, workspace_, size_t{32} << 20);
    int result = gemm_(handle_, forward ? 1 : 0, 0, static_cast<int>(n), static_cast<int>(m), static_cast<int>(k), &one, w, kBf16,
                       static_cast<int>(forward ? k : n), a, kBf16, static_cast<int>(k), &zero, d, kBf16, static_cast<int>(n),
                       kComputeF32, kDefault);
    expect(result == 0, "expected cuBLAS to compute, found status " + std::to_string(result));
  }

 private:
  using GemmEx = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*,
                         void*, int, int, int, int);
  void* library_ = nullptr;
  void* handle_ = nullptr;
  void* workspace_ = nullptr;
  int (*set_stream_)(void*, void*) = nullptr;
  int (*set_workspace_)(void*, void*, size_t) = nullptr;
  GemmEx gemm_ = nullptr;
};

}  // namespace test
