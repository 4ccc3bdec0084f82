// Attention by lists of blocks against the masked attention in double, forward and all gradients: both block sizes, odd
// lengths, packed rows with empty samples, lists of nothing, lists without the diagonal, head sizes that fill no vector.
#include "attention_tensors.h"

using namespace test;

namespace {

// A batch's operands and results, q, k and v side by side as a projection leaves them.
struct Batch {
  Samples samples;
  int64_t heads, dim, width;
  Tensor qkv, o, lse, d_o, d_qkv, borders;
  double scale;

  Batch(int32_t dtype, const Samples& samples, int64_t heads, int64_t dim)
      : samples(samples),
        heads(heads),
        dim(dim),
        width(heads * dim),
        qkv(dtype, {samples.tokens, 3 * width}),
        o(dtype, {samples.tokens, width}, 0.0),
        lse(PNB_DTYPE_F32, {heads, samples.tokens}, 0.0),
        d_o(dtype, {samples.tokens, width}),
        d_qkv(dtype, {samples.tokens, 3 * width}, 0.0),
        borders(ints(samples.cu)),
        scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)))) {
    // What lies past the last sample must not be read.
    for (int64_t i = samples.cu.back() * 3 * width; i < qkv.size(); ++i) qkv.set(i, NAN);
  }

  void forward(pnb_context* context, const pnb_attention_blocks& blocks, const std::string& what) {
    auto p = params<pnb_attention_forward_params>();
    p.scale = static_cast<float>(scale);
    p.q = heads_of(qkv, 0, heads, dim), p.k = heads_of(qkv, width, heads, dim), p.v = heads_of(qkv, 2 * width, heads, dim);
    p.o = heads_of(o, 0, heads, dim), p.lse = lse.t, p.cu_seqlens_q = p.cu_seqlens_k = borders.t;
    p.max_seqlen = samples.longest(), p.blocks = blocks;
    p.blocks.t_indices = p.blocks.t_counts = {};  // which are not read
    ok(pnb_attention_forward(context, &p), what);
  }

  void backward(pnb_context* context, const pnb_attention_blocks& blocks, const std::string& what) {
    auto p = params<pnb_attention_backward_params>();
    p.scale = static_cast<float>(scale);
    p.q = heads_of(qkv, 0, heads, dim), p.k = heads_of(qkv, width, heads, dim), p.v = heads_of(qkv, 2 * width, heads, dim);
    p.o = heads_of(o, 0, heads, dim), p.lse = lse.t, p.d_o = heads_of(d_o, 0, heads, dim);
    p.dq = heads_of(d_qkv, 0, heads, dim), p.dk = heads_of(d_qkv, width, heads, dim), p.dv = heads_of(d_qkv, 2 * width, heads, dim);
    p.cu_seqlens = borders.t, p.max_seqlen = samples.longest(), p.blocks = blocks;
    ok(pnb_attention_backward_workspace(context, &p, &p.workspace.bytes), what);
    std::vector<char> workspace(p.workspace.bytes + 64);
    p.workspace.data = workspace.data();
    ok(pnb_attention_backward(context, &p), what);

    Tensor without(d_qkv.t.dtype, {samples.tokens, 3 * width}, 0.0);
    p.dq = heads_of(without, 0, heads, dim), p.dk = {}, p.dv = heads_of(without, 2 * width, heads, dim);
    ok(pnb_attention_backward(context, &p), what);
    expect(columns(without, 0, width) == columns(d_qkv, 0, width) &&
               columns(without, 2 * width, width) == columns(d_qkv, 2 * width, width),
           what + ": the same dq and dv without dk");
  }

  Operands operands() const {
    auto clean = [&](std::vector<double> values) {
      std::fill(values.begin() + samples.cu.back() * width, values.end(), 0.0);
      return values;
    };
    return {clean(columns(qkv, 0, width)), clean(columns(qkv, width, width)), clean(columns(qkv, 2 * width, width)), dim, scale};
  }

  void expect_forward(const Forward& f, const std::string& what) const {
    close(o.values(), f.o, o.t.dtype, what + " o");
    std::vector<double> found, expected;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < samples.cu.back(); ++t) {
        found.push_back(lse.at(h * samples.tokens + t));
        expected.push_back(f.lse[h * samples.tokens + t]);
        if (expected.back() == 0) expect(found.back() == 0, what + " lse of query " + std::to_string(t) + " that sees nothing");
      }
    }
    close(found, expected, PNB_DTYPE_F32, what + " lse", 1e-5);
  }

  void expect_backward(const Gradients& g, const std::string& what) const {
    // dq, dk and dv are computed from o as it was rounded, as every implementation that saves o does.
    double floor = o.t.dtype == PNB_DTYPE_BF16 ? 4e-3 : 1e-5;
    close(columns(d_qkv, 0, width), g.dq, o.t.dtype, what + " dq", floor);
    close(columns(d_qkv, width, width), g.dk, o.t.dtype, what + " dk", floor);
    close(columns(d_qkv, 2 * width, width), g.dv, o.t.dtype, what + " dv", floor);
  }
};

enum Kind { kAll, kRandom, kNoDiagonal, kDiagonal, kSomeEmpty, kNothing, kKinds };

const char* kind_name(int kind) {
  const char* names[] = {"all", "random", "random without the diagonal", "diagonal alone", "some lists empty", "nothing"};
  return names[kind];
}

Mask mask_of(int kind, const Samples& samples, int64_t heads) {
  return Mask(samples, heads, [&](int64_t h, int64_t, int64_t i, int64_t j) {
    bool chosen = generator()() % 100 < 40;
    switch (kind) {
      case kAll: return true;
      case kRandom: return chosen || i == j;
      case kNoDiagonal: return chosen && i != j;
      case kDiagonal: return i == j;
      case kSomeEmpty: return (i + h) % 2 == 0 && (chosen || j == 0);
      default: return false;
    }
  });
}

void against_reference(pnb_context* context, int32_t dtype, int kind, const Samples& samples, int64_t heads, int64_t dim) {
  std::string what = std::string("attention by lists, ") + name(dtype) + ", " + kind_name(kind) + ", " + std::to_string(heads) +
                     " heads of " + std::to_string(dim) + ", " + samples.text() + ":";
  Batch batch(dtype, samples, heads, dim);
  Mask mask = mask_of(kind, samples, heads);
  AttentionLists lists(samples, heads);
  mask.write(lists);
  batch.forward(context, lists.blocks, what);
  Operands operands = batch.operands();
  Forward f = masked_forward(operands, mask);
  batch.expect_forward(f, what);
  batch.backward(context, lists.blocks, what);
  batch.expect_backward(masked_backward(operands, mask, f, batch.d_o.values()), what);
}

// Gradients of the listed blocks where the forward pass had none.
void after_an_exact_forward(pnb_context* context, int32_t dtype, const Samples& samples, int64_t heads, int64_t dim) {
  std::string what = std::string("listed gradients of an exact forward, ") + name(dtype) + ", heads of " + std::to_string(dim) +
                     ", " + samples.text() + ":";
  Batch batch(dtype, samples, heads, dim);
  batch.forward(context, {}, what);
  Mask mask = mask_of(kRandom, samples, heads);
  AttentionLists lists(samples, heads);
  mask.write(lists);
  batch.backward(context, lists.blocks, what);
  Operands operands = batch.operands();
  Forward f = masked_forward(operands, mask_of(kAll, samples, heads));
  batch.expect_backward(masked_backward(operands, mask, f, batch.d_o.values()), what);
}

// Lists of everything meet the same tiles in the same order as no lists.
void full_lists_are_dense(pnb_context* context, int32_t dtype, const Samples& samples, int64_t dim) {
  std::string what = std::string("full lists, ") + name(dtype) + ", heads of " + std::to_string(dim) + ", " + samples.text() + ":";
  Batch dense(dtype, samples, 2, dim);
  Batch listed = dense;
  for (Tensor* t : {&listed.qkv, &listed.o, &listed.lse, &listed.d_o, &listed.d_qkv, &listed.borders}) t->t.data = t->bytes.data();
  AttentionLists lists(samples, 2);
  mask_of(kAll, samples, 2).write(lists);
  dense.forward(context, {}, what), listed.forward(context, lists.blocks, what);
  dense.backward(context, {}, what), listed.backward(context, lists.blocks, what);
  expect(dense.o.bytes == listed.o.bytes && dense.lse.bytes == listed.lse.bytes, what + " forward differs from dense in its bits");
  // In bf16 the dense pass has a more exact sum of each query's score gradients, which lists, shorter ones perhaps, cannot have.
  if (dtype == PNB_DTYPE_F32) expect(dense.d_qkv.bytes == listed.d_qkv.bytes, what + " backward differs from dense in its bits");
  else close(listed.d_qkv.values(), dense.d_qkv.values(), dtype, what + " backward", 0x1p-7);
}

// The number of threads does not show in a result.
void threads_do_not_show(pnb_context* context, pnb_context* single, int32_t dtype) {
  Samples samples{{0, 300, 300, 421}, 430, 64};
  Batch two(dtype, samples, 3, 64);
  Batch one = two;
  for (Tensor* t : {&one.qkv, &one.o, &one.lse, &one.d_o, &one.d_qkv, &one.borders}) t->t.data = t->bytes.data();
  AttentionLists lists(samples, 3);
  mask_of(kRandom, samples, 3).write(lists);
  two.forward(context, lists.blocks, "two threads"), one.forward(single, lists.blocks, "one thread");
  two.backward(context, lists.blocks, "two threads"), one.backward(single, lists.blocks, "one thread");
  expect(one.o.bytes == two.o.bytes && one.d_qkv.bytes == two.d_qkv.bytes,
         std::string("attention by lists ") + name(dtype) + ": one thread and two differ");
}

// Keys and values in blocks that no list names are not looked at, whatever they hold.
void unlisted_blocks_stay_unseen(pnb_context* context, int32_t dtype, int32_t size) {
  Samples samples{{0, 3 * size + 7}, 3 * size + 7, size};
  std::string what = std::string("unlisted values that are not numbers, ") + name(dtype) + ", " + samples.text() + ":";
  Batch batch(dtype, samples, 2, 40);
  Mask mask(samples, 2, [](int64_t, int64_t, int64_t i, int64_t j) { return j != 1 && i != 1; });
  AttentionLists lists(samples, 2);
  mask.write(lists);
  Forward f = masked_forward(batch.operands(), mask);
  Gradients g = masked_backward(batch.operands(), mask, f, batch.d_o.values());
  for (int64_t i = size * 3 * batch.width; i < 2 * size * 3 * batch.width; ++i) batch.qkv.set(i, NAN);
  batch.forward(context, lists.blocks, what);
  batch.expect_forward(f, what);
  batch.backward(context, lists.blocks, what);
  batch.expect_backward(g, what);
}

// The double reference's gradients against differences of its own forward pass.
void reference_matches_differences() {
  Samples samples{{0, 70, 75}, 75, 64};
  const int64_t heads = 1, dim = 3;
  auto random = [&] { return Tensor(PNB_DTYPE_F32, {samples.tokens, heads * dim}).values(); };
  Operands x{random(), random(), random(), dim, 0.4};
  std::vector<double> d_o = random();
  Mask mask(samples, heads, [](int64_t, int64_t, int64_t i, int64_t j) { return i != 1 || j != 1; });
  Gradients g = masked_backward(x, mask, masked_forward(x, mask), d_o);
  auto loss = [&] {
    double sum = 0;
    std::vector<double> o = masked_forward(x, mask).o;
    for (size_t i = 0; i < o.size(); ++i) sum += o[i] * d_o[i];
    return sum;
  };
  int operand = 0;
  for (std::vector<double>* values : {&x.q, &x.k, &x.v}) {
    std::vector<double> numeric;
    for (double& value : *values) {
      double before = value;
      value = before + 1e-5;
      double high = loss();
      value = before - 1e-5;
      numeric.push_back((high - loss()) / 2e-5);
      value = before;
    }
    close(numeric, operand == 0 ? g.dq : operand == 1 ? g.dk : g.dv, PNB_DTYPE_F32,
          "masked reference, operand " + std::to_string(operand));
    ++operand;
  }
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  pnb_context* single = test::context(1);
  const std::vector<std::pair<std::vector<int32_t>, int64_t>> batches = {
      {{0, 1}, 1}, {{0, 128, 256}, 256}, {{0, 0, 65, 65, 70, 390}, 401}, {{0, 127, 130, 130, 323}, 323}, {{0, 261}, 300}};
  for (int32_t dtype : {PNB_DTYPE_F32, PNB_DTYPE_BF16}) {
    int variant = 0;
    for (int32_t size : {64, 128}) {
      const int64_t dims[] = {64, 80, 128, 27};
      for (const auto& [cu, tokens] : batches) {
        Samples samples{cu, tokens, size};
        for (int kind = 0; kind < kKinds; ++kind) {
          against_reference(context, dtype, kind, samples, 1 + variant % 2, dims[variant % 4]);
          ++variant;
        }
        full_lists_are_dense(context, dtype, samples, dims[variant % 4]);
      }
      for (int64_t dim : dims) {
        full_lists_are_dense(context, dtype, {{0, 65, 65, 70, 320}, 331, size}, dim);
        against_reference(context, dtype, kRandom, {{0, 65, 65, 70, 320}, 331, size}, 2, dim);
        after_an_exact_forward(context, dtype, {{0, 65, 65, 70, 320}, 331, size}, 2, dim);
      }
      unlisted_blocks_stay_unseen(context, dtype, size);
    }
    threads_do_not_show(context, single, dtype);
  }
  reference_matches_differences();
  pnb_context_destroy(single);
  pnb_context_destroy(context);
  return finish("attention_blocks_test");
}
