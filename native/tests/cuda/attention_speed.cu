// Times of attention: causal, bf16, q, k and v as column ranges of one buffer, samples of one length.
// Arguments: any of "SAMPLESxHEADSxLENGTHxHEAD_DIM"; without any, the shapes that the results in jmh/ are of. "lists" before them
// times lists of blocks of 128 too: parts of the causal blocks drawn at random, ordered as selection orders them, and what makes
// lists. "once KEPT" before a shape runs each of its kernels once, for a profiler.
#include "cuda/attention_lists.cuh"

#include <optional>

#include "cuda/kernels/attention/order.h"

using namespace test;

namespace {

pnb_tensor heads_of(const Tensor& buffer, int64_t column, int64_t heads, int64_t dim) {
  pnb_tensor view = buffer.columns(column, heads * dim);
  int64_t width = view.stride[0];
  view.rank = 3;
  view.shape[1] = heads, view.shape[2] = dim;
  view.stride[0] = width, view.stride[1] = dim, view.stride[2] = 1;
  return view;
}

struct Case {
  Case(int64_t samples, int64_t heads, int64_t length, int64_t dim)
      : samples(samples),
        heads(heads),
        length(length),
        dim(dim),
        tokens(samples * length),
        qkv(PNB_DTYPE_BF16, {tokens, 3 * heads * dim}),
        o(PNB_DTYPE_BF16, {tokens, heads * dim}, 0.0),
        d_o(PNB_DTYPE_BF16, {tokens, heads * dim}),
        d_qkv(PNB_DTYPE_BF16, {tokens, 3 * heads * dim}, 0.0),
        lse(PNB_DTYPE_F32, {heads, tokens}, 0.0),
        borders(PNB_DTYPE_I32, {samples + 1}, 0.0) {
    int64_t width = heads * dim;
    for (int64_t s = 0; s <= samples; ++s) cu.push_back(static_cast<int32_t>(s * length));
    borders.set(ints(cu));
    f.struct_size = sizeof f;
    f.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    f.q = heads_of(qkv, 0, heads, dim), f.k = heads_of(qkv, width, heads, dim), f.v = heads_of(qkv, 2 * width, heads, dim);
    f.o = heads_of(o, 0, heads, dim);
    f.lse = lse.t;
    f.cu_seqlens_q = f.cu_seqlens_k = borders.t;
    f.max_seqlen = length;
    b.struct_size = sizeof b;
    b.scale = f.scale;
    b.q = f.q, b.k = f.k, b.v = f.v, b.o = f.o, b.lse = f.lse;
    b.d_o = heads_of(d_o, 0, heads, dim);
    b.dq = heads_of(d_qkv, 0, heads, dim), b.dk = heads_of(d_qkv, width, heads, dim), b.dv = heads_of(d_qkv, 2 * width, heads, dim);
    b.cu_seqlens = borders.t;
    b.max_seqlen = length;
    workspace.emplace(backend().attention_backward_workspace(b));
    b.workspace = workspace->w;
  }

  int64_t samples, heads, length, dim, tokens;
  std::vector<int32_t> cu;
  Tensor qkv, o, d_o, d_qkv, lse, borders;
  std::optional<Workspace> workspace;
  pnb_attention_forward_params f{};
  pnb_attention_backward_params b{};
};

struct Times {
  double forward, backward;
};

Times time(Case& c) {
  return {milliseconds([&] { backend().attention_forward(c.f); }, 11, 20),
          milliseconds([&] { backend().attention_backward(c.b); }, 11, 20)};
}

constexpr int64_t kSize = 128;

void choose_part(BlockLists& lists, double kept) {
  static const pnb::cuda::Device device = pnb::cuda::open_device(0, false);
  lists.choose_part(kept);
  // Selection makes no empty lists, and its order leaves them out.
  std::vector<double> counts = lists.counts.values(), order = lists.order.values();
  auto empty = [&](double i) { return i >= 0 && counts[static_cast<size_t>(i)] == 0; };
  if (std::any_of(order.begin(), order.begin() + lists.heads * lists.slots, empty)) return;
  auto ints = [](const Tensor& t) { return static_cast<int32_t*>(t.t.data); };
  pnb::cuda::attention::write_orders(device,
                                     {ints(lists.counts), ints(lists.t_counts), ints(lists.order), lists.heads * lists.slots,
                                      static_cast<int>(lists.width), nullptr, 0, nullptr},
                                     nullptr, "order");
}

// Milliseconds of a call out of a graph of many: what makes lists is short, and a step is a graph.
double graph_milliseconds(const std::function<void(cudaStream_t)>& call) {
  constexpr int kCalls = 48;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cuda(cudaStreamCreate(&stream));
  call(stream);
  cuda(cudaStreamSynchronize(stream), "a first call");
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kCalls; ++i) call(stream);
  cuda(cudaStreamEndCapture(stream, &graph));
  cuda(cudaGraphInstantiate(&ready, graph, 0));
  cuda(cudaStreamSynchronize(nullptr));
  double ms = milliseconds([&] { cuda(cudaGraphLaunch(ready, nullptr)); }, 11, 5) / kCalls;
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return ms;
}

// Predictions of OPT's hidden size, coverage .9, as a step makes them.
void time_makers(Case& c) {
  constexpr int64_t kHidden = 2048, kRanks = 16, kPool = 32;
  int64_t width = c.length / kSize, slots = c.tokens / kSize + c.samples;
  BlockLists lists(c.heads, c.cu, c.tokens, kSize, width);
  Tensor pooled(PNB_DTYPE_F32, {c.tokens / kPool, kHidden}), a(PNB_DTYPE_BF16, {2, c.heads, kRanks, kHidden}, 0.02);
  Tensor bias(PNB_DTYPE_F32, {2, c.heads, kRanks}), distance(PNB_DTYPE_F32, {c.heads, width}),
      mass(PNB_DTYPE_F32, {c.heads, slots, width}, 0.0);
  Tensor summary(PNB_DTYPE_F32, {PNB_SUMMARY_SIZE}, 0.0), budgets(PNB_DTYPE_F32, {c.heads});
  budgets.set(std::vector<double>(c.heads, 0.3));
  for (int stride : {1, 8, 16}) {
    pnb_attention_mass_params p{};
    p.struct_size = sizeof p;
    p.scale = c.f.scale;
    p.q = c.f.q, p.k = c.f.k, p.lse = c.f.lse, p.cu_seqlens = c.borders.t, p.max_seqlen = c.length;
    p.size = kSize;
    p.query_stride = stride;
    p.mass = mass.t;
    std::printf("  mass of every query %d: %.4f ms\n", stride, milliseconds([&] { backend().attention_mass(p); }, 11, 20));
  }
  pnb_predict_attention_params p{};
  p.struct_size = sizeof p;
  p.pool_rows = kPool;
  p.pooled = pooled.t, p.a = a.t, p.bias = bias.t, p.distance = distance.t, p.cu_seqlens = c.borders.t;
  p.tokens = c.tokens, p.max_seqlen = c.length, p.size = kSize, p.mass = mass.t;
  Workspace predict_space(backend().predict_attention_workspace(p));
  p.workspace = predict_space.w;
  pnb_select_attention_params s{};
  s.struct_size = sizeof s;
  s.coverage = 0.9f;
  s.mass = mass.t, s.budgets = budgets.t, s.cu_seqlens = c.borders.t, s.tokens = c.tokens, s.max_seqlen = c.length;
  s.blocks = lists.params();
  s.summary = summary.t;
  Workspace select_space(backend().select_attention_workspace(s));
  s.workspace = select_space.w;
  auto run_predict = [&](cudaStream_t stream) { p.stream = stream, backend().predict_attention(p); };
  auto run_select = [&](cudaStream_t stream) { s.stream = stream, backend().select_attention(s); };
  double predict = graph_milliseconds(run_predict), select = graph_milliseconds(run_select);
  double both = graph_milliseconds([&](cudaStream_t stream) { run_predict(stream), run_select(stream); });
  std::printf("  predict %.4f ms, select %.4f ms, one behind the other %.4f ms; kept %.3f\n", predict, select, both,
              summary.values()[PNB_SUMMARY_KEPT]);
}

void time(int64_t samples, int64_t heads, int64_t length, int64_t dim, bool with_lists) {
  Case c(samples, heads, length, dim);
  Times dense = time(c);
  double products = 2.0 * samples * heads * length * length * dim * 1e-9;  // of the forward pass: two, half of each masked
  std::printf("%dx%dx%dx%-4d forward %.4f ms, %.0f TFLOP/s; backward %.4f ms, %.0f TFLOP/s\n", static_cast<int>(samples),
              static_cast<int>(heads), static_cast<int>(length), static_cast<int>(dim), dense.forward, products / dense.forward,
              dense.backward, 2.5 * products / dense.backward);
  if (!with_lists) return;
  BlockLists lists(heads, c.cu, c.tokens, kSize, length / kSize);
  for (double kept : {1.0, 0.5, 0.3, 0.25, 0.1}) {
    choose_part(lists, kept);
    c.f.blocks = c.b.blocks = lists.params();
    Times t = time(c);
    double speed = (dense.forward + dense.backward) / (t.forward + t.backward);
    std::printf("  %.2f of the blocks: forward %.4f ms, backward %.4f ms, both %.2f times faster, %.2f of proportional\n", kept,
                t.forward, t.backward, speed, 1.0 / (speed * kept));
  }
  c.f.blocks = c.b.blocks = {};
  backend().attention_forward(c.f);
  time_makers(c);
}

void once(int64_t samples, int64_t heads, int64_t length, int64_t dim, double kept) {
  Case c(samples, heads, length, dim);
  BlockLists lists(heads, c.cu, c.tokens, kSize, length / kSize);
  choose_part(lists, kept);
  c.f.blocks = c.b.blocks = lists.params();
  backend().attention_forward(c.f);
  backend().attention_backward(c.b);
  cuda(cudaDeviceSynchronize());
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> shapes(argv + 1, argv + argc);
  bool with_lists = !shapes.empty() && shapes[0] == "lists";
  double kept = 0;
  if (with_lists) shapes.erase(shapes.begin());
  if (shapes.size() > 1 && shapes[0] == "once") {
    kept = std::atof(shapes[1].c_str());
    shapes.erase(shapes.begin(), shapes.begin() + 2);
  }
  if (shapes.empty()) {
    shapes = {"4x32x512x64", "4x32x1024x64", "4x32x2048x64", "1x32x8192x64", "4x32x1024x80", "4x32x1024x128", "4x32x2048x128"};
    if (with_lists) shapes = {"4x32x2048x64", "1x32x8192x64", "4x32x2048x128", "1x32x8192x128", "4x32x1024x64"};
  }
  for (const std::string& shape : shapes) {
    long long samples, heads, length, dim;
    if (std::sscanf(shape.c_str(), "%lldx%lldx%lldx%lld", &samples, &heads, &length, &dim) != 4) {
      std::printf("expected SAMPLESxHEADSxLENGTHxHEAD_DIM, found %s\n", shape.c_str());
      return 2;
    }
    if (kept > 0) once(samples, heads, length, dim, kept);
    else time(samples, heads, length, dim, with_lists);
  }
}
