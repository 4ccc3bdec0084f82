// Attention against double: odd lengths, packed and empty samples, tails, strided views, caches, poison, NaN next door.
#include "cuda/attention_case.cuh"

#include <chrono>

using namespace test;

namespace {

void matches(const Shape& s) {
  bool backward = s.cu_q == s.cu_k;
  Operands x(s, backward);
  x.forward();
  std::vector<double> d_o = backward ? x.d_o.values() : std::vector<double>();
  for (double& value : d_o) value = std::isnan(value) ? 0.0 : value;
  Results r = reference(s, x.part(0), x.part(1), x.part(2), d_o, x.scale);
  close(x.o.values(), r.o, allowed(r.o, s), s.text() + " o");
  std::vector<double> lse, exact;
  std::vector<double> found = x.lse.values();
  for (int64_t head = 0; head < s.heads; ++head) {
    for (int64_t row = 0; row < s.cu_q.back(); ++row) {
      lse.push_back(found[head * s.tokens_q + row]);
      exact.push_back(r.lse[row * s.heads + head]);
    }
  }
  close(lse, exact, s.dtype == PNB_DTYPE_BF16 ? 1e-4 : 2e-6, s.text() + " lse");
  if (!backward) return;
  x.backward();
  close(x.gradient(0), r.dq, allowed(r.dq, s), s.text() + " dq");
  close(x.gradient(1), r.dk, allowed(r.dk, s), s.text() + " dk");
  close(x.gradient(2), r.dv, allowed(r.dv, s), s.text() + " dv");
  std::vector<char> first = x.d_qkv.bits(), first_o = x.o.bits();
  x.forward();
  x.backward();
  expect(first == x.d_qkv.bits() && first_o == x.o.bits(), s.text() + ": equal bits from equal inputs");

  std::vector<double> dq = x.gradient(0), dv = x.gradient(2);
  x.d_qkv.set(std::vector<double>(x.d_qkv.size(), 7.0));
  x.backward(false);
  expect(x.gradient(0) == dq && x.gradient(2) == dv, s.text() + ": the same dq and dv without dk");
  std::vector<double> dk = x.gradient(1);
  expect(std::all_of(dk.begin(), dk.end(), [](double v) { return v == 7.0; }), s.text() + ": a dk nobody asked for is left alone");
}

// The kernels are held to the reference on the device; this holds it to the same code on the host, and its gradient to
// differences of its forward pass.
void reference_is_right() {
  Shape s = packed(PNB_DTYPE_F32, 2, 5, {0, 4, 4, 9}, 10);
  std::normal_distribution<double> normal;
  std::vector<double> x[4];
  for (auto& values : x) {
    for (int64_t i = 0; i < s.tokens_q * s.heads * s.dim; ++i) values.push_back(normal(generator()));
  }
  Results device = reference(s, x[0], x[1], x[2], x[3], 0.3), host = reference(s, x[0], x[1], x[2], x[3], 0.3, true);
  close(device.o, host.o, 1e-12, "the reference's o");
  close(device.dq, host.dq, 1e-12, "the reference's dq");
  close(device.dk, host.dk, 1e-12, "the reference's dk");
  close(device.dv, host.dv, 1e-12, "the reference's dv");
  for (int operand = 0; operand < 3; ++operand) {
    std::vector<double> numeric;
    for (size_t i = 0; i < x[0].size(); ++i) {
      double loss[2];
      for (int side = 0; side < 2; ++side) {
        std::vector<double> at[3] = {x[0], x[1], x[2]};
        at[operand][i] += side == 0 ? 1e-5 : -1e-5;
        std::vector<double> o = reference(s, at[0], at[1], at[2], {}, 0.3, true).o;
        loss[side] = 0;
        for (size_t j = 0; j < o.size(); ++j) loss[side] += o[j] * x[3][j];
      }
      numeric.push_back((loss[0] - loss[1]) / 2e-5);
    }
    const std::vector<double>& exact = operand == 0 ? host.dq : operand == 1 ? host.dk : host.dv;
    close(numeric, exact, 1e-7, "finite differences of operand " + std::to_string(operand));
  }
}

// A sample full of NaN, the second one, leaves its neighbours as they are without it.
void nan_stays_in_its_sample(const Shape& s) {
  std::string what = s.text() + " beside a sample of NaN";
  Operands clean(s, true), dirty(s, true);
  dirty.q_buffer.set(clean.q_buffer.values());
  dirty.d_o.set(clean.d_o.values());
  auto poison = [&](int64_t row, int64_t) { return row >= s.cu_q[1] && row < s.cu_q[2] ? NAN : 1.0; };
  Operands::edit(dirty.q_buffer, poison);
  Operands::edit(dirty.d_o, poison);
  for (Operands* x : {&clean, &dirty}) {
    x->forward();
    x->backward();
  }
  auto outside = [&](const Tensor& t) {
    std::vector<double> result, values = t.values();
    for (int64_t i = 0; i < t.size(); ++i) {
      if (poison(i / t.t.shape[1], 0) == 1.0) result.push_back(values[i]);
    }
    return result;
  };
  expect(outside(clean.o) == outside(dirty.o), what + ": o unchanged outside it");
  expect(outside(clean.d_qkv) == outside(dirty.d_qkv), what + ": gradients unchanged outside it");
}

// A step is a graph. Blocks of threads that wait for each other are given a time to end in.
void comes_out_of_a_graph(const Shape& s) {
  Operands x(s, true);
  x.forward();
  x.backward();
  std::vector<char> first = x.d_qkv.bits();
  pnb_attention_backward_params p = x.backward_params();
  Workspace workspace(backend().attention_backward_workspace(p));
  p.workspace = workspace.w;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cuda(cudaStreamCreate(&stream));
  p.stream = stream;
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  ok(s.text(), [&] { backend().attention_backward(p); });
  cuda(cudaStreamEndCapture(stream, &graph));
  cuda(cudaGraphInstantiate(&ready, graph, 0));
  cuda(cudaMemset(x.d_qkv.t.data, 0x7f, first.size()));
  cuda(cudaDeviceSynchronize());
  for (int i = 0; i < 3; ++i) cuda(cudaGraphLaunch(ready, stream));
  auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (cudaStreamQuery(stream) == cudaErrorNotReady) {
    if (std::chrono::steady_clock::now() < until) continue;
    std::printf("FAILED: %s out of a graph: did not end\n", s.text().c_str());
    std::fflush(stdout);
    std::_Exit(1);
  }
  expect(x.d_qkv.bits() == first, s.text() + ": equal bits out of a graph");
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

void cases(int32_t dtype, bool brief) {
  for (int64_t dim : {64, 80, 128}) {
    matches(packed(dtype, 2, dim, {0, 128, 256}, 256));
    matches(packed(dtype, 3, dim, lengths({65, 0, 5, 129}), 203));
    matches(packed(dtype, 1, dim, lengths({1}), 1));
    matches(packed(dtype, 2, dim, {0, 0, 0}, 7));  // no sample at all
    for (int64_t longest : {0, 4096}) nan_stays_in_its_sample(packed(dtype, 2, dim, {0, 90, 230, 300}, 301, 1.0, longest));
    if (brief) continue;
    matches(packed(dtype, 2, dim, lengths({300}), 333, 8.0));  // scores in the hundreds
    std::vector<int32_t> cu = random_lengths(24, 300);
    matches(packed(dtype, 4, dim, cu, cu.back() + 77));
    matches(packed(dtype, 2, dim, lengths({1000, 1, 255, 513}), 1769));
    // Many short samples, some of a block of rows or little more; many of one row, and of none.
    cu = random_lengths(70, 90);
    matches(packed(dtype, 3, dim, cu, cu.back() + 20));
    std::vector<int32_t> mixed = {60, 68, 1, 127, 1, 128, 129, 3, 400, 64, 64, 0, 191, 1, 192, 30, 0, 0, 30};
    mixed.insert(mixed.end(), 40, 0);
    mixed.insert(mixed.end(), 40, 1);
    mixed.insert(mixed.end(), {90, 90, 12});
    cu = lengths(mixed);
    matches(packed(dtype, 2, dim, cu, cu.back() + 5));
    matches({dtype, 2, dim, lengths({1, 3, 0, 128}), lengths({71, 3, 0, 300}), 133, 380});  // new rows behind a cache
    matches(packed(dtype, 3, dim, lengths({191, 193, 20, 385, 2}), 800, 1.0, 4096));  // the kernels for long samples
    matches({dtype, 2, dim, lengths({130, 200}), lengths({130, 511}), 330, 641});
    matches({dtype, 3, dim, lengths({1, 1}), lengths({700, 40}), 2, 740});
  }
  for (int64_t dim : {1, 7, 20, 33, 96, 100, 256}) matches(packed(dtype, 2, dim, lengths({3, 40, 66}), 111));
  if (!brief) matches(packed(dtype, 2, 64, random_lengths(400, 3), 1300));  // a token or two each
}

}  // namespace

// "brief": short sizes only, for tools that slow every access down.
int main(int argc, char** argv) {
  bool brief = argc > 1 && std::string(argv[1]) == "brief";
  backend();
  reference_is_right();
  for (int32_t dtype : {PNB_DTYPE_BF16, PNB_DTYPE_F32}) cases(dtype, brief);
  if (!brief) matches(packed(PNB_DTYPE_BF16, 4, 64, {0, 2048, 4096}, 4096));
  // So many units that they are taken as pairs, of an even and an odd number of blocks; the second also for long samples.
  for (int64_t dim : {64, 80, 128}) {
    std::vector<int32_t> cu = random_lengths(30, 150);
    for (int32_t length : {700, 0, 385, 640}) cu.push_back(cu.back() + length);
    if (!brief) matches(packed(PNB_DTYPE_BF16, 32, dim, cu, cu.back() + 33, 1.0, dim == 64 ? 4096 : 0));
  }
  if (!brief) matches(packed(PNB_DTYPE_BF16, 48, 64, lengths({900, 1000, 257}), 2157));
  // Samples of one length that fill the device, whose dq is added up across blocks of threads: in two turns, and of an odd
  // number of pairs of blocks. Then as many rows, but not equally long.
  if (!brief) {
    matches(packed(PNB_DTYPE_BF16, 32, 128, lengths({1024, 1024}), 2048));
    matches(packed(PNB_DTYPE_BF16, 13, 128, lengths({1280, 1280}), 2560));
    matches(packed(PNB_DTYPE_BF16, 32, 128, lengths({1024, 512}), 2048));
    nan_stays_in_its_sample(packed(PNB_DTYPE_BF16, 19, 128, lengths({1024, 1024, 1024}), 3072));
  }
  comes_out_of_a_graph(packed(PNB_DTYPE_BF16, 29, 128, lengths({1024}), 1024));
  // No sample of more than 128 tokens, which has kernels of its own at head size 64: around where a second block of rows begins,
  // and where it is no longer a narrow one.
  Shape around = packed(PNB_DTYPE_BF16, 5, 64, lengths({64, 65, 0, 80, 81, 63, 127, 1, 128, 16, 17, 0, 0, 96, 79, 2}), 1200);
  matches(around);
  comes_out_of_a_graph(around);
  nan_stays_in_its_sample(packed(PNB_DTYPE_BF16, 3, 64, lengths({64, 128, 30, 70}), 300));
  nan_stays_in_its_sample(packed(PNB_DTYPE_BF16, 3, 64, lengths({68, 30, 90, 7}), 199));
  if (!brief) {
    matches(packed(PNB_DTYPE_BF16, 2, 64, lengths({128, 90, 70}), 290, 8.0));
    std::vector<int32_t> cu = random_lengths(300, 128);
    matches(packed(PNB_DTYPE_BF16, 12, 64, cu, cu.back() + 90));
  }
  return finish("attention");
}
