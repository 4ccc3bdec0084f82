// Attention against double: odd lengths, packed and empty samples, tails, strided views, caches, poison, NaN next door.
#include "cuda/harness.cuh"

#include <sstream>

using namespace test;

namespace {

// One thread a query row. q, k, v, d_o, o, dq: [tokens, heads, dim] in double. Written for reading, not for speed.
struct Reference {
  const double *q, *k, *v, *d_o;
  double *o, *dq, *dk, *dv, *lse, *delta;
  const int *cu_q, *cu_k;
  int samples, heads, dim;
  double scale;
  bool rounds_o;  // to bf16 before the backward pass reads it, as every implementation that saves o in bf16 does
};

__host__ __device__ double score(const Reference& r, int64_t query, int64_t key, int head) {
  double sum = 0;
  for (int d = 0; d < r.dim; ++d) sum += r.q[(query * r.heads + head) * r.dim + d] * r.k[(key * r.heads + head) * r.dim + d];
  return r.scale * sum;
}

__host__ __device__ double d_probability(const Reference& r, int64_t query, int64_t key, int head) {
  double sum = 0;
  for (int d = 0; d < r.dim; ++d) sum += r.d_o[(query * r.heads + head) * r.dim + d] * r.v[(key * r.heads + head) * r.dim + d];
  return sum;
}

__host__ __device__ void reference_query(const Reference& r, int query, int head) {
  int s = 0;
  while (s < r.samples && r.cu_q[s + 1] <= query) ++s;
  if (s == r.samples) return;
  int first = r.cu_k[s], seen = r.cu_k[s + 1] - first - (r.cu_q[s + 1] - 1 - query);
  double top = -1e300, sum = 0, delta = 0;
  for (int j = 0; j < seen; ++j) top = fmax(top, score(r, query, first + j, head));
  for (int j = 0; j < seen; ++j) sum += exp(score(r, query, first + j, head) - top);
  int64_t row = (static_cast<int64_t>(query) * r.heads + head) * r.dim;
  double lse = top + log(sum);
  for (int j = 0; j < seen; ++j) {
    double p = exp(score(r, query, first + j, head) - lse);
    for (int d = 0; d < r.dim; ++d) r.o[row + d] += p * r.v[((first + j) * static_cast<int64_t>(r.heads) + head) * r.dim + d];
  }
  r.lse[static_cast<int64_t>(query) * r.heads + head] = lse;
  if (r.d_o == nullptr) return;
  for (int d = 0; d < r.dim; ++d) {
    double o = r.rounds_o ? __bfloat162float(__float2bfloat16(static_cast<float>(r.o[row + d]))) : r.o[row + d];
    delta += o * r.d_o[row + d];
  }
  r.delta[static_cast<int64_t>(query) * r.heads + head] = delta;
  for (int j = 0; j < seen; ++j) {
    double ds = r.scale * exp(score(r, query, first + j, head) - lse) * (d_probability(r, query, first + j, head) - delta);
    for (int d = 0; d < r.dim; ++d) r.dq[row + d] += ds * r.k[((first + j) * static_cast<int64_t>(r.heads) + head) * r.dim + d];
  }
}

// After every query's; for equal borders only.
__host__ __device__ void reference_key(const Reference& r, int key, int head) {
  int s = 0;
  while (s < r.samples && r.cu_q[s + 1] <= key) ++s;
  if (s == r.samples) return;
  int64_t column = (static_cast<int64_t>(key) * r.heads + head) * r.dim;
  for (int64_t query = key; query < r.cu_q[s + 1]; ++query) {
    double p = exp(score(r, query, key, head) - r.lse[query * r.heads + head]);
    double ds = r.scale * p * (d_probability(r, query, key, head) - r.delta[query * r.heads + head]);
    int64_t row = (query * r.heads + head) * r.dim;
    for (int d = 0; d < r.dim; ++d) {
      r.dv[column + d] += p * r.d_o[row + d];
      r.dk[column + d] += ds * r.q[row + d];
    }
  }
}

__global__ void reference_queries(Reference r, int tokens) {
  int query = blockIdx.x * blockDim.x + threadIdx.x;
  if (query < tokens) reference_query(r, query, blockIdx.y);
}

__global__ void reference_keys(Reference r, int tokens) {
  int key = blockIdx.x * blockDim.x + threadIdx.x;
  if (key < tokens) reference_key(r, key, blockIdx.y);
}

class Doubles {
 public:
  explicit Doubles(const std::vector<double>& values) : count_(values.size()) {
    cuda(cudaMalloc(&data_, std::max<size_t>(8, count_ * 8)));
    cuda(cudaMemcpy(data_, values.data(), count_ * 8, cudaMemcpyHostToDevice));
  }
  ~Doubles() { cudaFree(data_); }
  Doubles(const Doubles&) = delete;
  double* get() const { return data_; }
  std::vector<double> values() const {
    std::vector<double> result(count_);
    cuda(cudaMemcpy(result.data(), data_, count_ * 8, cudaMemcpyDeviceToHost), "the reference");
    return result;
  }

 private:
  double* data_ = nullptr;
  size_t count_;
};

struct Shape {
  int32_t dtype;
  int64_t heads, dim;
  std::vector<int32_t> cu_q, cu_k;
  int64_t tokens_q, tokens_k;  // rows past the last border belong to no sample
  double magnitude = 1.0;      // of q and k
  int64_t longest = 0;         // max_seqlen, where it is more than the longest sample

  std::string text() const {
    std::ostringstream s;
    s << "attention " << pnb::dtype_name(dtype) << " heads " << heads << " dim " << dim << " tokens " << tokens_q;
    if (tokens_k != tokens_q || cu_k != cu_q) s << " keys " << tokens_k;
    s << " samples " << cu_q.size() - 1;
    if (magnitude != 1.0) s << " magnitude " << magnitude;
    if (longest != 0) s << " max_seqlen " << longest;
    return s.str();
  }
};

Shape packed(int32_t dtype, int64_t heads, int64_t dim, std::vector<int32_t> cu, int64_t tokens, double magnitude = 1.0,
             int64_t longest = 0) {
  return {dtype, heads, dim, cu, cu, tokens, tokens, magnitude, longest};
}

struct Results {
  std::vector<double> o, lse, dq, dk, dv;
};

Results reference(const Shape& s, const std::vector<double>& q, const std::vector<double>& k, const std::vector<double>& v,
                  const std::vector<double>& d_o, double scale, bool on_host = false) {
  std::vector<double> rows(s.tokens_q * s.heads);
  std::vector<double> query_like(q.size()), key_like(k.size());
  Results r{query_like, rows, query_like, key_like, key_like};
  int samples = static_cast<int>(s.cu_q.size() - 1);
  Reference args{};
  args.samples = samples;
  args.heads = static_cast<int>(s.heads);
  args.dim = static_cast<int>(s.dim);
  args.scale = scale;
  args.rounds_o = s.dtype == PNB_DTYPE_BF16;
  if (on_host) {
    std::vector<double> delta(rows.size());
    args.q = q.data(), args.k = k.data(), args.v = v.data(), args.d_o = d_o.empty() ? nullptr : d_o.data();
    args.o = r.o.data(), args.dq = r.dq.data(), args.dk = r.dk.data(), args.dv = r.dv.data();
    args.lse = r.lse.data(), args.delta = delta.data(), args.cu_q = s.cu_q.data(), args.cu_k = s.cu_k.data();
    for (int head = 0; head < s.heads; ++head) {
      for (int query = 0; query < s.tokens_q; ++query) reference_query(args, query, head);
      for (int key = 0; key < s.tokens_k && !d_o.empty(); ++key) reference_key(args, key, head);
    }
    return r;
  }
  Doubles dev_q(q), dev_k(k), dev_v(v), dev_d_o(d_o), o(r.o), dq(r.dq), dk(r.dk), dv(r.dv), lse(rows), delta(rows);
  Tensor cu_q(PNB_DTYPE_I32, {samples + 1}, 0.0), cu_k(PNB_DTYPE_I32, {samples + 1}, 0.0);
  cu_q.set(ints(s.cu_q));
  cu_k.set(ints(s.cu_k));
  args.q = dev_q.get(), args.k = dev_k.get(), args.v = dev_v.get(), args.d_o = d_o.empty() ? nullptr : dev_d_o.get();
  args.o = o.get(), args.dq = dq.get(), args.dk = dk.get(), args.dv = dv.get(), args.lse = lse.get(), args.delta = delta.get();
  args.cu_q = static_cast<int*>(cu_q.t.data), args.cu_k = static_cast<int*>(cu_k.t.data);
  dim3 queries(static_cast<unsigned>((s.tokens_q + 63) / 64), args.heads);
  dim3 keys(static_cast<unsigned>((s.tokens_k + 63) / 64), args.heads);
  reference_queries<<<queries, 64>>>(args, static_cast<int>(s.tokens_q));
  if (!d_o.empty()) reference_keys<<<keys, 64>>>(args, static_cast<int>(s.tokens_k));
  cuda(cudaDeviceSynchronize(), "the reference");
  return {o.values(), lse.values(), dq.values(), dk.values(), dv.values()};
}

// Columns [column, column + heads * dim) of a [tokens, width] buffer as [tokens, heads, dim].
pnb_tensor heads_of(const Tensor& buffer, int64_t column, int64_t heads, int64_t dim) {
  pnb_tensor view = buffer.columns(column, heads * dim);
  int64_t width = view.stride[0];
  view.rank = 3;
  view.shape[1] = heads, view.shape[2] = dim;
  view.stride[0] = width, view.stride[1] = dim, view.stride[2] = 1;
  return view;
}

std::vector<double> columns(const std::vector<double>& values, int64_t width, int64_t column, int64_t count) {
  std::vector<double> result;
  for (size_t row = 0; row < values.size() / width; ++row) {
    result.insert(result.end(), values.begin() + row * width + column, values.begin() + row * width + column + count);
  }
  return result;
}

// Operands of one call: q, k and v are column ranges of one buffer where queries and keys are the same tokens.
class Operands {
 public:
  Operands(const Shape& s, bool backward)
      : shape(s),
        width(s.heads * s.dim),
        fused(s.tokens_q == s.tokens_k && s.cu_q == s.cu_k),
        q_buffer(s.dtype, {s.tokens_q, fused ? 3 * width : width}),
        kv_buffer(s.dtype, {fused ? 1 : s.tokens_k, 2 * width}),
        o(s.dtype, {s.tokens_q, width}, 0.0),
        lse(PNB_DTYPE_F32, {s.heads, s.tokens_q}, 0.0),
        d_o(s.dtype, {backward ? s.tokens_q : 1, width}),
        d_qkv(s.dtype, {backward ? s.tokens_q : 1, 3 * width}, 0.0),
        cu_q(PNB_DTYPE_I32, {static_cast<int64_t>(s.cu_q.size())}, 0.0),
        cu_k(PNB_DTYPE_I32, {static_cast<int64_t>(s.cu_k.size())}, 0.0) {
    cu_q.set(ints(s.cu_q));
    cu_k.set(ints(s.cu_k));
    scale = 1.0 / std::sqrt(static_cast<double>(s.dim));
    edit(q_buffer, [&](int64_t, int64_t column) { return column < (fused ? 2 : 1) * width ? s.magnitude : 1.0; });
    // What lies past the last sample must not be read.
    edit(q_buffer, [&](int64_t row, int64_t) { return row < s.cu_q.back() ? 1.0 : NAN; });
    if (!fused) edit(kv_buffer, [&](int64_t row, int64_t) { return row < s.cu_k.back() ? 1.0 : NAN; });
    if (backward) edit(d_o, [&](int64_t row, int64_t) { return row < s.cu_q.back() ? 1.0 : NAN; });
  }

  // Multiplies each element by factor(row, column).
  template <typename Factor>
  static void edit(Tensor& t, Factor&& factor) {
    std::vector<double> values = t.values();
    for (int64_t i = 0; i < t.size(); ++i) values[i] *= factor(i / t.t.shape[1], i % t.t.shape[1]);
    t.set(values);
  }

  std::vector<double> part(int index) const {
    std::vector<double> values = index == 0 || fused ? columns(q_buffer.values(), fused ? 3 * width : width, index * width, width)
                                                     : columns(kv_buffer.values(), 2 * width, (index - 1) * width, width);
    for (double& value : values) value = std::isnan(value) ? 0.0 : value;
    return values;
  }

  pnb_attention_forward_params forward_params() {
    pnb_attention_forward_params p{};
    p.struct_size = sizeof p;
    p.scale = static_cast<float>(scale);
    p.q = heads_of(q_buffer, 0, shape.heads, shape.dim);
    p.k = fused ? heads_of(q_buffer, width, shape.heads, shape.dim) : heads_of(kv_buffer, 0, shape.heads, shape.dim);
    p.v = fused ? heads_of(q_buffer, 2 * width, shape.heads, shape.dim) : heads_of(kv_buffer, width, shape.heads, shape.dim);
    p.o = heads_of(o, 0, shape.heads, shape.dim);
    p.lse = lse.t;
    p.cu_seqlens_q = cu_q.t;
    p.cu_seqlens_k = cu_k.t;
    p.max_seqlen = shape.longest;
    for (size_t s = 1; s < shape.cu_k.size(); ++s) {
      p.max_seqlen = std::max<int64_t>(p.max_seqlen, shape.cu_k[s] - shape.cu_k[s - 1]);
    }
    return p;
  }

  pnb_attention_backward_params backward_params() {
    pnb_attention_forward_params f = forward_params();
    pnb_attention_backward_params p{};
    p.struct_size = sizeof p;
    p.scale = f.scale;
    p.q = f.q, p.k = f.k, p.v = f.v, p.o = f.o, p.lse = f.lse;
    p.d_o = heads_of(d_o, 0, shape.heads, shape.dim);
    p.dq = heads_of(d_qkv, 0, shape.heads, shape.dim);
    p.dk = heads_of(d_qkv, width, shape.heads, shape.dim);
    p.dv = heads_of(d_qkv, 2 * width, shape.heads, shape.dim);
    p.cu_seqlens = f.cu_seqlens_q;
    p.max_seqlen = f.max_seqlen;
    return p;
  }

  void forward() {
    ok(shape.text(), [&] { backend().attention_forward(forward_params()); });
    cuda(cudaDeviceSynchronize(), (shape.text() + " forward").c_str());
  }

  void backward() {
    pnb_attention_backward_params p = backward_params();
    Workspace workspace(backend().attention_backward_workspace(p));
    p.workspace = workspace.w;
    ok(shape.text(), [&] { backend().attention_backward(p); });
    cuda(cudaDeviceSynchronize(), (shape.text() + " backward").c_str());
  }

  std::vector<double> gradient(int index) const { return columns(d_qkv.values(), 3 * width, index * width, width); }

  Shape shape;
  int64_t width;
  bool fused;
  Tensor q_buffer, kv_buffer, o, lse, d_o, d_qkv, cu_q, cu_k;
  double scale;
};

// The result is rounded; P and dS are rounded to the dtype before they are multiplied again; and a score of magnitude^2, kept
// in f32, is wrong by so many epsilons, which exp makes a relative error of P. The floor stands for the latter two.
double allowed(const std::vector<double>& exact, const Shape& s) {
  double floor = s.dtype == PNB_DTYPE_BF16 ? 4e-3 : 0.0;
  return 2 * rounding_error(exact, s.dtype) + floor + 2e-6 * s.magnitude * s.magnitude;
}

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

// A sample full of NaN leaves its neighbours as they are without it.
void nan_stays_in_its_sample(int32_t dtype, int64_t dim, int64_t longest) {
  Shape s = packed(dtype, 2, dim, {0, 90, 230, 300}, 301, 1.0, longest);
  std::string what = s.text() + " beside a sample of NaN";
  Operands clean(s, true), dirty(s, true);
  dirty.q_buffer.set(clean.q_buffer.values());
  dirty.d_o.set(clean.d_o.values());
  auto poison = [](int64_t row, int64_t) { return row >= 90 && row < 230 ? NAN : 1.0; };
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

std::vector<int32_t> lengths(std::initializer_list<int32_t> each) {
  std::vector<int32_t> cu{0};
  for (int32_t length : each) cu.push_back(cu.back() + length);
  return cu;
}

std::vector<int32_t> random_lengths(int samples, int longest) {
  std::vector<int32_t> cu{0};
  for (int i = 0; i < samples; ++i) cu.push_back(cu.back() + static_cast<int32_t>(generator()() % (longest + 1)));
  return cu;
}

void cases(int32_t dtype, bool brief) {
  for (int64_t dim : {64, 80, 128}) {
    matches(packed(dtype, 2, dim, {0, 128, 256}, 256));
    matches(packed(dtype, 3, dim, lengths({65, 0, 5, 129}), 203));
    matches(packed(dtype, 1, dim, lengths({1}), 1));
    matches(packed(dtype, 2, dim, {0, 0, 0}, 7));  // no sample at all
    nan_stays_in_its_sample(dtype, dim, 0);
    nan_stays_in_its_sample(dtype, dim, 4096);
    if (brief) continue;
    matches(packed(dtype, 2, dim, lengths({300}), 333, 8.0));  // scores in the hundreds
    std::vector<int32_t> cu = random_lengths(24, 300);
    matches(packed(dtype, 4, dim, cu, cu.back() + 77));
    matches(packed(dtype, 2, dim, lengths({1000, 1, 255, 513}), 1769));
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
  return finish("attention");
}
