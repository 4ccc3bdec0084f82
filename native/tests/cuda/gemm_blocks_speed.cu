// Times an MLP's four products over lists of active blocks, with masks as compact as the activation, in turn with the same products
// over all blocks:
//   cuda_gemm_blocks_speed [hidden ffn [tokens ...]]
// One line a setting: block size, kept fraction, rows that share a list, each product's ms, the four's, and their ratio to dense.
#include "cuda/gemm_timing.cuh"

using namespace test;

namespace {

struct Setting {
  int64_t size;  // 0: dense
  double kept;
  int64_t rows;
};

// A list for every group of rows, random blocks of all.
struct Lists {
  Tensor indices, counts;

  Lists(int64_t blocks, int64_t kept, int64_t lists)
      : indices(PNB_DTYPE_I32, {lists, kept}, 0.0), counts(PNB_DTYPE_I32, {lists}, 0.0) {
    std::vector<double> index_values;
    for (int64_t l = 0; l < lists; ++l) {
      std::vector<double> all(blocks);
      for (int64_t i = 0; i < blocks; ++i) all[i] = static_cast<double>(i);
      std::shuffle(all.begin(), all.end(), generator());
      std::sort(all.begin(), all.begin() + kept);
      index_values.insert(index_values.end(), all.begin(), all.begin() + kept);
    }
    indices.set(index_values);
    counts.set(std::vector<double>(lists, static_cast<double>(kept)));
  }
};

void time_mlp(int64_t hidden, int64_t ffn, int64_t m) {
  FrozenWeights fc1(ffn, hidden), fc2(ffn, hidden);
  auto x = activations(m, hidden), y = activations(m, hidden), hidden_in = activations(m, ffn), hidden_out = activations(m, ffn);
  auto mask = activations(m, ffn / 16);
  Tensor bias(PNB_DTYPE_F32, {ffn});
  const Setting settings[] = {{0, 1.0, m},    {128, 1.0, m},  {128, .5, m}, {128, .25, m}, {64, .5, m},
                              {64, .25, m},   {32, 1.0, m},   {32, .5, m},  {32, .25, m},  {128, .25, 256},
                              {32, .25, 256}, {128, .125, m}, {32, .19, m}};
  std::vector<std::unique_ptr<Lists>> lists;
  std::vector<std::unique_ptr<Timed>> graphs[4];
  for (const Setting& s : settings) {
    int64_t compact = ffn;
    std::vector<pnb_block_list> blocks(kCopies);
    if (s.size > 0) {
      int64_t kept = std::llround(s.kept * static_cast<double>(ffn / s.size));
      compact = kept * s.size;
      for (pnb_block_list& list : blocks) {
        lists.push_back(std::make_unique<Lists>(ffn / s.size, kept, (m + s.rows - 1) / s.rows));
        list.indices = lists.back()->indices.t;
        list.counts = lists.back()->counts.t;
        list.size = static_cast<int32_t>(s.size);
        list.rows_per_list = s.rows;
      }
    }
    auto narrowed = [&](const Tensor& t) { return pnb_tensor{t.t.data, PNB_DTYPE_BF16, 2, {m, compact}, {compact, 1}}; };
    for (int product = 0; product < 4; ++product) {
      graphs[product].push_back(std::make_unique<Timed>([&](cudaStream_t stream, int i) {
        pnb_gemm_params p{};
        p.struct_size = sizeof p;
        p.stream = stream;
        bool to_neurons = product == 0 || product == 2;
        p.weight = (product == 0 || product == 3 ? fc1 : fc2).weights[i].get();
        p.weight_use = to_neurons ? PNB_WEIGHT_FORWARD : PNB_WEIGHT_BACKWARD;
        p.a = to_neurons ? x->t : narrowed(*hidden_in);
        p.d = to_neurons ? narrowed(*hidden_out) : y->t;
        if (product < 2) p.bias = {bias.t.data, PNB_DTYPE_F32, 1, {to_neurons ? ffn : hidden}, {1}};
        if (product == 1) p.residual = x->t;
        if (to_neurons) {
          p.epilogue = product == 0 ? PNB_EPILOGUE_RELU : PNB_EPILOGUE_DRELU;
          p.relu_mask = {mask->t.data, PNB_DTYPE_U8, 2, {m, compact / 8}, {compact / 8, 1}};
        }
        if (s.size > 0) p.blocks = blocks[i];
        ok("an MLP's product", [&] { backend().gemm(p); });
      }));
    }
  }
  std::printf("h %lld ffn %lld tokens %lld\n%5s %5s %5s %8s %8s %8s %8s %8s %6s\n", static_cast<long long>(hidden),
              static_cast<long long>(ffn), static_cast<long long>(m), "block", "kept", "rows", "fc1", "fc2", "d fc2", "d fc1",
              "all", "ratio");
  for (auto& product : graphs) {
    std::vector<Timed*> all;
    for (auto& graph : product) all.push_back(graph.get());
    alternate(all);
  }
  double dense = 0;
  for (size_t s = 0; s < std::size(settings); ++s) {
    double sum = 0;
    std::printf("%5lld %5.3f %5lld", static_cast<long long>(settings[s].size), settings[s].kept,
                static_cast<long long>(settings[s].rows));
    for (auto& product : graphs) {
      std::printf(" %8.4f", product[s]->milliseconds());
      sum += product[s]->milliseconds();
    }
    if (s == 0) dense = sum;
    std::printf(" %8.4f %6.3f\n", sum, sum / dense);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  int64_t hidden = argc > 2 ? std::atoll(argv[1]) : 2048;
  int64_t ffn = argc > 2 ? std::atoll(argv[2]) : 8192;
  std::vector<int64_t> tokens;
  for (int i = 3; i < argc; ++i) tokens.push_back(std::atoll(argv[i]));
  if (tokens.empty()) tokens = {4096};
  backend();
  for (int64_t m : tokens) time_mlp(hidden, ffn, m);
  return finish("gemm_blocks_speed");
}
