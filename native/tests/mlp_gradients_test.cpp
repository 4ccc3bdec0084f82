// A two-layer MLP under a fixed mask of blocks, y = relu(x W1^T + b1 + lora) W2 + b2 + lora, with adapters on both layers:
// everything its backward pass says (dx and the adapters' gradients) against central differences of its forward pass, both
// through the C ABI and in f32. Only listed neurons take part, and the mask does not move with the weights.
#include "block_tensors.h"

using namespace test;

namespace {

struct Workspace {
  std::vector<char> bytes;
  pnb_workspace at(uint64_t count) {
    bytes.resize(count + 256);
    return {bytes.data() + (256 - reinterpret_cast<uintptr_t>(bytes.data()) % 256), count};
  }
};

constexpr int64_t kRank = 3;
constexpr float kScaling = 1.5f;

pnb_tensor transposed(const Tensor& t) { return {t.t.data, t.t.dtype, 2, {t.t.shape[1], t.t.shape[0]}, {1, t.t.shape[1]}}; }

struct Adapter {
  Tensor a, b, h, dh, da, db;

  Adapter(int64_t m, int64_t in, int64_t out)
      : a(PNB_DTYPE_F32, {kRank, in}, 0.3), b(PNB_DTYPE_F32, {out, kRank}, 0.3), h(PNB_DTYPE_F32, {m, kRank}, 0.0),
        dh(PNB_DTYPE_F32, {m, kRank}, 0.0), da(PNB_DTYPE_F32, {kRank, in}, 0.0), db(PNB_DTYPE_F32, {out, kRank}, 0.0) {
    std::fill(da.bytes.begin(), da.bytes.end(), 0);
    std::fill(db.bytes.begin(), db.bytes.end(), 0);
  }
};

class Mlp {
 public:
  Mlp(pnb_context* context, int64_t m, int64_t hidden, const Blocks& blocks)
      : blocks_(blocks), m_(m), h_(hidden), n_(blocks.neurons), context_(context), w1_(context, PNB_DTYPE_F32, n_, h_),
        w2_(context, PNB_DTYPE_F32, n_, h_), b1_(PNB_DTYPE_F32, {n_}), b2_(PNB_DTYPE_F32, {h_}),
        mask_(PNB_DTYPE_U8, {m, n_ / 8}, 0.0), hidden_(PNB_DTYPE_F32, m, blocks), d_hidden_(PNB_DTYPE_F32, m, blocks),
        y_(PNB_DTYPE_F32, {m, h_}, 0.0), x(PNB_DTYPE_F32, {m, h_}), dy(PNB_DTYPE_F32, {m, h_}), dx(PNB_DTYPE_F32, {m, h_}, 0.0),
        fc1(m, h_, n_), fc2(m, n_, h_) {
    // A step across the kink would count half a slope: the bias keeps every neuron well on one of its sides, two of three above.
    for (int64_t j = 0; j < n_; ++j) b1_.set(j, j % 3 == 0 ? -60.0 : 60.0);
  }

  double loss() {
    project(x.t, fc1, {});
    pnb_low_rank up1{fc1.h.t, fc1.b.t, 0, kScaling, 0, {}}, up2{fc2.h.t, fc2.b.t, 0, kScaling, 0, {}};
    auto p = product(x.t, w1_, PNB_WEIGHT_FORWARD, hidden_.t, up1);
    p.bias = b1_.t, p.epilogue = PNB_EPILOGUE_RELU, p.relu_mask = mask_.t;
    ok(pnb_gemm(context_, &p), "fc1");
    project(hidden_.t, fc2, blocks_.list());
    auto q = product(hidden_.t, w2_, PNB_WEIGHT_BACKWARD, y_.t, up2);
    q.bias = b2_.t;
    ok(pnb_gemm(context_, &q), "fc2");
    double sum = 0;
    for (int64_t i = 0; i < m_ * h_; ++i) sum += y_.at(i) * dy.at(i);
    return sum;
  }

  void backward() {
    gradients(dy.t, {}, hidden_.t, blocks_.list(), fc2);
    pnb_low_rank down2{fc2.dh.t, transposed(fc2.a), 0, 1.0f, 0, {}}, down1{fc1.dh.t, transposed(fc1.a), 0, 1.0f, 0, {}};
    auto p = product(dy.t, w2_, PNB_WEIGHT_FORWARD, d_hidden_.t, down2);
    p.epilogue = PNB_EPILOGUE_DRELU, p.relu_mask = mask_.t;
    ok(pnb_gemm(context_, &p), "dH");
    gradients(d_hidden_.t, blocks_.list(), x.t, {}, fc1);
    auto q = product(d_hidden_.t, w1_, PNB_WEIGHT_BACKWARD, dx.t, down1);
    ok(pnb_gemm(context_, &q), "dX");
  }

 private:
  pnb_gemm_params product(const pnb_tensor& a, const Packed& w, int32_t use, const pnb_tensor& d, const pnb_low_rank& term) {
    auto p = params<pnb_gemm_params>();
    p.a = a, p.weight = w.weight, p.weight_use = use, p.d = d, p.low_rank = &term, p.low_rank_count = 1, p.blocks = blocks_.list();
    return p;
  }

  void project(const pnb_tensor& from, Adapter& adapter, const pnb_block_list& from_blocks) {
    auto p = params<pnb_lora_project_params>();
    p.x = from, p.a = adapter.a.t, p.h = adapter.h.t, p.x_blocks = from_blocks;
    ok(pnb_lora_project(context_, &p), "project");
  }

  void gradients(const pnb_tensor& d, const pnb_block_list& d_blocks, const pnb_tensor& from, const pnb_block_list& from_blocks,
                 Adapter& adapter) {
    auto p = params<pnb_lora_gradients_params>();
    p.scaling = kScaling, p.dy = d, p.dy_blocks = d_blocks, p.x = from, p.x_blocks = from_blocks;
    p.h = adapter.h.t, p.a = adapter.a.t, p.b = adapter.b.t, p.dh = adapter.dh.t, p.da = adapter.da.t, p.db = adapter.db.t;
    uint64_t bytes = 0;
    ok(pnb_lora_gradients_workspace(context_, &p, &bytes), "gradients");
    p.workspace = workspace_.at(bytes);
    ok(pnb_lora_gradients(context_, &p), "gradients");
  }

  const Blocks& blocks_;
  int64_t m_, h_, n_;
  pnb_context* context_;
  Packed w1_, w2_;  // W1 [n, h], and fc2's weight transposed
  Tensor b1_, b2_, mask_;
  Compact hidden_, d_hidden_;
  Tensor y_;
  Workspace workspace_;

 public:
  Tensor x, dy, dx;
  Adapter fc1, fc2;
};

// Holds `gradient` to differences of the loss along random directions and along single elements.
void differences(Mlp& mlp, Tensor& operand, const Tensor& gradient, double step, double tolerance, const std::string& what) {
  std::vector<double> at = operand.values(), stated = gradient.values();
  double norm = 0;
  for (double value : stated) norm += value * value;
  double typical = std::sqrt(norm / stated.size());
  expect(typical > 0, what + ": expected a gradient that is not zero");
  const int kSingle = 10;
  for (int trial = 0; trial < kSingle + 3; ++trial) {
    std::vector<double> direction(at.size());
    if (trial < kSingle) {
      direction[generator()() % at.size()] = 1.0;
    } else {
      std::normal_distribution<double> normal;
      for (double& value : direction) value = normal(generator()) / std::sqrt(static_cast<double>(at.size()));
    }
    std::vector<double> up(at.size());
    for (size_t i = 0; i < at.size(); ++i) operand.set(i, at[i] + step * direction[i]);
    up = operand.values();
    double high = mlp.loss();
    for (size_t i = 0; i < at.size(); ++i) operand.set(i, at[i] - step * direction[i]);
    double low = mlp.loss();
    double expected = 0, length = 0;
    for (size_t i = 0; i < at.size(); ++i) {  // what was really added, in f32
      double moved = (up[i] - operand.at(i)) / (2 * step);
      expected += stated[i] * moved;
      length += moved * moved;
      operand.set(i, at[i]);
    }
    double measured = (high - low) / (2 * step);
    double error = std::fabs(measured - expected) / (typical * std::sqrt(length));
    char text[200];
    std::snprintf(text, sizeof text, ": direction %d, gradient says %.7g, differences say %.7g: error %.2g, allowed %.2g", trial,
                  expected, measured, error, tolerance);
    expect(error <= tolerance, what + text);
  }
}

void run(pnb_context* context, int64_t m, int64_t h, const Blocks& blocks) {
  std::string what = "mlp m " + std::to_string(m) + " h " + std::to_string(h) + blocks.text();
  Mlp mlp(context, m, h, blocks);
  mlp.loss();
  mlp.backward();
  // Within a side of every kink the loss is a polynomial of second degree in x and each factor: the step may be wide.
  differences(mlp, mlp.x, mlp.dx, 0.25, 1e-3, what + " dx");
  differences(mlp, mlp.fc1.a, mlp.fc1.da, 0.25, 1e-3, what + " fc1 dA");
  differences(mlp, mlp.fc1.b, mlp.fc1.db, 0.25, 1e-3, what + " fc1 dB");
  differences(mlp, mlp.fc2.a, mlp.fc2.da, 0.25, 1e-3, what + " fc2 dA");
  differences(mlp, mlp.fc2.b, mlp.fc2.db, 0.25, 1e-3, what + " fc2 dB");
}

}  // namespace

int main() {
  pnb_context* context = test::context();
  for (int64_t size : {32, 64, 128}) {
    int32_t all = static_cast<int32_t>(256 / size);
    run(context, 21, 40, Blocks(size, 256, all, 21, {(all + 1) / 2}));
    run(context, 150, 24, Blocks(size, 256, all, 128, {1, all}));
    run(context, 150, 24, Blocks(size, 256, all - 1, 128, {0, all - 1}));
  }
  pnb_context_destroy(context);
  return finish("mlp_gradients_test");
}
