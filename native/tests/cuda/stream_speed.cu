// Times of the streaming passes and of what chooses blocks, at the shapes of OPT-1.3B with 4 x 1024 tokens, bf16. Operands
// rotate through more memory than the second-level cache holds, so that every call reads device memory; a call is timed as one
// of a graph's many. GB/s counts what must be read and written once; the last column is that against a measured copy.
#include <memory>

#include "cuda/gemm_timing.cuh"

using namespace test;

namespace {

constexpr int64_t kTokens = 4096;
constexpr int kSets = 8;           // of operands
constexpr float kWarmUp = 150.0f;  // ms

template <typename Params>
Params params() {
  Params p{};
  p.struct_size = sizeof p;
  return p;
}

double copy_rate = 1;  // GB/s

// Microseconds of a call out of a graph of `calls` of them, call i with operands i % kSets; the median of eleven replays, after
// as many as bring the clocks up.
double microseconds(const std::function<void(int, cudaStream_t)>& call, int calls = 48) {
  cudaStream_t stream;
  cuda(cudaStreamCreate(&stream));
  for (int i = 0; i < kSets; ++i) call(i, stream);
  cuda(cudaStreamSynchronize(stream), "a first call");
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) call(i % kSets, stream);
  cuda(cudaStreamEndCapture(stream, &graph));
  cuda(cudaGraphInstantiate(&ready, graph, 0));
  cudaEvent_t start, stop;
  cuda(cudaEventCreate(&start));
  cuda(cudaEventCreate(&stop));
  std::vector<float> times;
  float warm = 0;
  for (int i = 0; i < 11 || warm < kWarmUp; ++i) {
    cuda(cudaEventRecord(start, stream));
    cuda(cudaGraphLaunch(ready, stream));
    cuda(cudaEventRecord(stop, stream));
    cuda(cudaEventSynchronize(stop), "a timed graph");
    float ms;
    cuda(cudaEventElapsedTime(&ms, start, stop));
    warm += ms;
    times.push_back(ms * 1000 / static_cast<float>(calls));
  }
  times.erase(times.begin(), times.end() - 11);
  std::sort(times.begin(), times.end());
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return times[times.size() / 2];
}

double print(const char* what, double us, double megabytes) {
  double rate = megabytes * 1e3 / us;
  std::printf("%-52s %8.2f us %8.1f MB %8.0f GB/s %5.0f%%\n", what, us, megabytes, rate, 100 * rate / copy_rate);
  return us;
}

using Set = std::vector<std::unique_ptr<Tensor>>;

// One random tensor for each set of operands.
Set tensors(int32_t dtype, const std::vector<int64_t>& shape, double scale = 1.0) {
  Set set;
  set.push_back(std::make_unique<Tensor>(dtype, shape, scale));
  for (int i = 1; i < kSets; ++i) {
    set.push_back(std::make_unique<Tensor>(dtype, shape, 0.0));
    cuda(cudaMemcpy(set[i]->t.data, set[0]->t.data, set[0]->size() * element_bytes(dtype), cudaMemcpyDeviceToDevice));
  }
  return set;
}

double megabytes(const Tensor& t) { return static_cast<double>(t.size() * element_bytes(t.t.dtype)) * 1e-6; }

void copies() {
  void *from, *to;
  size_t bytes = size_t{2} << 30;
  cuda(cudaMalloc(&from, bytes)), cuda(cudaMalloc(&to, bytes));
  cuda(cudaMemset(from, 1, bytes));
  // Outside a graph: copies that are nodes of one ran at two thirds of this.
  double us = 1e3 * milliseconds([&] { cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice)); }, 11, 4);
  copy_rate = 2e-3 * static_cast<double>(bytes) / us;
  print("copy of 2 GiB", us, 2e-6 * static_cast<double>(bytes));
  size_t little = size_t{16} << 20;
  us = microseconds([&](int i, cudaStream_t stream) {
    cuda(cudaMemcpyAsync(static_cast<char*>(to) + i * little, static_cast<char*>(from) + i * little, little,
                         cudaMemcpyDeviceToDevice, stream));
  });
  print("copy of 16 MiB in a graph", us, 2e-6 * static_cast<double>(little));
  cudaFree(from), cudaFree(to);
}

struct Norm {
  int64_t h;
  Set x, y, dy, residual, pooled;
  Tensor gamma, beta, mean, rstd;

  explicit Norm(int64_t h)
      : h(h), x(tensors(PNB_DTYPE_BF16, {kTokens, h})), y(tensors(PNB_DTYPE_BF16, {kTokens, h})),
        dy(tensors(PNB_DTYPE_BF16, {kTokens, h})), residual(tensors(PNB_DTYPE_BF16, {kTokens, h})),
        pooled(tensors(PNB_DTYPE_F32, {kTokens / 16, h})), gamma(PNB_DTYPE_F32, {h}), beta(PNB_DTYPE_F32, {h}),
        mean(PNB_DTYPE_F32, {kTokens}), rstd(PNB_DTYPE_F32, {kTokens}) {}

  void forward(int set, cudaStream_t stream, bool with_pool) {
    auto p = params<pnb_layer_norm_forward_params>();
    p.stream = stream, p.epsilon = 1e-5f, p.x = x[set]->t, p.y = y[set]->t, p.gamma = gamma.t, p.beta = beta.t, p.mean = mean.t,
    p.rstd = rstd.t;
    if (with_pool) p.pooled = pooled[set]->t, p.pool_rows = 16;
    backend().layer_norm_forward(p);
  }

  double forward(bool with_pool) {
    std::string what = "norm forward, h " + std::to_string(h) + (with_pool ? ", pools of 16 rows" : "");
    double us = microseconds([&](int i, cudaStream_t stream) { forward(i, stream, with_pool); });
    return print(what.c_str(), us, 2 * megabytes(*x[0]) + (with_pool ? megabytes(*pooled[0]) : 0));
  }

  void backward() {
    double us = microseconds([&](int i, cudaStream_t stream) {
      auto p = params<pnb_layer_norm_backward_params>();
      p.stream = stream, p.x = x[i]->t, p.dy = dy[i]->t, p.residual = residual[i]->t, p.dx = y[i]->t, p.gamma = gamma.t;
      p.mean = mean.t, p.rstd = rstd.t;
      backend().layer_norm_backward(p);
    });
    print(("norm backward with residual, h " + std::to_string(h)).c_str(), us, 4 * megabytes(*x[0]));
  }
};

void lora(int64_t h, int64_t r, int adapters) {
  Set x = tensors(PNB_DTYPE_BF16, {kTokens, h}), dy = tensors(PNB_DTYPE_BF16, {kTokens, 3 * h});
  std::vector<std::unique_ptr<Tensor>> a, b, low, dh, da, db;
  for (int i = 0; i < adapters; ++i) {
    a.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{r, h}));
    b.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{h, r}));
    low.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{kTokens, r}));
    dh.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{kTokens, r}));
    da.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{r, h}));
    db.push_back(std::make_unique<Tensor>(PNB_DTYPE_F32, std::vector<int64_t>{h, r}));
  }
  auto project = [&](int set, cudaStream_t stream) {
    std::vector<pnb_lora_project_params> p(adapters);
    for (int i = 0; i < adapters; ++i) {
      p[i] = params<pnb_lora_project_params>();
      p[i].stream = stream, p[i].x = x[set]->t, p[i].a = a[i]->t, p[i].h = low[i]->t;
      if (i > 0) p[i - 1].next = &p[i];
    }
    backend().lora_project(p[0]);
  };
  Norm norm(h);
  std::unique_ptr<Workspace> space;
  bool normed = false;
  auto gradients = [&](int set, cudaStream_t stream) {
    std::vector<pnb_lora_gradients_params> g(adapters);
    for (int i = 0; i < adapters; ++i) {
      g[i] = params<pnb_lora_gradients_params>();
      g[i].stream = stream, g[i].scaling = 1e-6f, g[i].x = x[set]->t, g[i].dy = dy[set]->columns(2 * i * h, h), g[i].h = low[i]->t;
      g[i].a = a[i]->t, g[i].b = b[i]->t, g[i].dh = dh[i]->t, g[i].da = da[i]->t, g[i].db = db[i]->t;
      if (normed) g[i].norm = {norm.mean.t, norm.rstd.t, norm.gamma.t, norm.beta.t};
      if (i > 0) g[i - 1].next = &g[i];
    }
    if (space == nullptr) space = std::make_unique<Workspace>(backend().lora_gradients_workspace(g[0]));
    g[0].workspace = space->w;
    backend().lora_gradients(g[0]);
  };
  std::string what = ", h " + std::to_string(h) + ", " + std::to_string(adapters) + " of rank " + std::to_string(r);
  double mb = megabytes(*x[0]);
  print(("lora project" + what).c_str(), microseconds(project), mb);
  print(("lora gradients" + what).c_str(), microseconds(gradients), (adapters + 1) * mb);
  normed = true;
  print(("lora gradients of a norm" + what).c_str(), microseconds(gradients), (adapters + 1) * mb);
}

void masses() {
  int64_t n = 8192;
  Set bits = tensors(PNB_DTYPE_I32, {kTokens, n / 32}, 1e8), x = tensors(PNB_DTYPE_BF16, {kTokens, n});
  Tensor norms(PNB_DTYPE_F32, {n}), blocks(PNB_DTYPE_F32, {16, n / 32}), mass(PNB_DTYPE_F32, {n}), fired(PNB_DTYPE_F32, {n});
  Workspace space(16 * 2 * n * 4);
  for (int64_t rows : {kTokens, int64_t{256}}) {
    for (bool from_bits : {true, false}) {
      double us = microseconds([&](int i, cudaStream_t stream) {
        auto p = params<pnb_activation_mass_params>();
        p.stream = stream, p.block_size = 32, p.norms = norms.t, p.rows_per_list = rows, p.workspace = space.w;
        p.block_mass = blocks.t;
        p.block_mass.shape[0] = kTokens / rows;
        if (from_bits) {
          p.relu_mask = bits[i]->t;
          p.relu_mask.dtype = PNB_DTYPE_U8, p.relu_mask.shape[1] = n / 8, p.relu_mask.stride[0] = n / 8;
        } else {
          p.x = x[i]->t;
        }
        backend().activation_mass(p);
      });
      std::string what = std::string("block mass from ") + (from_bits ? "bits" : "x") + ", lists of " + std::to_string(rows) +
                         " rows";
      print(what.c_str(), us, from_bits ? megabytes(*bits[0]) : megabytes(*x[0]));
    }
  }
}

// The last row is what a step sees: the norm that pools, predictor and choice behind each other, less the norm alone.
void choice(Norm& norm, int64_t blocks) {
  int64_t r = 32;
  double plain = norm.forward(false);
  Set a = tensors(PNB_DTYPE_F32, {r, norm.h}, 0.02), b = tensors(PNB_DTYPE_F32, {blocks, r}),
      bias = tensors(PNB_DTYPE_F32, {blocks});
  Tensor scores(PNB_DTYPE_F32, {16, blocks}), indices(PNB_DTYPE_I32, {16, blocks}), counts(PNB_DTYPE_I32, {16}),
      summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE});
  std::unique_ptr<Workspace> space;
  for (int64_t lists : {1, 16}) {
    space = nullptr;
    auto predict = [&](int i, cudaStream_t stream) {
      auto p = params<pnb_predict_mass_params>();
      p.stream = stream, p.units_per_score = 1, p.pooled = norm.pooled[i]->t, p.a = a[i]->t, p.b = b[i]->t, p.bias = bias[i]->t;
      p.pooled_per_list = kTokens / 16 / lists, p.scores = scores.t;
      p.scores.shape[0] = lists;
      if (space == nullptr) space = std::make_unique<Workspace>(backend().predict_mass_workspace(p));
      p.workspace = space->w;
      backend().predict_mass(p);
    };
    auto select = [&](int, cudaStream_t stream) {
      auto p = params<pnb_select_blocks_params>();
      p.stream = stream, p.coverage = 0.9f, p.scores = scores.t, p.blocks.indices = indices.t, p.blocks.counts = counts.t,
      p.summary = summary.t;
      p.scores.shape[0] = p.blocks.indices.shape[0] = p.blocks.counts.shape[0] = lists;
      backend().select_blocks(p);
    };
    std::string what = ", " + std::to_string(lists) + " lists of " + std::to_string(blocks) + " blocks";
    double mb = megabytes(*norm.pooled[0]) + megabytes(*a[0]);
    print(("predict mass, rank 32" + what).c_str(), microseconds(predict), mb);
    print(("select" + what).c_str(), microseconds(select), 1e-6 * 4 * static_cast<double>(lists * blocks));
    double all = microseconds([&](int i, cudaStream_t stream) {
      norm.forward(i, stream, true);
      predict(i, stream);
      select(i, stream);
    });
    std::printf("pooling + predictor + selection%-21s %8.2f us a layer, %.3f ms in 24\n", what.c_str(), all - plain,
                24e-3 * (all - plain));
  }
}

// The head of a vocabulary of OPT's size with its cross-entropy, every token supervised.
void head(int64_t tokens, int64_t h, int64_t vocab) {
  FrozenWeights weight(vocab, h);
  Tensor x(PNB_DTYPE_BF16, {tokens, h}), dx(PNB_DTYPE_BF16, {tokens, h}, 0.0);
  Tensor rows(PNB_DTYPE_I32, {tokens}, 0.0), targets(PNB_DTYPE_I32, {tokens}, 0.0);
  Tensor scale(PNB_DTYPE_F32, {1}), loss(PNB_DTYPE_F32, {1});
  std::vector<double> row_values(tokens), target_values(tokens);
  for (int64_t i = 0; i < tokens; ++i) row_values[i] = static_cast<double>(i), target_values[i] = static_cast<double>(i * 37 % vocab);
  rows.set(row_values), targets.set(target_values), scale.set({1.0 / static_cast<double>(tokens)});
  auto p = params<pnb_linear_cross_entropy_params>();
  p.x = x.t, p.weight = weight.weights[0].get(), p.rows = rows.t, p.targets = targets.t, p.grad_scale = scale.t, p.loss = loss.t;
  p.dx = dx.t;
  Workspace space(backend().linear_cross_entropy_workspace(p));
  p.workspace = space.w;
  auto call = [&](int, cudaStream_t stream) {
    p.stream = stream;
    backend().linear_cross_entropy(p);
  };
  double us = microseconds(call, 8);
  std::printf("head and cross-entropy, %lld rows, h %lld, vocabulary %lld, workspace %.1f MiB %12.2f us %8.0f TFLOP/s\n",
              static_cast<long long>(tokens), static_cast<long long>(h), static_cast<long long>(vocab),
              static_cast<double>(space.w.bytes) / 0x1p20, us, 4e-6 * static_cast<double>(tokens * h * vocab) / us);
}

void heads() {
  for (int64_t tokens : {512, 2048, 4096}) head(tokens, 2048, 50272);
}

}  // namespace

int main(int argc, char** argv) {
  backend();
  if (argc > 1 && std::string(argv[1]) == "head") return heads(), 0;
  copies();
  for (int64_t h : {768, 2560}) {
    Norm norm(h);
    norm.forward(false), norm.forward(true), norm.backward();
  }
  {
    Norm norm(2048);
    norm.backward();
    choice(norm, 64), choice(norm, 256);
  }
  lora(2048, 4, 2), lora(2048, 8, 2), lora(2048, 16, 1), lora(768, 4, 2), lora(2560, 4, 2);
  masses();
  heads();
}
