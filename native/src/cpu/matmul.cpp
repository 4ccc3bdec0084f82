#include "cpu/matmul.h"

#include <omp.h>

#include "cpu/isa.h"
#include "penumbra/tensor.h"

namespace pnb::cpu {

namespace {

// Row counts vary from step to step, a dozen shapes each; beyond this the least recently used go.
constexpr size_t kCachedPrimitives = 1024;

void append(std::string& key, dnnl::memory::desc desc) {  // by value: get_blob() is not const
  std::vector<uint8_t> blob = desc.get_blob();
  key.append(blob.begin(), blob.end());
}

// A residual that is the destination itself. As a binary operand it would be overwritten by partial sums where k is split;
// oneDNN's own sum keeps it.
bool accumulates(const Matrix& d, const Fusion& fusion) { return fusion.residual && fusion.residual->data == d.data; }

}  // namespace

dnnl::memory::data_type dnnl_type(int32_t dtype) {
  return dtype == PNB_DTYPE_BF16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

Matrix plain_matrix(void* data, int32_t dtype, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  return {data, dnnl::memory::desc({rows, columns}, dnnl_type(dtype), dnnl::memory::dims{row_stride, column_stride})};
}

Matmul::Matmul(int threads)
    : threads_(threads),
      bf16_(has_avx512()),
      engine_(dnnl::engine::kind::cpu, 0),
      stream_(engine_) {}

const Matmul::Entry& Matmul::entry(const Matrix& a, const Matrix& b, const Matrix& d, const Fusion& fusion) {
  Key key;
  append(key, a.desc);
  append(key, b.desc);
  append(key, d.desc);
  bool sum = accumulates(d, fusion);
  key.push_back(static_cast<char>((fusion.bias ? 1 : 0) | (fusion.residual ? 2 : 0) | (sum ? 4 : 0)));
  if (fusion.residual) append(key, fusion.residual->desc);

  auto found = index_.find(key);
  if (found != index_.end()) {
    recent_.splice(recent_.begin(), recent_, found->second);
    return recent_.front().second;
  }
  dnnl::post_ops post;
  if (sum) post.append_sum(1.0f);
  if (fusion.residual && !sum) post.append_binary(dnnl::algorithm::binary_add, fusion.residual->desc);
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(post);
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::memory::desc bias;
  if (fusion.bias) {
    bias = dnnl::memory::desc({1, d.desc.get_dims()[1]}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ab);
  }
  dnnl::matmul::primitive_desc description(engine_, a.desc, b.desc, bias, d.desc, attributes);
  recent_.emplace_front(key, Entry{dnnl::matmul(description), description.scratchpad_desc()});
  index_.emplace(key, recent_.begin());
  if (recent_.size() > kCachedPrimitives) {
    index_.erase(recent_.back().first);
    recent_.pop_back();
  }
  return recent_.front().second;
}

void Matmul::run(const Matrix& a, const Matrix& b, const Matrix& d, const Fusion& fusion) {
  if (a.desc.get_dims()[0] == 0) return;
  omp_set_num_threads(threads_);
  const Entry& product = entry(a, b, d, fusion);
  std::unordered_map<int, dnnl::memory> arguments{
      {DNNL_ARG_SRC, dnnl::memory(a.desc, engine_, a.data)},
      {DNNL_ARG_WEIGHTS, dnnl::memory(b.desc, engine_, b.data)},
      {DNNL_ARG_DST, dnnl::memory(d.desc, engine_, d.data)},
      {DNNL_ARG_SCRATCHPAD, dnnl::memory(product.scratchpad, engine_, scratchpad_.bytes(product.scratchpad.get_size()))}};
  if (fusion.bias) {
    dnnl::memory::desc desc({1, d.desc.get_dims()[1]}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ab);
    arguments.emplace(DNNL_ARG_BIAS, dnnl::memory(desc, engine_, const_cast<float*>(fusion.bias)));
  }
  if (fusion.residual && !accumulates(d, fusion)) {
    arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1,
                      dnnl::memory(fusion.residual->desc, engine_, fusion.residual->data));
  }
  product.primitive.execute(stream_, arguments);
}

dnnl::memory::desc Matmul::packed_desc(int64_t k, int64_t n, dnnl::memory::data_type type) {
  constexpr int64_t kTypicalRows = 1024;
  using Desc = dnnl::memory::desc;
  omp_set_num_threads(threads_);
  dnnl::matmul::primitive_desc description(engine_, Desc({kTypicalRows, k}, type, dnnl::memory::format_tag::ab),
                                           Desc({k, n}, type, dnnl::memory::format_tag::any),
                                           Desc({kTypicalRows, n}, type, dnnl::memory::format_tag::ab));
  return description.weights_desc();
}

void Matmul::reorder(const Matrix& source, const Matrix& target) {
  omp_set_num_threads(threads_);
  dnnl::memory from(source.desc, engine_, source.data);
  dnnl::memory to(target.desc, engine_, target.data);
  dnnl::reorder(from, to).execute(stream_, from, to);
}

}  // namespace pnb::cpu
