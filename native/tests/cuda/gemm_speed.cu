// Times every product of a decoder layer's LoRA step, forward and backward, with its fused epilogue, in turn with cuBLAS's
// bare product on the same matrices where libcublas is found:
//   cuda_gemm_speed [hidden ffn vocab [tokens ...]]
#include "cuda/gemm_timing.cuh"

using namespace test;

namespace {

struct Extras {
  bool bias = false, residual = false;
  int32_t epilogue = PNB_EPILOGUE_NONE;
  std::vector<std::pair<int64_t, int64_t>> terms;  // column, columns
  float p = 0.0f;
  int64_t rank = 4;
};

void time_product(Cublas& cublas, const char* name, FrozenWeights& w, bool forward, int64_t m, const Extras& extras) {
  int64_t k = forward ? w.in : w.out;
  int64_t n = forward ? w.out : w.in;
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
  pnb_gemm_params p{};
  p.struct_size = sizeof p;
  p.a = a->t;
  p.weight_use = forward ? PNB_WEIGHT_FORWARD : PNB_WEIGHT_BACKWARD;
  p.low_rank = terms.data();
  p.low_rank_count = static_cast<int32_t>(terms.size());
  p.epilogue = extras.epilogue;
  if (extras.bias) p.bias = bias.t;
  if (extras.residual) p.residual = residual->t;
  if (extras.epilogue != PNB_EPILOGUE_NONE) p.relu_mask = {mask->t.data, PNB_DTYPE_U8, 2, {m, n / 8}, {n / 8, 1}};
  p.d = d->t;
  Timed ours([&](cudaStream_t stream, int i) {
    p.stream = stream;
    p.weight = w.weights[i % w.weights.size()].get();
    ok(name, [&] { backend().gemm(p); });
  });
  std::unique_ptr<Timed> theirs;
  if (cublas.found()) {
    theirs = std::make_unique<Timed>([&](cudaStream_t stream, int i) {
      cublas.product(stream, a->t.data, w.storage[i % w.storage.size()]->t.data, forward, d->t.data, m, n, k);
    });
  }
  std::vector<Timed*> graphs = {&ours};
  if (theirs) graphs.push_back(theirs.get());
  alternate(graphs, 9, m * n * k > (int64_t{1} << 37) ? 1 : 3);
  double flop = 2e-9 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k), ms = ours.milliseconds();
  std::printf("%-20s %5lld %6lld %6lld %8.4f %8.0f", name, static_cast<long long>(m), static_cast<long long>(n),
              static_cast<long long>(k), ms, flop / ms);
  if (theirs) std::printf(" %8.0f %6.2f", flop / theirs->milliseconds(), theirs->milliseconds() / ms);
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  int64_t hidden = argc > 3 ? std::atoll(argv[1]) : 2048;
  int64_t ffn = argc > 3 ? std::atoll(argv[2]) : 8192;
  int64_t vocab = argc > 3 ? std::atoll(argv[3]) : 50272;
  std::vector<int64_t> tokens;
  for (int i = 4; i < argc; ++i) tokens.push_back(std::atoll(argv[i]));
  if (tokens.empty()) tokens = {1024, 2048, 4096, 8192};

  backend();
  Cublas cublas;
  FrozenWeights qkv(3 * hidden, hidden), out(hidden, hidden), fc1(ffn, hidden), fc2_transposed(ffn, hidden), head(vocab, hidden);
  std::printf("%-20s %5s %6s %6s %8s %8s %8s %6s\n", "product", "m", "n", "k", "ms", "TFLOP/s", "cuBLAS", "ratio");
  for (int64_t m : tokens) {
    auto time = [&](const char* name, FrozenWeights& w, bool forward, const Extras& extras) {
      time_product(cublas, name, w, forward, m, extras);
    };
    time("qkv+bias+lora", qkv, true, {true, false, PNB_EPILOGUE_NONE, {{0, hidden}, {2 * hidden, hidden}}});
    time("qkv+bias+lora16", qkv, true, {true, false, PNB_EPILOGUE_NONE, {{0, hidden}, {2 * hidden, hidden}}, 0.0f, 16});
    time("out+bias+residual", out, true, {true, true, PNB_EPILOGUE_NONE, {}});
    time("fc1+bias+relu+mask", fc1, true, {true, false, PNB_EPILOGUE_RELU, {}});
    time("fc2+bias+residual", fc2_transposed, false, {true, true, PNB_EPILOGUE_NONE, {}});
    time("dfc2+drelu", fc2_transposed, true, {false, false, PNB_EPILOGUE_DRELU, {}});
    time("dfc1", fc1, false, {});
    time("dout", out, false, {});
    time("dqkv+lora+residual", qkv, false, {false, true, PNB_EPILOGUE_NONE, {{0, hidden}, {0, hidden}}});
    time("dqkv+lora.1dropout", qkv, false, {false, false, PNB_EPILOGUE_NONE, {{0, hidden}, {0, hidden}}, 0.1f});
    time("head", head, true, {});
    time("dhead", head, false, {});
  }
  return finish("gemm_speed");
}
