// Times every product of a decoder layer's LoRA step, forward and backward, with its fused epilogue, out of a CUDA graph:
//   cuda_gemm_speed [hidden ffn vocab [tokens ...]]
// One line a product: name, m, n, k, whether the weight is read forward, ms, TFLOP/s. gemm_speed_peer.py adds cuBLAS.
#include "cuda/harness.cuh"

using namespace test;

namespace {

// Weights in turn, so that none is still in L2 when it comes round again.
constexpr int kCopies = 8;

struct FrozenWeights {
  std::vector<std::unique_ptr<Tensor>> storage;
  std::vector<std::unique_ptr<pnb_weight>> weights;

  FrozenWeights(int64_t out, int64_t in) {
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

__global__ void fill_random(uint32_t* words, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9E3779B9u + seed;
    x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
    x = (x ^ (x >> 13)) * 0xC2B2AE35u;
    words[i] = (x & 0x80ff80ffu) | 0x3f003f00u;  // bf16: 0.5 .. 2, either sign
  }
}

// bf16 values of either sign around 1.
std::unique_ptr<Tensor> activations(int64_t rows, int64_t columns) {
  auto tensor = std::make_unique<Tensor>(PNB_DTYPE_BF16, std::vector<int64_t>{rows, columns}, 0.0);
  fill_random<<<1024, 256>>>(static_cast<uint32_t*>(tensor->t.data), rows * columns / 2, static_cast<uint32_t>(rows + columns));
  return tensor;
}

struct Extras {
  bool bias = false, residual = false;
  int32_t epilogue = PNB_EPILOGUE_NONE;
  std::vector<std::pair<int64_t, int64_t>> terms;  // column, columns; each of rank 4
  float p = 0.0f;
  int64_t rank = 4;
};

void time_product(const char* name, FrozenWeights& w, bool forward, int64_t m, const Extras& extras) {
  int64_t k = forward ? w.weights[0]->in : w.weights[0]->out;
  int64_t n = forward ? w.weights[0]->out : w.weights[0]->in;
  auto a = activations(m, k), residual = activations(m, n), d = activations(m, n), mask = activations(m, n / 16);
  Tensor bias(PNB_DTYPE_F32, {n}), h(PNB_DTYPE_F32, {m, extras.rank}), state(PNB_DTYPE_U64, {2}, 0.0);
  std::vector<std::unique_ptr<Tensor>> factors;
  std::vector<pnb_low_rank> terms;
  for (const auto& [column, columns] : extras.terms) {
    factors.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{columns, extras.rank}));
    pnb_low_rank term{};
    term.h = h.t;
    term.b = factors.back()->t;
    term.column = column;
    term.scale = 2.0f;
    term.dropout.p = extras.p;
    term.dropout.state = state.t;
    terms.push_back(term);
  }
  cudaStream_t stream;
  cuda(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < kCopies; ++i) {
    pnb_gemm_params p{};
    p.struct_size = sizeof p;
    p.stream = stream;
    p.a = a->t;
    p.weight = w.weights[i % w.weights.size()].get();
    p.weight_use = forward ? PNB_WEIGHT_FORWARD : PNB_WEIGHT_BACKWARD;
    p.low_rank = terms.data();
    p.low_rank_count = static_cast<int32_t>(terms.size());
    p.epilogue = extras.epilogue;
    if (extras.bias) p.bias = bias.t;
    if (extras.residual) p.residual = residual->t;
    if (extras.epilogue != PNB_EPILOGUE_NONE) p.relu_mask = {mask->t.data, PNB_DTYPE_U8, 2, {m, n / 8}, {n / 8, 1}};
    p.d = d->t;
    ok(name, [&] { backend().gemm(p); });
  }
  cuda(cudaStreamEndCapture(stream, &graph));
  cuda(cudaGraphInstantiate(&replay, graph, 0));
  double ms = milliseconds([&] { cuda(cudaGraphLaunch(replay, nullptr)); }, 9, m * n * k > (int64_t{1} << 37) ? 1 : 3) / kCopies;
  std::printf("%s %lld %lld %lld %d %.5f %.1f\n", name, static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k),
              forward, ms, 2e-9 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) / ms);
  std::fflush(stdout);
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace

int main(int argc, char** argv) {
  int64_t hidden = argc > 3 ? std::atoll(argv[1]) : 2048;
  int64_t ffn = argc > 3 ? std::atoll(argv[2]) : 8192;
  int64_t vocab = argc > 3 ? std::atoll(argv[3]) : 50272;
  std::vector<int64_t> tokens;
  for (int i = 4; i < argc; ++i) tokens.push_back(std::atoll(argv[i]));
  if (tokens.empty()) tokens = {1024, 2048, 4096, 8192};

  FrozenWeights qkv(3 * hidden, hidden), out(hidden, hidden), fc1(ffn, hidden), fc2(hidden, ffn), head(vocab, hidden);
  for (int64_t m : tokens) {
    time_product("qkv+bias+lora", qkv, true, m, {true, false, PNB_EPILOGUE_NONE, {{0, hidden}, {2 * hidden, hidden}}});
    time_product("out+bias+residual", out, true, m, {true, true, PNB_EPILOGUE_NONE, {}});
    time_product("fc1+bias+relu+mask", fc1, true, m, {true, false, PNB_EPILOGUE_RELU, {}});
    time_product("fc2+bias+residual", fc2, true, m, {true, true, PNB_EPILOGUE_NONE, {}});
    time_product("dfc2+drelu", fc2, false, m, {false, false, PNB_EPILOGUE_DRELU, {}});
    time_product("dfc1", fc1, false, m, {});
    time_product("dout", out, false, m, {});
    time_product("dqkv+lora+residual", qkv, false, m, {false, true, PNB_EPILOGUE_NONE, {{0, hidden}, {0, hidden}}});
    time_product("dqkv+lora.1dropout", qkv, false, m, {false, false, PNB_EPILOGUE_NONE, {{0, hidden}, {0, hidden}}, 0.1f});
    time_product("qkv+lora16", qkv, true, m, {true, false, PNB_EPILOGUE_NONE, {{0, hidden}, {2 * hidden, hidden}}, 0.0f, 16});
    time_product("head", head, true, m, {});
    time_product("dhead", head, false, m, {});
  }
  return finish("gemm_speed");
}
