#include "cpu/weight.h"

#include <vector>

#include "core/tensor.h"
#include "cpu/bf16.h"
#include "cpu/convert.h"

namespace pnb::cpu {

namespace {

constexpr uint64_t kAlignment = 256;

struct Layout {
  int64_t out = 0;
  int64_t in = 0;
  dnnl::memory::desc forward;
  dnnl::memory::desc backward;
  uint64_t forward_bytes = 0;
  uint64_t backward_bytes = 0;
};

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

Layout layout_of(Matmul& matmul, const pnb_weight_params& p) {
  Layout layout;
  layout.in = p.parts[0].shape[1];
  for (int i = 0; i < p.part_count; ++i) layout.out += p.parts[i].shape[0];
  auto type = dnnl_type(p.dtype);
  // Without a bf16 matmul the weight stays plain: every product widens it first.
  bool plain = p.dtype == PNB_DTYPE_BF16 && !matmul.bf16();
  using Desc = dnnl::memory::desc;
  if (p.uses & PNB_WEIGHT_FORWARD) {
    layout.forward = plain ? Desc({layout.in, layout.out}, type, dnnl::memory::dims{1, layout.in})
                           : matmul.packed_desc(layout.in, layout.out, type);
    layout.forward_bytes = aligned(layout.forward.get_size());
  }
  if (p.uses & PNB_WEIGHT_BACKWARD) {
    layout.backward = plain ? Desc({layout.out, layout.in}, type, dnnl::memory::format_tag::ab)
                            : matmul.packed_desc(layout.out, layout.in, type);
    layout.backward_bytes = aligned(layout.backward.get_size());
  }
  return layout;
}

// The parts, stacked, row-major, in the dtype to compute in.
std::vector<char> stacked(const pnb_weight_params& p, int64_t out, int64_t in) {
  int size = dtype_size(p.dtype);
  std::vector<char> rows(static_cast<size_t>(out * in * size));
  pnb_convert_params copy{};
  char* target = rows.data();
  for (int i = 0; i < p.part_count; ++i) {
    copy.s = p.parts[i];
    copy.d = copy.s;
    copy.d.data = target;
    copy.d.dtype = p.dtype;
    copy.d.stride[0] = in;
    copy.d.stride[1] = 1;
    convert(copy, 1);
    target += copy.s.shape[0] * in * size;
  }
  return rows;
}

}  // namespace

uint64_t weight_storage(Matmul& matmul, const pnb_weight_params& p) {
  Layout layout = layout_of(matmul, p);
  return layout.forward_bytes + layout.backward_bytes;
}

std::unique_ptr<PackedWeight> weight_create(Matmul& matmul, const pnb_weight_params& p) {
  Layout layout = layout_of(matmul, p);
  auto weight = std::make_unique<PackedWeight>();
  weight->out = layout.out;
  weight->in = layout.in;
  weight->dtype = p.dtype;
  weight->uses = p.uses;

  const pnb_tensor& first = p.parts[0];
  bool in_place = p.part_count == 1 && first.dtype == p.dtype && is_contiguous(first) &&
                  reinterpret_cast<uintptr_t>(first.data) % dtype_size(p.dtype) == 0;
  std::vector<char> copy;
  void* rows = first.data;
  if (!in_place) {
    copy = stacked(p, layout.out, layout.in);
    rows = copy.data();
  }
  char* storage = static_cast<char*>(p.storage);
  if (p.uses & PNB_WEIGHT_FORWARD) {
    weight->forward = {storage, layout.forward};
    matmul.reorder(plain_matrix(rows, p.dtype, layout.in, layout.out, 1, layout.in), weight->forward);
  }
  if (p.uses & PNB_WEIGHT_BACKWARD) {
    weight->backward = {storage + layout.forward_bytes, layout.backward};
    matmul.reorder(plain_matrix(rows, p.dtype, layout.out, layout.in, layout.in, 1), weight->backward);
  }
  return weight;
}

}  // namespace pnb::cpu
