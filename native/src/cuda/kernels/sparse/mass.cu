#include "cuda/kernels/columns.cuh"
#include "cuda/kernels/elements.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/sparse/sparse.h"

// Sums over a list's rows. The blocks of a cluster share out the rows of some hundred neurons; the first of them adds up what
// all found, in the order of the cluster, so that equal inputs give equal bits. Neurons' sums over several lists pass through
// the workspace and a second kernel.

namespace pnb::cuda {

namespace {

namespace cg = cooperative_groups;

struct Mass {
  const void* data;
  int64_t stride;
  const float* norms;           // or NULL
  const int32_t* valid_rows;    // or NULL
  int64_t m, n, rows_per_list;
  int block_size;
  float* block_mass;            // or NULL
  float* neuron_mass;           // +=, or NULL; so is the next
  float* neuron_fired;
  float* list_mass;             // [lists, n]: =, or NULL; so is the next
  float* list_fired;
};

// The rows of this block: an equal share of those of its list that are valid.
struct Rows {
  int64_t first, end;

  __device__ explicit Rows(const Mass& p) {
    int64_t valid = p.valid_rows == nullptr ? p.m : min(p.m, static_cast<int64_t>(max(0, *p.valid_rows)));
    int64_t list_first = blockIdx.z * p.rows_per_list;
    int64_t list_end = min(valid, list_first + p.rows_per_list);
    int64_t share = ceil_div(min(p.rows_per_list, p.m - list_first), gridDim.x);
    first = list_first + blockIdx.x * share;
    end = min(list_end, first + share);
  }
};

// found[0] is the sum of activations and found[1] the number of rows, of the block's rows and kColumns neurons from `first` on.
template <int kColumns>
__device__ void finish(const Mass& p, int64_t first, float (&found)[2][kColumns]) {
  __shared__ float values[kColumns];
  cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  if (cluster.block_rank() == 0) {
    for (int j = threadIdx.x; j < kColumns; j += blockDim.x) {
      int64_t neuron = first + j;
      values[j] = 0.0f;
      if (neuron >= p.n) continue;
      float mass = 0.0f, fired = 0.0f;
      for (unsigned other = 0; other < cluster.num_blocks(); ++other) {
        mass += *cluster.map_shared_rank(&found[0][j], other);
        fired += *cluster.map_shared_rank(&found[1][j], other);
      }
      if (p.norms != nullptr) mass *= p.norms[neuron];
      values[j] = mass;
      if (p.neuron_mass != nullptr) p.neuron_mass[neuron] += mass;
      if (p.neuron_fired != nullptr) p.neuron_fired[neuron] += fired;
      if (p.list_mass != nullptr) {
        p.list_mass[blockIdx.z * p.n + neuron] = mass;
        p.list_fired[blockIdx.z * p.n + neuron] = fired;
      }
    }
    __syncthreads();
    int lane = threadIdx.x % kWarp;
    for (int block = threadIdx.x / kWarp; p.block_mass != nullptr && block < kColumns / p.block_size; block += blockDim.x / kWarp) {
      if (first + block * p.block_size >= p.n) break;
      float sum = 0.0f;
      for (int j = lane; j < p.block_size; j += kWarp) sum += values[block * p.block_size + j];
      sum = warp_combine(sum, [](float a, float b) { return a + b; });
      if (lane == 0) p.block_mass[(blockIdx.z * p.n + first) / p.block_size + block] = sum;
    }
  }
  cluster.sync();  // before a block ends, the first has read
}

constexpr int kValues = 8;        // neighbours of a row that a thread takes
constexpr int kSideBySide = 16;   // threads of a row
constexpr int kRowLanes = 16;     // rows side by side in a block
constexpr int kValueThreads = kSideBySide * kRowLanes;
constexpr int kValueColumns = kValues * kSideBySide;
constexpr int kAhead = 4;         // rows of a thread on their way

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kValueThreads) mass_of_values(Mass p) {
  __shared__ float sums[kRowLanes][2][kValueColumns];
  __shared__ float found[2][kValueColumns];
  int64_t first = static_cast<int64_t>(blockIdx.y) * kValueColumns;
  int at = threadIdx.x % kSideBySide * kValues;
  int row_lane = threadIdx.x / kSideBySide;
  let_next_begin();
  after_previous();
  Rows rows(p);
  const T* x = static_cast<const T*>(p.data) + first + at;
  float mass[kValues] = {}, fired[kValues] = {};
  if (first + at < p.n) {
    for (int64_t from = rows.first + row_lane; from < rows.end; from += kAhead * kRowLanes) {
      Pack<T, kValues> runs[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        int64_t row = from + i * kRowLanes;
        runs[i] = {};
        if (row >= rows.end) continue;
        if constexpr (kAligned) {
          runs[i] = Pack<T, kValues>::load(x + row * p.stride);
        } else {
#pragma unroll
          for (int j = 0; j < kValues; ++j) runs[i].v[j] = x[row * p.stride + j];
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
#pragma unroll
        for (int j = 0; j < kValues; ++j) {
          float v = to_float(runs[i].v[j]);
          mass[j] += fmaxf(v, 0.0f);
          fired[j] += v > 0.0f ? 1.0f : 0.0f;
        }
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kValues; ++j) {
    sums[row_lane][0][at + j] = mass[j];
    sums[row_lane][1][at + j] = fired[j];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * kValueColumns; i += kValueThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int lane = 0; lane < kRowLanes; ++lane) sum += (&sums[lane][0][0])[i];
    (&found[0][0])[i] = sum;
  }
  finish(p, first, found);
}

// Bits are counted thirty-two neurons at a time: adders on whole words turn sixteen rows into the binary digits of the
// neurons' counts, and these are spread over bytes, of which a register holds four.
constexpr int kWords = 16;  // side by side
constexpr int kBitColumns = 32 * kWords;
constexpr int kBitRows = 32;
constexpr int kBitThreads = kWords * kBitRows;
constexpr int kTogether = 16;          // rows that one step adds up
constexpr int kStepsOfBytes = 15;      // steps whose sums fit into a byte
static_assert(kBitThreads == kBitColumns && kTogether * kStepsOfBytes < 256);

// ones + 2 * twos = a + b + c, in every bit.
__device__ inline void add(uint32_t a, uint32_t b, uint32_t c, uint32_t& ones, uint32_t& twos) {
  ones = a ^ b ^ c;
  twos = (a & b) | (c & (a | b));
}

// bytes[k] += the counts of bits k, k + 8, k + 16 and k + 24 in the sixteen words.
__device__ inline void count_bits(const uint32_t (&w)[kTogether], uint32_t (&bytes)[8]) {
  uint32_t s[7], t[7], u[3], v[3];
#pragma unroll
  for (int i = 0; i < 5; ++i) add(w[3 * i], w[3 * i + 1], w[3 * i + 2], s[i], t[i]);
  uint32_t ones, twos, fours, eights;
  add(s[0], s[1], s[2], s[5], t[5]);
  add(s[5], s[3], s[4], ones, t[6]);
  add(t[0], t[1], t[2], u[0], v[0]);
  add(t[3], t[4], t[5], u[1], v[1]);
  add(u[0], u[1], t[6], twos, v[2]);
  add(v[0], v[1], v[2], fours, eights);
  constexpr uint32_t kLowest = 0x01010101u;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    bytes[k] += (ones >> k & kLowest) + ((twos >> k & kLowest) << 1) + ((fours >> k & kLowest) << 2) +
                ((eights >> k & kLowest) << 3) + (w[15] >> k & kLowest);
  }
}

template <bool kAligned>
__global__ void __launch_bounds__(kBitThreads) mass_of_bits(Mass p) {
  __shared__ uint4 bytes_of[kBitRows][kWords][2];
  __shared__ float found[2][kBitColumns];
  int64_t first = static_cast<int64_t>(blockIdx.y) * kBitColumns;
  int word = threadIdx.x % kWords;
  int row_lane = threadIdx.x / kWords;
  let_next_begin();
  after_previous();
  Rows rows(p);
  bool inside = first + 32 * word < p.n;
  const uint8_t* mask = static_cast<const uint8_t*>(p.data) + first / 8 + 4 * word;
  // The count that this thread keeps for neuron threadIdx.x is byte neuron / 8 % 4 of register neuron % 8 of its word.
  const uint8_t* counted = reinterpret_cast<const uint8_t*>(bytes_of) + threadIdx.x / 32 * 32 + threadIdx.x % 8 * 4 +
                           threadIdx.x / 8 % 4;
  uint32_t count = 0;
  for (int64_t from = rows.first; from < rows.end; from += kBitRows * kTogether * kStepsOfBytes) {
    uint32_t bytes[8] = {};
    for (int step = 0; step < kStepsOfBytes; ++step) {
      int64_t row = from + static_cast<int64_t>(step) * kBitRows * kTogether + row_lane;
      if (row - row_lane >= rows.end) break;
      uint32_t words[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        int64_t at = row + i * kBitRows;
        words[i] = 0;
        if (!inside || at >= rows.end) continue;
        const uint8_t* four = mask + at * p.stride;
        if constexpr (kAligned) words[i] = *reinterpret_cast<const uint32_t*>(four);
        else words[i] = four[0] | four[1] << 8 | four[2] << 16 | static_cast<uint32_t>(four[3]) << 24;
      }
      count_bits(words, bytes);
    }
    __syncthreads();  // what the step before left has been read
    bytes_of[row_lane][word][0] = make_uint4(bytes[0], bytes[1], bytes[2], bytes[3]);
    bytes_of[row_lane][word][1] = make_uint4(bytes[4], bytes[5], bytes[6], bytes[7]);
    __syncthreads();
#pragma unroll
    for (int lane = 0; lane < kBitRows; ++lane) count += counted[lane * static_cast<int>(sizeof bytes_of[0])];
  }
  found[0][threadIdx.x] = found[1][threadIdx.x] = static_cast<float>(count);
  finish(p, first, found);
}

constexpr int kListThreads = 256;

// neuron[j] += the sum over the lists, in their order; blockIdx.y says of which.
__global__ void __launch_bounds__(kListThreads) add_lists(Mass p, int64_t lists) {
  int64_t j = static_cast<int64_t>(blockIdx.x) * kListThreads + threadIdx.x;
  const float* from = blockIdx.y == 0 ? p.list_mass : p.list_fired;
  float* to = blockIdx.y == 0 ? p.neuron_mass : p.neuron_fired;
  let_next_begin();
  after_previous();
  if (j >= p.n || to == nullptr) return;
  float sum = 0.0f;
  for (int64_t list = 0; list < lists; ++list) sum += from[list * p.n + j];
  to[j] += sum;
}

struct Shape {
  int64_t m, n, lists;
  bool through_workspace;  // of neurons' sums

  explicit Shape(const pnb_activation_mass_params& p) {
    bool values = described(p.x);
    const pnb_tensor& given = values ? p.x : p.relu_mask;
    m = given.shape[0];
    n = values ? given.shape[1] : given.shape[1] * 8;
    lists = ceil_div(m, p.rows_per_list);
    through_workspace = lists > 1 && (described(p.neuron_mass) || described(p.neuron_fired));
  }
};

}  // namespace

uint64_t activation_mass_workspace(const pnb_activation_mass_params& p) {
  Shape shape(p);
  return shape.through_workspace ? 2 * shape.lists * shape.n * sizeof(float) : 0;
}

void activation_mass(const Device& device, const pnb_activation_mass_params& p) {
  Shape shape(p);
  if (shape.m == 0 || shape.n == 0) return;
  cudaStream_t stream = stream_of(p.stream);
  bool values = present(p.x);
  const pnb_tensor& given = values ? p.x : p.relu_mask;
  Mass args{given.data,
            given.stride[0],
            static_cast<const float*>(p.norms.data),
            static_cast<const int32_t*>(p.valid_rows.data),
            shape.m,
            shape.n,
            p.rows_per_list,
            p.block_size,
            static_cast<float*>(p.block_mass.data),
            static_cast<float*>(p.neuron_mass.data),
            static_cast<float*>(p.neuron_fired.data),
            nullptr,
            nullptr};
  if (shape.through_workspace) {
    args.list_mass = static_cast<float*>(p.workspace.data);
    args.list_fired = args.list_mass + shape.lists * shape.n;
    args.neuron_mass = args.neuron_fired = nullptr;
  }
  int64_t groups = ceil_div(shape.n, values ? kValueColumns : kBitColumns);
  int cluster = cluster_for(groups * shape.lists, (values ? 4 : 1) * device.multiprocessors);
  dim3 grid(static_cast<unsigned>(cluster), static_cast<unsigned>(groups), static_cast<unsigned>(shape.lists));
  if (values) {
    with_type(p.x.dtype, [&](auto type) {
      using T = decltype(type);
      auto kernel = rows_aligned(p.x) ? mass_of_values<T, true> : mass_of_values<T, false>;
      launch(kernel, {grid, kValueThreads, 0, stream, cluster, true}, "activation_mass", args);
    });
  } else {
    bool words = p.relu_mask.stride[0] % 4 == 0 && reinterpret_cast<uintptr_t>(p.relu_mask.data) % 4 == 0;
    launch(words ? mass_of_bits<true> : mass_of_bits<false>, {grid, kBitThreads, 0, stream, cluster, true}, "activation_mass",
           args);
  }
  if (!shape.through_workspace) return;
  args.neuron_mass = static_cast<float*>(p.neuron_mass.data);
  args.neuron_fired = static_cast<float*>(p.neuron_fired.data);
  dim3 list_grid(static_cast<unsigned>(ceil_div(shape.n, kListThreads)), 2);
  launch(add_lists, {list_grid, kListThreads, 0, stream, 1, true}, "activation_mass: sums of the lists", args, shape.lists);
}

}  // namespace pnb::cuda
