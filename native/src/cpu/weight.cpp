#include "cpu/weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/tensor.h"
#include "cpu/bf16.h"
#include "cpu/convert.h"

namespace pnb::cpu {

namespace {

using Desc = dnnl::memory::desc;

constexpr uint64_t kAlignment = 256;

struct Layout {
  int64_t out = 0;
  int64_t in = 0;
  dnnl::memory::desc forward;
  dnnl::memory::desc backward;
  uint64_t forward_bytes = 0;
  uint64_t backward_bytes = 0;
};

// oneDNN's packing of B [k, n] on AVX-512: tiles of 64 columns, each with its rows one after another (in pairs for bf16).
Desc tiled_desc(int64_t k, int64_t n, dnnl::memory::data_type type) {
  auto tag = type == dnnl::memory::data_type::bf16 ? dnnl::memory::format_tag::BA16a64b2a : dnnl::memory::format_tag::BA16a64b;
  return Desc({k, n}, type, tag);
}

// Where a packed operand's neurons lie, in slabs of 32, the smallest block: `runs` pieces of `bytes`, `stride` apart. Slab s
// begins at offset(s).
struct Slabs {
  int64_t runs, bytes, stride;
  int64_t group;         // slabs that lie side by side, piece by piece
  int64_t group_stride;  // from a group to the next

  static constexpr int64_t kNeurons = 32;

  Slabs(const Desc& desc, bool columns) {  // neurons are columns of a FORWARD operand, rows of a BACKWARD one
    int64_t k = desc.get_dims()[0], n = desc.get_dims()[1];
    int64_t size = static_cast<int64_t>(dnnl::memory::data_type_size(desc.get_data_type()));
    group = 1;
    if (desc.get_inner_nblks() > 0) {
      int64_t tile = desc.get_padded_dims()[0] * kColumnTile * size;
      bytes = kNeurons * (columns ? kTileRowBytes / kColumnTile : kColumnTile * size);
      runs = columns ? tile / kTileRowBytes : desc.get_padded_dims()[1] / kColumnTile;
      stride = columns ? kTileRowBytes : tile;
      group = columns ? kColumnTile / kNeurons : 1;
      group_stride = columns ? tile : bytes;
    } else if (columns && desc.get_strides()[1] == 1) {
      runs = k, bytes = kNeurons * size, stride = n * size, group_stride = bytes;
    } else {
      runs = 1, bytes = kNeurons * (columns ? k : n) * size, stride = 0, group_stride = bytes;
    }
  }

  int64_t offset(int64_t slab) const { return slab / group * group_stride + slab % group * bytes; }

 private:
  static constexpr int64_t kTileRowBytes = 256;  // of 64 f32 values, or 64 pairs of bf16
};

// `runs` pieces of `bytes`, copied or cleared.
struct Piece {
  const char* s;  // NULL: zeros
  char* d;
  int64_t bytes, runs, s_stride, d_stride;
};

void move(const Piece& piece, int64_t part, int64_t parts) {
  if (piece.runs == 1) {  // cut at cache lines
    constexpr int64_t kLine = 64;
    int64_t lines = (piece.bytes + kLine - 1) / kLine;
    int64_t from = lines * part / parts * kLine, to = std::min(lines * (part + 1) / parts * kLine, piece.bytes);
    piece.s ? std::memcpy(piece.d + from, piece.s + from, to - from) : std::memset(piece.d + from, 0, to - from);
    return;
  }
  for (int64_t run = piece.runs * part / parts; run < piece.runs * (part + 1) / parts; ++run) {
    char* d = piece.d + run * piece.d_stride;
    piece.s ? std::memcpy(d, piece.s + run * piece.s_stride, piece.bytes) : std::memset(d, 0, piece.bytes);
  }
}

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// What oneDNN reads fastest, of the layouts that blocks can be gathered from.
Desc packed(Matmul& matmul, int64_t k, int64_t n, dnnl::memory::data_type type) {
  Desc fastest = matmul.packed_desc(k, n, type);
  Desc plain({k, n}, type, dnnl::memory::format_tag::ab);
  return fastest == tiled_desc(k, n, type) ? fastest : plain;
}

// How W [out, in] lies for a use.
Desc desc_of(Matmul& matmul, int64_t out, int64_t in, int32_t dtype, int32_t use) {
  auto type = dnnl_type(dtype);
  bool forward = use == PNB_WEIGHT_FORWARD;
  // Without a bf16 matmul the weight stays plain: every product widens it first.
  bool plain = dtype == PNB_DTYPE_BF16 && !matmul.bf16();
  if (!plain) return forward ? packed(matmul, in, out, type) : packed(matmul, out, in, type);
  return forward ? Desc({in, out}, type, dnnl::memory::dims{1, in}) : Desc({out, in}, type, dnnl::memory::format_tag::ab);
}

Layout layout_of(Matmul& matmul, const pnb_weight_params& p) {
  Layout layout;
  layout.in = p.parts[0].shape[1];
  for (int i = 0; i < p.part_count; ++i) layout.out += p.parts[i].shape[0];
  if (p.uses & PNB_WEIGHT_FORWARD) {
    layout.forward = desc_of(matmul, layout.out, layout.in, p.dtype, PNB_WEIGHT_FORWARD);
    layout.forward_bytes = aligned(layout.forward.get_size());
  }
  if (p.uses & PNB_WEIGHT_BACKWARD) {
    layout.backward = desc_of(matmul, layout.out, layout.in, p.dtype, PNB_WEIGHT_BACKWARD);
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

bool PackedWeight::tiled(Matmul& matmul, const pnb_weight& weight, int32_t use) {
  if (!weight.described) return tiled(static_cast<const PackedWeight&>(weight).matrix(use));
  return desc_of(matmul, weight.out, weight.in, weight.dtype, use).get_inner_nblks() > 0;
}

Matrix PackedWeight::listed(int32_t use, std::span<const Run> runs, int64_t neurons, int64_t most, Scratch& scratch,
                            int threads) const {
  const Matrix& whole = matrix(use);
  bool columns = use == PNB_WEIGHT_FORWARD;
  auto like_whole = [&](int64_t count) {
    int64_t k = columns ? in : count, n = columns ? count : in;
    auto type = whole.desc.get_data_type();
    if (tiled(whole)) return tiled_desc(k, n, type);
    bool by_columns = columns && whole.desc.get_strides()[0] == 1;
    return Desc({k, n}, type, by_columns ? dnnl::memory::dims{1, k} : dnnl::memory::dims{n, 1});
  };
  Desc desc = like_whole(neurons);
  Slabs from(whole.desc, columns), to(desc, columns);
  const char* s = static_cast<const char*>(whole.data);
  char* d = static_cast<char*>(scratch.bytes(like_whole(most).get_size()));
  std::vector<Piece> pieces;
  for (const Run& run : runs) {
    int64_t source = run.neuron / Slabs::kNeurons, target = run.column / Slabs::kNeurons;
    int64_t left = run.count / Slabs::kNeurons;
    while (left > 0) {
      bool whole_groups = source % from.group == 0 && target % from.group == 0 && left >= from.group;
      int64_t slabs = whole_groups ? left / from.group * from.group : 1;
      if (whole_groups && from.group > 1) {  // neighbours in both, with all their pieces between them
        pieces.push_back({s + from.offset(source), d + to.offset(target), slabs / from.group * from.group_stride, 1, 0, 0});
      } else {
        pieces.push_back({s + from.offset(source), d + to.offset(target), slabs * from.bytes, from.runs, from.stride, to.stride});
      }
      source += slabs, target += slabs, left -= slabs;
    }
  }
  // oneDNN wants zeros where a tile is filled in part.
  int64_t filled = neurons / Slabs::kNeurons;
  if (filled % to.group != 0) pieces.push_back({nullptr, d + to.offset(filled), to.bytes, to.runs, 0, to.stride});
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < threads; ++part) {
    for (const Piece& piece : pieces) move(piece, part, threads);
  }
  return {d, desc};
}

Matrix PackedWeight::columns(const Matrix& listed, int64_t first, int64_t count) {
  int64_t k = listed.desc.get_dims()[0];
  auto type = listed.desc.get_data_type();
  int64_t tile_bytes = listed.desc.get_padded_dims()[0] * kColumnTile * static_cast<int64_t>(dnnl::memory::data_type_size(type));
  return {static_cast<char*>(listed.data) + first / kColumnTile * tile_bytes, tiled_desc(k, count, type)};
}

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
