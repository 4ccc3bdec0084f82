#include "cuda/kernels/gemm/gemm.h"

#include <cstdint>

#include "core/tensor.h"
#include "cuda/kernels/gemm/product.h"
#include "cuda/kernels/gemm/sm90_relay.h"
#include "cuda/kernels/gemm/sm90_tandem.h"
#include "cuda/kernels/gemm/sm90_tile.h"

namespace pnb::cuda {

namespace {

// An architecture's tensor-core kernels, [whether b is contiguous along n].
struct TileKernels {
  sm90::TileProduct bf16[2];
  sm90::TileProduct f32[2];  // d in f32
  sm90::TileProduct wide_f32;  // bare, ranges of k; b contiguous along n
  sm90::TileProduct exponentials;  // b contiguous along k
  sm90::TileProduct tandem[2];          // wide tiles; terms without dropout as k steps, d in bf16
  sm90::TileProduct relay[2];           // likewise, tiles that are not wide
  sm90::TileProduct tandem_blocks[2];   // with lists of active blocks; terms without dropout, d in bf16
  sm90::TileProduct relay_blocks[2];    // likewise, tiles that are not wide
  sm90::TileProduct blocks_dropout[2];  // some term has dropout
  int tile, wide_tile;                  // columns of a tile; both have 128 rows
  int long_k;       // from this k on, the wide tile's better reuse outweighs an end that nothing hides
  int relay_ranks;  // from so many on, terms cost less as k steps than as multiply-adds in the epilogue
};

const TileKernels& tile_kernels(Arch arch) {
  static const TileKernels kSm90 = {{sm90::forward_bf16, sm90::backward_bf16},
                                    {sm90::forward_f32, sm90::backward_f32},
                                    sm90::backward_wide_f32,
                                    sm90::forward_exponentials,
                                    {sm90::tandem_forward, sm90::tandem_backward},
                                    {sm90::relay_forward, sm90::relay_backward},
                                    {sm90::tandem_columns, sm90::tandem_steps},
                                    {sm90::relay_columns, sm90::relay_steps},
                                    {sm90::relay_columns_dropout, sm90::relay_steps_dropout},
                                    128,
                                    256,
                                    4096,
                                    12};
  switch (arch) {
    case Arch::kSm90: return kSm90;
  }
  fail(PNB_ERROR_INTERNAL, "gemm: no kernels for this architecture");
}

constexpr int kMostRanges = 4;
constexpr int64_t kLeastRange = 2048;  // of k: of shorter ones a tile's end takes too large a part

// How much of the last wave of tiles' time is used: 1 when the tiles fill all multiprocessors every time.
double filled(const Product& p, int tile, int multiprocessors) {
  int64_t tiles = static_cast<int64_t>((p.m + 127) / 128) * ((p.n + tile - 1) / tile) * p.ranges;
  int64_t waves = (tiles + multiprocessors - 1) / multiprocessors;
  return static_cast<double>(tiles) / static_cast<double>(waves * multiprocessors);
}

// Whether the mask can be read and written 32 bits at a time.
bool mask_of_words(const Product& p) {
  const Epilogue& e = p.epilogue;
  return e.mask == nullptr ||
         ((reinterpret_cast<uintptr_t>(e.mask) | static_cast<uintptr_t>(e.mask_stride)) % 4 == 0 && p.epilogue_columns() % 32 == 0);
}

// Whether terms make up most of a product's end.
bool many_ranks(const Epilogue& e, int enough) {
  int ranks = 0;
  for (int t = 0; t < e.term_count; ++t) ranks += e.terms[t].rank;
  return ranks >= enough;
}

sm90::TileProduct tile_kernel(const Product& p, bool along_k, const Device& device) {
  const TileKernels& kernels = tile_kernels(device.arch);
  const Epilogue& e = p.epilogue;
  bool wide_fills = filled(p, kernels.wide_tile, device.multiprocessors) >= filled(p, kernels.tile, device.multiprocessors);
  if (p.gather != Gather::kNone) {
    // How many blocks a list has only the device knows; there is room for as many as it mostly has.
    if (e.dropout()) return kernels.blocks_dropout[!along_k];
    return wide_fills ? kernels.tandem_blocks[!along_k] : kernels.relay_blocks[!along_k];
  }
  bool long_k = p.k >= kernels.long_k;
  if (p.d_dtype == PNB_DTYPE_F32) {
    return long_k && wide_fills && !along_k && e.bare() ? kernels.wide_f32 : kernels.f32[!along_k];
  }
  if (!e.dropout() && mask_of_words(p)) {
    // Terms cost more in the other kernels' ends. Without any, where k is short, a residual takes what the tandem's tile gains.
    if (wide_fills && (e.term_count > 0 || long_k || p.residual.data == nullptr)) return kernels.tandem[!along_k];
    if (many_ranks(e, kernels.relay_ranks)) return kernels.relay[!along_k];
  }
  return kernels.bf16[!along_k];
}

// Strides of a dimension of size 1 say nothing: they become what a contiguous matrix would have.
Matrix matrix(const pnb_tensor& t) {
  Matrix x{t.data, t.stride[0], t.stride[1]};
  if (t.shape[1] == 1) x.column_stride = t.stride[0] == 1 && t.shape[0] > 1 ? t.shape[0] : 1;
  if (t.shape[0] == 1) x.row_stride = x.column_stride == 1 ? (t.shape[1] + 7) / 8 * 8 : 1;
  return x;
}

Matrix weight_matrix(const Weight& w, int32_t use) {
  void* data = const_cast<void*>(w.data);
  return use == PNB_WEIGHT_FORWARD ? Matrix{data, 1, w.row_stride} : Matrix{data, w.row_stride, 1};
}

LowRankTerm low_rank_term(const pnb_low_rank& term) {
  LowRankTerm t;
  t.h = static_cast<const float*>(term.h.data);
  t.h_stride = term.h.stride[0];
  t.b = static_cast<const float*>(term.b.data);
  t.b_column_stride = term.b.stride[0];
  t.b_rank_stride = term.b.stride[1];
  t.rank = static_cast<int32_t>(term.b.shape[1]);
  t.column = static_cast<int32_t>(term.column);
  t.columns = static_cast<int32_t>(term.b.shape[0]);
  t.scale = term.scale;
  t.dropout = DropoutParams(term.dropout);
  return t;
}

Blocks blocks_of(const pnb_block_list& given, const Weight& weight, int64_t m) {
  Blocks blocks;
  blocks.indices = static_cast<const int32_t*>(given.indices.data);
  blocks.stride = given.indices.stride[0];
  blocks.counts = static_cast<const int32_t*>(given.counts.data);
  blocks.capacity = static_cast<int32_t>(given.indices.shape[1]);
  blocks.size_bits = given.size == 32 ? 5 : given.size == 64 ? 6 : 7;
  blocks.rows_per_list = given.rows_per_list >= m ? INT32_MAX : static_cast<int32_t>(given.rows_per_list);
  blocks.neurons = static_cast<int32_t>(weight.out);
  return blocks;
}

Product product(const pnb_gemm_params& given) {
  Product p;
  p.m = static_cast<int32_t>(given.d.shape[0]);
  p.n = static_cast<int32_t>(given.d.shape[1]);
  p.k = static_cast<int32_t>(given.a.shape[1]);
  p.dtype = given.a.dtype;
  p.d_dtype = given.d.dtype;
  p.a = matrix(given.a);
  p.b = given.weight != nullptr ? weight_matrix(*static_cast<const Weight*>(given.weight), given.weight_use) : matrix(given.b);
  if (present(given.blocks.indices)) {
    p.gather = given.weight_use == PNB_WEIGHT_FORWARD ? Gather::kColumns : Gather::kSteps;
    p.blocks = blocks_of(given.blocks, *static_cast<const Weight*>(given.weight), p.m);
  }
  if (present(given.residual)) p.residual = matrix(given.residual);
  p.d = matrix(given.d);
  p.epilogue.kind = given.epilogue;
  p.epilogue.term_count = given.low_rank_count;
  for (int t = 0; t < given.low_rank_count; ++t) p.epilogue.terms[t] = low_rank_term(given.low_rank[t]);
  p.epilogue.bias = static_cast<const float*>(given.bias.data);
  if (present(given.relu_mask)) {
    p.epilogue.mask = static_cast<uint8_t*>(given.relu_mask.data);
    p.epilogue.mask_stride = given.relu_mask.stride[0];
    p.epilogue.mask_compact = p.gather == Gather::kColumns && given.relu_mask.shape[1] < p.blocks.neurons / 8;
  }
  return p;
}

// What the copy engine reads: lines of neighbouring elements that start at multiples of 16 bytes and do not overlap.
bool copyable(const void* data, int64_t line_stride, int64_t element_stride, int64_t line_length, int32_t dtype) {
  return element_stride == 1 && line_stride >= line_length && line_stride * dtype_size(dtype) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

bool rows_copyable(const Matrix& x, int64_t columns, int32_t dtype) {
  return copyable(x.data, x.row_stride, x.column_stride, columns, dtype);
}

bool columns_copyable(const Matrix& x, int64_t rows, int32_t dtype) {
  return copyable(x.data, x.column_stride, x.row_stride, rows, dtype);
}

// A copy out writes 16 bytes at a time, and what follows a row of d may be somebody else's.
bool written_by_copies(const Product& p) {
  return p.n * dtype_size(p.d_dtype) % 16 == 0 && rows_copyable(p.d, p.n, p.d_dtype) &&
         (p.residual.data == nullptr || rows_copyable(p.residual, p.n, p.d_dtype));
}

}  // namespace

void Gemm::run(const pnb_gemm_params& given) {
  if (given.d.shape[0] == 0 || given.d.shape[1] == 0) return;
  Product p = product(given);
  cudaStream_t stream = stream_of(given.stream);
  bool bf16_rows = p.dtype == PNB_DTYPE_BF16 && rows_copyable(p.a, p.k, p.dtype);
  // Of a list's direction the weight may have more than the product.
  bool along_k = p.gather != Gather::kSteps && columns_copyable(p.b, p.k, p.dtype);
  bool along_n = p.gather != Gather::kColumns && rows_copyable(p.b, p.n, p.dtype);
  if (p.m <= kSkinnyRows && bf16_rows && along_k && p.gather == Gather::kNone) return skinny_product(p, stream);

  bool by_tiles = bf16_rows && (along_k || along_n) && written_by_copies(p) &&
                  (p.gather == Gather::kNone || (p.d_dtype == PNB_DTYPE_BF16 && p.k > 0 && mask_of_words(p)));
  if (by_tiles) {
    return tile_kernel(p, along_k, device_)(p, device_.multiprocessors, stream);
  }
  plain_product(p, stream);
}

void Gemm::run(const pnb_gemm_params& given, int ranges) {
  Product p = product(given);
  p.ranges = ranges;
  tile_kernels(device_.arch).wide_f32(p, device_.multiprocessors, stream_of(given.stream));
}

int Gemm::ranges(int64_t m, int64_t n, int64_t k) const {
  const TileKernels& kernels = tile_kernels(device_.arch);
  Product p;
  p.m = static_cast<int32_t>(m), p.n = static_cast<int32_t>(n);
  int best = 1;
  double most = 0.0;
  for (p.ranges = 1; p.ranges <= kMostRanges && k >= p.ranges * kLeastRange; p.ranges *= 2) {
    double part = filled(p, kernels.wide_tile, device_.multiprocessors);
    if (part > most) best = p.ranges, most = part;
  }
  return best;
}

void Gemm::run(const pnb_gemm_params& given, const Exponentials& exponentials) {
  Product p = product(given);
  p.epilogue.exponentials = exponentials;
  tile_kernels(device_.arch).exponentials(p, device_.multiprocessors, stream_of(given.stream));
}

bool Gemm::exponentiates(const pnb_gemm_params& given) const {
  Product p = product(given);
  return p.m > kSkinnyRows && p.dtype == PNB_DTYPE_BF16 && p.d_dtype == PNB_DTYPE_BF16 && rows_copyable(p.a, p.k, p.dtype) &&
         columns_copyable(p.b, p.k, p.dtype) && written_by_copies(p);
}

uint64_t Gemm::workspace(const pnb_gemm_params&) { return 0; }

}  // namespace pnb::cuda
