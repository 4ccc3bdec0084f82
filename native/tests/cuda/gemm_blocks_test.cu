// Matrix products over lists of active blocks against double: random lists for all rows or for groups of them, counts of 0,
// 1, some and all, every epilogue, poison wherever the lists do not lead. An argument limits the number of random cases.
#include "cuda/gemm_case.cuh"

using namespace test;

namespace {

enum Counts { kNone, kOne, kOdd, kAll, kRandom };

struct Case {
  int64_t m, neurons, h, size, capacity, rows_per_list;
  bool forward;
  int32_t dtype = PNB_DTYPE_BF16, d_dtype = PNB_DTYPE_BF16;
  Counts counts = kRandom;
  int32_t epilogue = PNB_EPILOGUE_NONE;
  bool bias = false, mask = false, residual = false;
  int64_t pad = 0;
  std::vector<Term> terms;
  bool compact_mask = false;  // by d's columns, where these are fewer than neurons
  bool few = false;  // on two multiprocessors

  int64_t lists() const { return (m + rows_per_list - 1) / rows_per_list; }
  int64_t compact() const { return capacity * size; }
  int64_t n() const { return forward ? compact() : h; }         // columns of d
  int64_t columns() const { return forward ? neurons : h; }     // of bias and terms
  int64_t mask_columns() const { return compact_mask ? compact() : columns(); }
  int64_t sums_of() const { return forward ? h : neurons; }

  std::string text() const {
    char buffer[320];
    std::snprintf(buffer, sizeof buffer,
                  "gemm %s m %lld neurons %lld h %lld blocks of %lld room for %lld lists of %lld rows counts %d dtype %d d %d "
                  "epilogue %d bias %d mask %d%s residual %d pad %lld",
                  forward ? "columns" : "steps", static_cast<long long>(m), static_cast<long long>(neurons),
                  static_cast<long long>(h), static_cast<long long>(size), static_cast<long long>(capacity),
                  static_cast<long long>(rows_per_list), counts, dtype, d_dtype, epilogue, bias, mask,
                  compact_mask ? " compact" : "", residual,
                  static_cast<long long>(pad));
    std::string text = buffer;
    for (const Term& term : terms) text += term.text();
    return few ? text + " on two multiprocessors" : text;
  }
};

// Lists on the device; what follows each is poisoned.
struct Lists {
  std::vector<std::vector<int64_t>> blocks;
  Tensor indices, counts;

  explicit Lists(const Case& c)
      : indices(PNB_DTYPE_I32, {c.lists(), c.capacity + 3}, 0.0), counts(PNB_DTYPE_I32, {c.lists()}, 0.0) {
    std::vector<double> index_values(indices.size(), 0x7f7f7f7f), count_values;
    for (int64_t l = 0; l < c.lists(); ++l) {
      int64_t most = c.capacity, count = 0;
      if (c.counts == kOne) count = std::min<int64_t>(1, most);
      else if (c.counts == kOdd) count = most % 2 == 1 ? most : most - 1;
      else if (c.counts == kAll) count = most;
      else if (c.counts == kRandom) count = static_cast<int64_t>(generator()() % (most + 1));
      std::vector<int64_t> all(c.neurons / c.size);
      for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
      std::shuffle(all.begin(), all.end(), generator());
      all.resize(count);
      std::sort(all.begin(), all.end());
      for (int64_t i = 0; i < count; ++i) index_values[l * (c.capacity + 3) + i] = static_cast<double>(all[i]);
      count_values.push_back(static_cast<double>(count));
      blocks.push_back(all);
    }
    indices.set(index_values);
    counts.set(count_values);
  }

  pnb_block_list of(const Case& c) const {
    pnb_block_list list{};
    list.indices = indices.columns(0, c.capacity);
    list.counts = counts.t;
    list.size = static_cast<int32_t>(c.size);
    list.rows_per_list = c.rows_per_list;
    return list;
  }

  // The neuron behind each compact column of a row's list.
  std::vector<int64_t> neurons(const Case& c, int64_t row) const {
    std::vector<int64_t> neurons;
    for (int64_t block : blocks[row / c.rows_per_list]) {
      for (int64_t j = 0; j < c.size; ++j) neurons.push_back(block * c.size + j);
    }
    return neurons;
  }
};

void poison_nan(View& view, int64_t row, int64_t from) {
  std::vector<uint16_t> bf16(view.columns - from, 0x7fc0);
  std::vector<float> f32(view.columns - from, NAN);
  bool narrow = view.buffer.t.dtype == PNB_DTYPE_BF16;
  int64_t bytes = element_bytes(view.buffer.t.dtype);
  cuda(cudaMemcpy(static_cast<char*>(view.t.data) + (row * view.stride + from) * bytes,
                  narrow ? static_cast<const void*>(bf16.data()) : f32.data(), (view.columns - from) * bytes,
                  cudaMemcpyHostToDevice));
}

void run(const Case& c) {
  std::string what = c.text();
  FrozenWeight weight(c.neurons, c.h, c.dtype);
  Lists lists(c);
  View a(c.dtype, c.m, c.forward ? c.h : c.compact(), c.pad, 1.0);
  std::vector<double> a_values = a.values();
  if (!c.forward) {
    std::vector<double> full(c.m * c.neurons);
    for (int64_t i = 0; i < c.m; ++i) {
      std::vector<int64_t> neurons = lists.neurons(c, i);
      for (size_t j = 0; j < neurons.size(); ++j) {
        full[i * c.neurons + neurons[j]] = a_values[i * c.compact() + static_cast<int64_t>(j)];
      }
      if (static_cast<int64_t>(neurons.size()) < c.compact()) poison_nan(a, i, static_cast<int64_t>(neurons.size()));
    }
    a_values = full;
  }
  Tensor bias(PNB_DTYPE_F32, {c.columns()});
  View residual(c.d_dtype, c.m, c.n(), c.pad, 1.0), d(c.d_dtype, c.m, c.n(), c.pad, 0.0);
  View mask(PNB_DTYPE_U8, c.m, (c.mask_columns() + 7) / 8, c.pad, 0.0);
  if (c.epilogue == PNB_EPILOGUE_DRELU) {
    std::vector<double> bytes(mask.buffer.size());
    for (double& byte : bytes) byte = generator()() % 256;
    mask.buffer.set(bytes);
  }
  std::vector<char> mask_before = mask.buffer.bits();
  Terms terms(c.terms, c.m);
  pnb_gemm_params p{};
  p.struct_size = sizeof p;
  p.a = a.t;
  p.weight = weight.weight.get();
  p.weight_use = c.forward ? PNB_WEIGHT_FORWARD : PNB_WEIGHT_BACKWARD;
  p.epilogue = c.epilogue;
  p.blocks = lists.of(c);
  terms.set(p);
  if (c.bias) p.bias = bias.t;
  if (c.mask) p.relu_mask = mask.t;
  if (c.residual) p.residual = residual.t;
  p.d = d.t;
  Workspace workspace(backend().gemm_workspace(p));
  p.workspace = workspace.w;
  ok(what, [&] { multiply(p, c.few); });
  cuda(cudaDeviceSynchronize(), what.c_str());

  std::vector<double> w = c.forward ? transposed(weight.values, c.neurons, c.h) : weight.values;
  std::vector<double> full = product_in_double(a_values, w, c.m, c.columns(), c.sums_of());
  terms.add(full, c.columns());
  std::vector<double> bias_values = bias.values(), residual_values = residual.values(), found = d.values(), expected, compared;
  std::vector<char> mask_bytes = mask.buffer.bits(), d_bits = d.buffer.bits();
  double unsure = 4e-6 * static_cast<double>(c.sums_of() + 64);
  int64_t wrong_bits = 0, touched = 0;
  for (int64_t i = 0; i < c.m; ++i) {
    std::vector<int64_t> columns = lists.neurons(c, i);
    if (!c.forward) {
      columns.resize(c.h);
      for (int64_t j = 0; j < c.h; ++j) columns[j] = j;
    }
    std::vector<bool> listed(c.mask_columns());
    for (size_t j = 0; j < columns.size(); ++j) {
      int64_t column = columns[j], place = c.compact_mask ? static_cast<int64_t>(j) : column;
      listed[place] = true;
      double value = full[i * c.columns() + column] + (c.bias ? bias_values[column] : 0.0);
      bool bit = (mask_bytes[i * mask.stride + place / 8] >> (place % 8)) & 1;
      if (c.epilogue == PNB_EPILOGUE_RELU) {
        wrong_bits += c.mask && std::fabs(value) > unsure && bit != (value > 0);
        value = std::max(value, 0.0);
      } else if (c.epilogue == PNB_EPILOGUE_DRELU && !bit) {
        value = 0;
      }
      if (c.residual) value += residual_values[i * c.n() + static_cast<int64_t>(j)];
      expected.push_back(value);
      compared.push_back(found[i * c.n() + static_cast<int64_t>(j)]);
    }
    int64_t bytes = element_bytes(c.d_dtype);
    for (int64_t b = (i * d.stride + static_cast<int64_t>(columns.size())) * bytes; b < (i + 1) * d.stride * bytes; ++b) {
      touched += d_bits[b] != 0x7f;
    }
    for (int64_t j = 0; j < mask.stride; ++j) {
      bool written = c.epilogue == PNB_EPILOGUE_RELU && c.mask && j * 8 < c.mask_columns() && listed[j * 8];
      wrong_bits += !written && mask_bytes[i * mask.stride + j] != mask_before[i * mask.stride + j];
    }
  }
  expect(wrong_bits == 0, what + ": " + std::to_string(wrong_bits) + " wrong mask bits or bytes");
  expect(touched == 0, what + ": " + std::to_string(touched) + " bytes of d written past the lists");
  if (expected.empty()) return;
  close(compared, expected, 2 * rounding_error(expected, c.d_dtype) + 2e-6 + 1e-9 * static_cast<double>(c.sums_of()), what);
  elements_close(compared, expected, c.forward ? 1 : c.n(), c.sums_of(), c.d_dtype, what);

  ok(what, [&] { multiply(p, c.few); });
  expect(d.buffer.bits() == d_bits, what + ": other bits the second time");

  // A list of all blocks is no list.
  bool full_lists = c.capacity * c.size == c.neurons;
  for (const auto& list : lists.blocks) full_lists = full_lists && static_cast<int64_t>(list.size()) == c.capacity;
  if (!full_lists) return;
  p.blocks = {};
  ok(what, [&] { multiply(p, c.few); });
  std::vector<double> dense = d.values(), sparse;
  for (int64_t i = 0; i < c.m * c.n(); ++i) sparse.push_back(found[i]);
  elements_close(sparse, dense, c.n(), 0, c.d_dtype, what + " beside no list", 2.0);
}

Case random_case() {
  Case c;
  c.size = one_of<int64_t>({32, 64, 128});
  int64_t blocks = 1 + static_cast<int64_t>(generator()() % (one_of({4, 12}) * 128 / c.size));
  c.neurons = blocks * c.size;
  c.capacity = one_of({true, false}) ? blocks : 1 + static_cast<int64_t>(generator()() % blocks);
  c.m = one_of<int64_t>({1, 7, 64, 128, 129, 256, 300, 384, 600, 700});
  c.rows_per_list = one_of<int64_t>({c.m, c.m + 5, 128, 256, 256, 384});
  c.h = one_of<int64_t>({8, 64, 72, 100, 128, 136, 256, 328});
  c.forward = one_of({false, true});
  c.dtype = one_of({PNB_DTYPE_F32, PNB_DTYPE_BF16, PNB_DTYPE_BF16, PNB_DTYPE_BF16, PNB_DTYPE_BF16, PNB_DTYPE_BF16});
  c.d_dtype = one_of<int32_t>({PNB_DTYPE_F32, c.dtype, c.dtype, c.dtype, c.dtype});
  c.counts = one_of({kNone, kOne, kOdd, kAll, kAll, kRandom, kRandom, kRandom});
  c.epilogue = one_of({PNB_EPILOGUE_NONE, PNB_EPILOGUE_RELU, PNB_EPILOGUE_DRELU});
  c.bias = one_of({false, true});
  c.mask = c.epilogue == PNB_EPILOGUE_DRELU || (c.epilogue == PNB_EPILOGUE_RELU && one_of({false, true, true}));
  c.residual = !c.forward && one_of({false, true});
  c.pad = one_of<int64_t>({0, 0, 3, 8, 16, 128});
  int64_t count = one_of<int64_t>({0, 0, 1, 1, 2, 3});
  for (int64_t t = 0; t < count; ++t) c.terms.push_back(random_term(c.columns()));
  c.few = one_of({false, true});
  return c;
}

// What fc1 and the gradient of its output make of masks that lie as d's columns do: in whole tiles and parts of one, at places
// that sixteens of bytes fit and not, by kernels with and without the copy engine.
void masks_are_as_compact_as_what_they_mask() {
  for (int64_t size : {32, 64, 128}) {
    for (Counts counts : {kNone, kOne, kOdd, kAll, kRandom}) {
      for (int64_t pad : {0, 5, 16}) {
        int64_t neurons = 1280;
        Case c{one_of<int64_t>({130, 600, 1000}), neurons, 136, size, neurons / size - one_of<int64_t>({1, 2, 3}), 0, true};
        c.rows_per_list = one_of<int64_t>({c.m, 128, 256});
        c.counts = counts;
        c.compact_mask = c.mask = true;
        c.pad = pad;
        c.bias = one_of({false, true});
        c.d_dtype = one_of<int32_t>({PNB_DTYPE_BF16, PNB_DTYPE_BF16, PNB_DTYPE_F32});
        if (one_of({false, true})) c.terms.push_back(random_term(neurons));
        c.few = one_of({false, true});
        for (int32_t epilogue : {PNB_EPILOGUE_RELU, PNB_EPILOGUE_DRELU}) {
          c.epilogue = epilogue;
          run(c);
        }
      }
    }
  }
}

// Many tiles, counts that change between replays of one graph: what a step does.
void counts_are_read_when_a_graph_runs() {
  Case c{512, 2048, 256, 128, 16, 512, true};
  c.counts = kAll;
  Lists lists(c);
  FrozenWeight weight(c.neurons, c.h, c.dtype);
  View a(c.dtype, c.m, c.h, 0, 1.0), d(c.dtype, c.m, c.compact(), 0, 0.0);
  pnb_gemm_params p{};
  p.struct_size = sizeof p;
  p.a = a.t;
  p.weight = weight.weight.get();
  p.weight_use = PNB_WEIGHT_FORWARD;
  p.blocks = lists.of(c);
  p.d = d.t;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  cuda(cudaStreamCreate(&stream));
  p.stream = stream;
  ok("a product under capture", [&] { backend().gemm(p); });
  cuda(cudaStreamSynchronize(stream));
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  ok("a product under capture", [&] { backend().gemm(p); });
  cuda(cudaStreamEndCapture(stream, &graph));
  cuda(cudaGraphInstantiate(&replay, graph, 0));
  for (int64_t count : {16, 3, 0}) {
    lists.counts.set({static_cast<double>(count)});
    cuda(cudaMemset(d.t.data, 0x7f, c.m * c.compact() * 2));
    cuda(cudaGraphLaunch(replay, stream));
    cuda(cudaStreamSynchronize(stream), "a replayed product");
    std::vector<char> bits = d.buffer.bits();
    int64_t written = 0;
    for (int64_t e = 0; e < c.m * c.compact(); ++e) written += bits[2 * e] != 0x7f || bits[2 * e + 1] != 0x7f;
    expect(written == c.m * count * c.size,
           "expected " + std::to_string(c.m * count * c.size) + " elements of d written, found " + std::to_string(written));
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace

int main(int argc, char** argv) {
  backend();
  auto both = [](Case c) {
    run(c);
    c.m = 600;
    c.few = true;
    run(c);
  };
  if (argc < 2) {
    // An MLP's four products, larger than a wave of tiles, and lists of groups of rows.
    for (int64_t size : {32, 64, 128}) {
      for (int64_t rows : {2000, 256}) {
        for (Counts counts : {kRandom, kAll}) {
          Case fc1{2000, 2048, 512, size, 2048 / size, rows, true};
          fc1.counts = counts;
          fc1.epilogue = PNB_EPILOGUE_RELU;
          fc1.bias = fc1.mask = true;
          both(fc1);
          Case fc2{2000, 2048, 1024, size, 2048 / size, rows, false};
          fc2.counts = counts;
          fc2.bias = fc2.residual = true;
          fc2.terms = {{8, 0, 1024, false, 0.0f}};
          both(fc2);
          Case dh{2000, 2048, 512, size, 2048 / size - 1, rows, true};
          dh.counts = counts;
          dh.epilogue = PNB_EPILOGUE_DRELU;
          dh.mask = true;
          dh.terms = {{8, 0, 2048, true, 0.1f}};
          run(dh);
          dh.terms = {};
          both(dh);
          Case dx{2000, 2048, 1024, size, 2048 / size, rows, false};
          dx.counts = counts;
          dx.terms = {{8, 0, 1024, true, 0.0f}, {4, 0, 1024, true, 0.0f}};
          both(dx);
        }
      }
    }
    // Tiles of no, few and an odd number of steps, one after another; tiles that lists end in the middle of.
    for (int64_t size : {32, 64, 128}) {
      for (int64_t rows : {700, 256}) {
        for (Counts counts : {kNone, kOne, kOdd}) {
          Case up{700, 1152, 72, size, 1152 / size, rows, true};
          up.counts = counts;
          up.epilogue = PNB_EPILOGUE_DRELU;
          up.mask = true;
          up.few = true;
          run(up);
          Case down{700, 1152, 520, size, 1152 / size, rows, false};
          down.counts = counts;
          down.residual = true;
          down.few = true;
          run(down);
        }
      }
    }
  }
  int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  for (int i = 0; i < cases; ++i) run(random_case());
  masks_are_as_compact_as_what_they_mask();
  counts_are_read_when_a_graph_runs();
  return finish("gemm_blocks");
}
