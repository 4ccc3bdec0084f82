// Times of attention: causal, bf16, q, k and v as column ranges of one buffer, samples of one length.
// Arguments: any of "SAMPLESxHEADSxLENGTHxHEAD_DIM"; without any, the shapes that the results in jmh/ are of.
#include "cuda/harness.cuh"

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

void time(int64_t samples, int64_t heads, int64_t length, int64_t dim) {
  int64_t tokens = samples * length, width = heads * dim;
  Tensor qkv(PNB_DTYPE_BF16, {tokens, 3 * width}), o(PNB_DTYPE_BF16, {tokens, width}, 0.0), d_o(PNB_DTYPE_BF16, {tokens, width});
  Tensor d_qkv(PNB_DTYPE_BF16, {tokens, 3 * width}, 0.0), lse(PNB_DTYPE_F32, {heads, tokens}, 0.0);
  Tensor borders(PNB_DTYPE_I32, {samples + 1}, 0.0);
  std::vector<double> cu;
  for (int64_t s = 0; s <= samples; ++s) cu.push_back(static_cast<double>(s * length));
  borders.set(cu);

  pnb_attention_forward_params f{};
  f.struct_size = sizeof f;
  f.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  f.q = heads_of(qkv, 0, heads, dim), f.k = heads_of(qkv, width, heads, dim), f.v = heads_of(qkv, 2 * width, heads, dim);
  f.o = heads_of(o, 0, heads, dim);
  f.lse = lse.t;
  f.cu_seqlens_q = f.cu_seqlens_k = borders.t;
  f.max_seqlen = length;
  pnb_attention_backward_params b{};
  b.struct_size = sizeof b;
  b.scale = f.scale;
  b.q = f.q, b.k = f.k, b.v = f.v, b.o = f.o, b.lse = f.lse;
  b.d_o = heads_of(d_o, 0, heads, dim);
  b.dq = heads_of(d_qkv, 0, heads, dim), b.dk = heads_of(d_qkv, width, heads, dim), b.dv = heads_of(d_qkv, 2 * width, heads, dim);
  b.cu_seqlens = borders.t;
  b.max_seqlen = length;
  Workspace workspace(backend().attention_backward_workspace(b));
  b.workspace = workspace.w;

  double forward = milliseconds([&] { backend().attention_forward(f); }, 11, 20);
  double backward = milliseconds([&] { backend().attention_backward(b); }, 11, 20);
  double products = 2.0 * samples * heads * length * length * dim * 1e-9;  // of the forward pass: two, half of each masked
  std::printf("%dx%dx%dx%-4d forward %.4f ms, %.0f TFLOP/s; backward %.4f ms, %.0f TFLOP/s\n", static_cast<int>(samples),
              static_cast<int>(heads), static_cast<int>(length), static_cast<int>(dim), forward, products / forward, backward,
              2.5 * products / backward);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> shapes(argv + 1, argv + argc);
  if (shapes.empty()) {
    shapes = {"4x32x512x64", "4x32x1024x64", "4x32x2048x64", "1x32x8192x64", "4x32x1024x80", "4x32x1024x128", "4x32x2048x128"};
  }
  for (const std::string& shape : shapes) {
    long long samples, heads, length, dim;
    if (std::sscanf(shape.c_str(), "%lldx%lldx%lldx%lld", &samples, &heads, &length, &dim) != 4) {
      std::printf("expected SAMPLESxHEADSxLENGTHxHEAD_DIM, found %s\n", shape.c_str());
      return 2;
    }
    time(samples, heads, length, dim);
  }
}
