// What tests of attention share: a reference in double, with or without a mask of blocks, and a call's operands.
#pragma once

#include <sstream>

#include "cuda/harness.cuh"

namespace test {

// One thread a query row. q, k, v, d_o, o, dq: [tokens, heads, dim] in double. Written for reading, not for speed.
struct Reference {
  const double *q, *k, *v, *d_o;
  double *o, *dq, *dk, *dv, *lse, *delta;
  const int *cu_q, *cu_k;
  int samples, heads, dim;
  double scale;
  bool rounds_o;              // to bf16 before the backward pass reads it, as every implementation that saves o in bf16 does
  const uint8_t* mask;        // [heads, slots, width]: whether a block of keys is listed; NULL: all are
  int slots, width, size;
  bool masks_backward_alone;  // o and lse are those without a mask
};

// Rows counted in sample s.
__host__ __device__ inline bool sees(const Reference& r, int head, int s, int64_t query, int64_t key) {
  if (r.mask == nullptr) return true;
  int64_t slot = r.cu_q[s] / r.size + s + query / r.size;
  return r.mask[(head * static_cast<int64_t>(r.slots) + slot) * r.width + key / r.size] != 0;
}

__host__ __device__ inline double score(const Reference& r, int64_t query, int64_t key, int head) {
  double sum = 0;
  for (int d = 0; d < r.dim; ++d) sum += r.q[(query * r.heads + head) * r.dim + d] * r.k[(key * r.heads + head) * r.dim + d];
  return r.scale * sum;
}

__host__ __device__ inline double d_probability(const Reference& r, int64_t query, int64_t key, int head) {
  double sum = 0;
  for (int d = 0; d < r.dim; ++d) sum += r.d_o[(query * r.heads + head) * r.dim + d] * r.v[(key * r.heads + head) * r.dim + d];
  return sum;
}

__host__ __device__ inline void reference_query(const Reference& r, int query, int head) {
  int s = 0;
  while (s < r.samples && r.cu_q[s + 1] <= query) ++s;
  if (s == r.samples) return;
  int first = r.cu_k[s], seen = r.cu_k[s + 1] - first - (r.cu_q[s + 1] - 1 - query);
  auto forward = [&](int j) { return r.masks_backward_alone || sees(r, head, s, query - r.cu_q[s], j); };
  double top = -1e300, sum = 0, delta = 0;
  for (int j = 0; j < seen; ++j) {
    if (forward(j)) top = fmax(top, score(r, query, first + j, head));
  }
  for (int j = 0; j < seen; ++j) {
    if (forward(j)) sum += exp(score(r, query, first + j, head) - top);
  }
  int64_t row = (static_cast<int64_t>(query) * r.heads + head) * r.dim;
  double lse = sum == 0 ? 0 : top + log(sum);
  for (int j = 0; j < seen; ++j) {
    if (!forward(j)) continue;
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
    if (!sees(r, head, s, query - r.cu_q[s], j)) continue;
    double ds = r.scale * exp(score(r, query, first + j, head) - lse) * (d_probability(r, query, first + j, head) - delta);
    for (int d = 0; d < r.dim; ++d) r.dq[row + d] += ds * r.k[((first + j) * static_cast<int64_t>(r.heads) + head) * r.dim + d];
  }
}

// After every query's; for equal borders only.
__host__ __device__ inline void reference_key(const Reference& r, int key, int head) {
  int s = 0;
  while (s < r.samples && r.cu_q[s + 1] <= key) ++s;
  if (s == r.samples) return;
  int64_t column = (static_cast<int64_t>(key) * r.heads + head) * r.dim;
  for (int64_t query = key; query < r.cu_q[s + 1]; ++query) {
    if (!sees(r, head, s, query - r.cu_q[s], key - r.cu_q[s])) continue;
    double p = exp(score(r, query, key, head) - r.lse[query * r.heads + head]);
    double ds = r.scale * p * (d_probability(r, query, key, head) - r.delta[query * r.heads + head]);
    int64_t row = (query * r.heads + head) * r.dim;
    for (int d = 0; d < r.dim; ++d) {
      r.dv[column + d] += p * r.d_o[row + d];
      r.dk[column + d] += ds * r.q[row + d];
    }
  }
}

static __global__ void reference_queries(Reference r, int tokens) {
  int query = blockIdx.x * blockDim.x + threadIdx.x;
  if (query < tokens) reference_query(r, query, blockIdx.y);
}

static __global__ void reference_keys(Reference r, int tokens) {
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

inline Shape packed(int32_t dtype, int64_t heads, int64_t dim, std::vector<int32_t> cu, int64_t tokens, double magnitude = 1.0,
             int64_t longest = 0) {
  return {dtype, heads, dim, cu, cu, tokens, tokens, magnitude, longest};
}

struct Results {
  std::vector<double> o, lse, dq, dk, dv;
};

// Blocks of keys that each block of queries may see, on the device.
struct Mask {
  const uint8_t* blocks = nullptr;
  int slots = 0, width = 0, size = 0;
  bool backward_alone = false;
};

inline Results reference(const Shape& s, const std::vector<double>& q, const std::vector<double>& k, const std::vector<double>& v,
                  const std::vector<double>& d_o, double scale, bool on_host = false, const Mask& mask = {}) {
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
  args.mask = mask.blocks;
  args.slots = mask.slots, args.width = mask.width, args.size = mask.size;
  args.masks_backward_alone = mask.backward_alone;
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
inline pnb_tensor heads_of(const Tensor& buffer, int64_t column, int64_t heads, int64_t dim) {
  pnb_tensor view = buffer.columns(column, heads * dim);
  int64_t width = view.stride[0];
  view.rank = 3;
  view.shape[1] = heads, view.shape[2] = dim;
  view.stride[0] = width, view.stride[1] = dim, view.stride[2] = 1;
  return view;
}

inline std::vector<double> columns(const std::vector<double>& values, int64_t width, int64_t column, int64_t count) {
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
    p.blocks = blocks;
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
    p.blocks = blocks;
    return p;
  }

  pnb_attention_blocks blocks{};  // lists, where there are any

  void forward() {
    ok(shape.text(), [&] { backend().attention_forward(forward_params()); });
    cuda(cudaDeviceSynchronize(), (shape.text() + " forward").c_str());
  }

  void backward(bool with_dk = true) {
    pnb_attention_backward_params p = backward_params();
    if (!with_dk) p.dk = {};
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
inline double allowed(const std::vector<double>& exact, const Shape& s) {
  double floor = s.dtype == PNB_DTYPE_BF16 ? 4e-3 : 0.0;
  return 2 * rounding_error(exact, s.dtype) + floor + 2e-6 * s.magnitude * s.magnitude;
}

inline std::vector<int32_t> lengths(const std::vector<int32_t>& each) {
  std::vector<int32_t> cu{0};
  for (int32_t length : each) cu.push_back(cu.back() + length);
  return cu;
}

inline std::vector<int32_t> random_lengths(int samples, int longest) {
  std::vector<int32_t> cu{0};
  for (int i = 0; i < samples; ++i) cu.push_back(cu.back() + static_cast<int32_t>(generator()() % (longest + 1)));
  return cu;
}

}  // namespace test
