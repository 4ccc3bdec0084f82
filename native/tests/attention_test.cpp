// Attention against a double reference: odd lengths, packed rows, strided operands, caches, finite differences.
#include "attention_tensors.h"

using namespace test;

namespace {

struct Reference {
  std::vector<double> o, dq, dk, dv;
};

// q, k, v, d_o: [tokens, heads, dim] in double; bottom-right aligned within each sample.
Reference reference(const std::vector<double>& q, const std::vector<double>& k, const std::vector<double>& v,
                    const std::vector<double>& d_o, const std::vector<int32_t>& cu_q, const std::vector<int32_t>& cu_k,
                    int64_t heads, int64_t dim, double scale) {
  Reference r{std::vector<double>(q.size()), std::vector<double>(q.size()), std::vector<double>(k.size()),
              std::vector<double>(v.size())};
  auto at = [&](int64_t token, int64_t head) { return (token * heads + head) * dim; };
  for (size_t s = 0; s + 1 < cu_q.size(); ++s) {
    int64_t nq = cu_q[s + 1] - cu_q[s], nk = cu_k[s + 1] - cu_k[s];
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < nq; ++i) {
        int64_t row = at(cu_q[s] + i, h);
        int64_t seen = i + nk - nq + 1;
        std::vector<double> p(seen), dp(seen);
        double top = -1e300, sum = 0, delta = 0;
        for (int64_t j = 0; j < seen; ++j) {
          for (int64_t d = 0; d < dim; ++d) p[j] += scale * q[row + d] * k[at(cu_k[s] + j, h) + d];
          top = std::max(top, p[j]);
        }
        for (double& value : p) sum += value = std::exp(value - top);
        for (int64_t j = 0; j < seen; ++j) {
          p[j] /= sum;
          int64_t column = at(cu_k[s] + j, h);
          for (int64_t d = 0; d < dim; ++d) {
            r.o[row + d] += p[j] * v[column + d];
            r.dv[column + d] += p[j] * d_o[row + d];
            dp[j] += d_o[row + d] * v[column + d];
          }
          delta += p[j] * dp[j];
        }
        for (int64_t j = 0; j < seen; ++j) {
          double ds = p[j] * (dp[j] - delta) * scale;
          for (int64_t d = 0; d < dim; ++d) {
            r.dq[row + d] += ds * k[at(cu_k[s] + j, h) + d];
            r.dk[at(cu_k[s] + j, h) + d] += ds * q[row + d];
          }
        }
      }
    }
  }
  return r;
}

void packed(pnb_context* context, int32_t dtype, int64_t heads, int64_t dim, const std::vector<int32_t>& cu, int64_t tokens) {
  std::string what = std::string("attention ") + name(dtype) + " heads " + std::to_string(heads) + " dim " + std::to_string(dim) +
                     " tokens " + std::to_string(tokens) + " samples " + std::to_string(cu.size() - 1);
  int64_t width = heads * dim;
  int64_t longest = 0;
  for (size_t s = 1; s < cu.size(); ++s) longest = std::max<int64_t>(longest, cu[s] - cu[s - 1]);
  Tensor qkv(dtype, {tokens, 3 * width});
  // What lies past the last sample must not be read.
  for (int64_t i = cu.back() * 3 * width; i < tokens * 3 * width; ++i) qkv.set(i, NAN);
  Tensor o(dtype, {tokens, width}, 0.0), d_o(dtype, {tokens, width}), d_qkv(dtype, {tokens, 3 * width}, 0.0);
  Tensor lse(PNB_DTYPE_F32, {heads, tokens}, 0.0), borders = ints(cu);
  double scale = 1.0 / std::sqrt(static_cast<double>(dim));

  auto forward = params<pnb_attention_forward_params>();
  forward.scale = static_cast<float>(scale);
  forward.q = heads_of(qkv, 0, heads, dim);
  forward.k = heads_of(qkv, width, heads, dim);
  forward.v = heads_of(qkv, 2 * width, heads, dim);
  forward.o = heads_of(o, 0, heads, dim);
  forward.lse = lse.t;
  forward.cu_seqlens_q = forward.cu_seqlens_k = borders.t;
  forward.max_seqlen = longest;
  ok(pnb_attention_forward(context, &forward), what);

  auto backward = params<pnb_attention_backward_params>();
  backward.scale = forward.scale;
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.o = forward.o;
  backward.lse = lse.t;
  backward.d_o = heads_of(d_o, 0, heads, dim);
  backward.dq = heads_of(d_qkv, 0, heads, dim);
  backward.dk = heads_of(d_qkv, width, heads, dim);
  backward.dv = heads_of(d_qkv, 2 * width, heads, dim);
  backward.cu_seqlens = borders.t;
  backward.max_seqlen = longest;
  ok(pnb_attention_backward_workspace(context, &backward, &backward.workspace.bytes), what);
  std::vector<char> workspace(backward.workspace.bytes + 256);
  backward.workspace.data = workspace.data();
  ok(pnb_attention_backward(context, &backward), what);

  auto clean = [&](std::vector<double> values) {
    for (int64_t i = cu.back() * width; i < tokens * width; ++i) values[i] = 0.0;
    return values;
  };
  Reference r = reference(clean(columns(qkv, 0, width)), clean(columns(qkv, width, width)), clean(columns(qkv, 2 * width, width)),
                          d_o.values(), cu, cu, heads, dim, scale);
  close(o.values(), r.o, dtype, what + " o");
  // dq, dk and dv are computed from o as it was rounded, as every implementation that saves o does.
  double floor = dtype == PNB_DTYPE_BF16 ? 4e-3 : 1e-5;
  close(columns(d_qkv, 0, width), r.dq, dtype, what + " dq", floor);
  close(columns(d_qkv, width, width), r.dk, dtype, what + " dk", floor);
  close(columns(d_qkv, 2 * width, width), r.dv, dtype, what + " dv", floor);

  std::vector<double> dq = columns(d_qkv, 0, width), dv = columns(d_qkv, 2 * width, width);
  Tensor without(dtype, {tokens, 3 * width}, 0.0);
  backward.dq = heads_of(without, 0, heads, dim), backward.dk = {}, backward.dv = heads_of(without, 2 * width, heads, dim);
  ok(pnb_attention_backward(context, &backward), what);
  expect(columns(without, 0, width) == dq && columns(without, 2 * width, width) == dv, what + ": the same dq and dv without dk");
  expect(columns(without, width, width) == columns(Tensor(dtype, {tokens, 3 * width}, 0.0), width, width),
         what + ": nothing written where dk would lie");
}

void cached(pnb_context* context, int32_t dtype) {
  int64_t heads = 3, dim = 24, width = heads * dim;
  std::vector<int32_t> cu_q{0, 1, 4}, cu_k{0, 71, 75};
  Tensor q(dtype, {4, width}), k(dtype, {75, width}), v(dtype, {75, width}), o(dtype, {4, width}, 0.0);
  Tensor borders_q = ints(cu_q), borders_k = ints(cu_k);
  auto p = params<pnb_attention_forward_params>();
  p.scale = 0.2f;
  p.q = heads_of(q, 0, heads, dim);
  p.k = heads_of(k, 0, heads, dim);
  p.v = heads_of(v, 0, heads, dim);
  p.o = heads_of(o, 0, heads, dim);
  p.cu_seqlens_q = borders_q.t;
  p.cu_seqlens_k = borders_k.t;
  p.max_seqlen = 71;
  ok(pnb_attention_forward(context, &p), "attention with a cache");
  std::vector<double> none(q.size());
  close(o.values(), reference(q.values(), k.values(), v.values(), none, cu_q, cu_k, heads, dim, 0.2f).o, dtype,
        std::string("attention with a cache ") + name(dtype));
}

// A value row that is not finite reaches the queries that see it and no others.
void later_values_stay_unseen(pnb_context* context, int32_t dtype, double poison) {
  const int64_t heads = 2, dim = 24, tokens = 140, width = heads * dim, poisoned = 70, border = 130;
  Tensor qkv(dtype, {tokens, 3 * width}), o(dtype, {tokens, width}, 0.0), borders = ints({0, border, tokens});
  std::vector<double> none(tokens * width);
  Reference r = reference(columns(qkv, 0, width), columns(qkv, width, width), columns(qkv, 2 * width, width), none,
                          {0, border, tokens}, {0, border, tokens}, heads, dim, 0.2);
  for (int64_t d = 0; d < width; ++d) qkv.set(poisoned * 3 * width + 2 * width + d, poison);
  auto p = params<pnb_attention_forward_params>();
  p.scale = 0.2f;
  p.q = heads_of(qkv, 0, heads, dim);
  p.k = heads_of(qkv, width, heads, dim);
  p.v = heads_of(qkv, 2 * width, heads, dim);
  p.o = heads_of(o, 0, heads, dim);
  p.cu_seqlens_q = p.cu_seqlens_k = borders.t;
  p.max_seqlen = border;
  std::string what = std::string("values of ") + std::to_string(poison) + " " + name(dtype);
  ok(pnb_attention_forward(context, &p), what);
  std::vector<double> found = o.values();
  int64_t wrong = 0;
  for (int64_t i = 0; i < tokens * width; ++i) {
    bool reached = i / width >= poisoned && i / width < border;
    wrong += std::isfinite(found[i]) == reached;
    if (reached) found[i] = r.o[i];
  }
  expect(wrong == 0, what + ": " + std::to_string(wrong) + " elements finite or not against what they see");
  close(found, r.o, dtype, what);
}

// The kernels are held to the reference above; this holds the reference to its own forward pass.
void reference_matches_differences() {
  int64_t heads = 2, dim = 8, tokens = 9, width = heads * dim;
  std::vector<int32_t> cu{0, 4, 9};
  Tensor q(PNB_DTYPE_F32, {tokens, width}), k(PNB_DTYPE_F32, {tokens, width}), v(PNB_DTYPE_F32, {tokens, width});
  Tensor d_o(PNB_DTYPE_F32, {tokens, width});
  // The reference's own gradient is checked against differences of its forward pass, in double.
  auto loss = [&](const std::vector<double>& at_q, const std::vector<double>& at_k, const std::vector<double>& at_v) {
    std::vector<double> o = reference(at_q, at_k, at_v, d_o.values(), cu, cu, heads, dim, 0.3).o;
    double sum = 0;
    for (size_t i = 0; i < o.size(); ++i) sum += o[i] * d_o.at(i);
    return sum;
  };
  Reference r = reference(q.values(), k.values(), v.values(), d_o.values(), cu, cu, heads, dim, 0.3);
  for (int operand = 0; operand < 3; ++operand) {
    std::vector<double> numeric(tokens * width);
    for (size_t i = 0; i < numeric.size(); ++i) {
      std::vector<double> up[3] = {q.values(), k.values(), v.values()};
      std::vector<double> down[3] = {up[0], up[1], up[2]};
      up[operand][i] += 1e-5;
      down[operand][i] -= 1e-5;
      numeric[i] = (loss(up[0], up[1], up[2]) - loss(down[0], down[1], down[2])) / 2e-5;
    }
    close(numeric, operand == 0 ? r.dq : operand == 1 ? r.dk : r.dv, PNB_DTYPE_F32,
          "finite differences of operand " + std::to_string(operand));
  }
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    packed(context, dtype, 1, 8, {0, 1}, 1);
    packed(context, dtype, 2, 64, {0, 64, 128}, 128);
    packed(context, dtype, 3, 64, {0, 65, 65, 70, 199}, 203);
    packed(context, dtype, 2, 80, {0, 127, 130}, 160);
    packed(context, dtype, 2, 128, {0, 3, 66}, 66);
    packed(context, dtype, 1, 20, {0, 5, 17, 90}, 91);
    cached(context, dtype);
    later_values_stay_unseen(context, dtype, NAN);
    later_values_stay_unseen(context, dtype, INFINITY);
  }
  reference_matches_differences();
  pnb_context_destroy(context);
  return finish("attention_test");
}
