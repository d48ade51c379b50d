// GELU of rows to which a bias is added, forward and backward, in one pass over memory each.
//
// With v = x + bias, of either form:
//   y = v share(v)
//   dx = dy (share(v) + v share'(v))
//   partials[chunk, c] = sum of dx[r, c], before it is rounded, over the rows r of the chunk; column_sum.cu makes the gradient
//   of the bias of them
// The exact form has the normal distribution's function and density:
//   share(v) = (1 + erf(v / sqrt 2)) / 2,  share'(v) = exp(-v^2 / 2) / sqrt(2 pi)
// The tanh form approximates them, with u = sqrt(2 / pi) (v + 0.044715 v^3):
//   share(v) = (1 + tanh u) / 2 = 1 / (1 + exp(-2 u))
//   share'(v) = 2 u' share(v) (1 - share(v)),  u' = sqrt(2 / pi) (1 + 3 * 0.044715 v^2)
// It is made of e = exp(-2 |u|), which is 0 where exp(-2 u) would overflow: share(v) is 1 / (1 + e), or e / (1 + e) for v < 0,
// and share(v) (1 - share(v)) = e / (1 + e)^2. These keep their digits where 1 + tanh u has none left.
//
// Layout: x, y, dy, dx (rows, cols) of bf16, row-major; bias (cols) of bf16; partials (chunks, cols) of f32.
// Launch: (chunks, tiles of columns) blocks of 8 warps. Each lane keeps its columns' bias in registers and goes down the rows
// of the chunk, as column_sum.cuh has it.
// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, both forms; the second is `gelu_pytorch_tanh`.
#include "../column_sum/column_sum.cuh"

struct BiasGeluParams {
  const void* x;
  const void* bias;
  // Backward alone.
  const void* dy;
  // Forward y, backward dx.
  void* to;
  // Backward alone.
  float* partials;
  uint32_t rows;
  uint32_t cols;
  uint32_t rows_per_chunk;
  // Whether rows are whole numbers of aligned sixteen bytes.
  uint32_t aligned;
};

constexpr uint32_t LEN = VEC16_LEN<bf16>;

struct Exact {
  static DEVICE float share(float v) { return 0.5f + 0.5f * erff(v * 0.70710678118654752f); }

  static DEVICE float gelu(float v) { return v * share(v); }

  static DEVICE float slope(float v) {
    const float density = exp2_approx(v * v * -0.72134752044448170f) * 0.39894228040143268f;
    return share(v) + v * density;
  }
};

struct Tanh {
  // exp(-2 |u|), and 1 / (1 + it).
  float small;
  float large_share;
  // 2 u'.
  float rise;

  explicit DEVICE Tanh(float v) {
    // Beyond, `small` is 0 anyway: 2 |u| is 121 and more.
    const float square = fminf(v * v, 128.0f);
    // 2 sqrt(2 / pi), and that times log2(e).
    small = exp2_approx(fabsf(v) * (1.0f + 0.044715f * square) * -2.3022081983211456f);
    large_share = 1.0f / (1.0f + small);
    rise = 1.5957691216057308f * (1.0f + 0.134145f * square);
  }

  DEVICE float share(float v) const { return v < 0.0f ? small * large_share : large_share; }

  static DEVICE float gelu(float v) { return v * Tanh(v).share(v); }

  static DEVICE float slope(float v) {
    const Tanh at(v);
    // The product with `small` first: it is 0 where the others are large.
    return at.share(v) + v * at.small * at.large_share * at.large_share * at.rise;
  }
};

DEVICE uint32_t chunk_end(const BiasGeluParams& p, uint32_t start) {
  return p.rows - start < p.rows_per_chunk ? p.rows : start + p.rows_per_chunk;
}

// The rows of this warp, of this lane's columns. Aligned rows have code of their own, whose loads nothing keeps apart.
template <typename Form, bool aligned>
DEVICE void forward(const BiasGeluParams& p, uint32_t column) {
  const uint32_t left = p.cols - column;
  float bias[LEN];
  load_floats(bias, (const bf16*)p.bias + column, left, aligned);
  const uint32_t start = blockIdx.x * p.rows_per_chunk, end = chunk_end(p, start);
#pragma unroll 2
  for (uint32_t row = start + threadIdx.x / 32; row < end; row += WARPS) {
    const uint64_t offset = (uint64_t)row * p.cols + column;
    float v[LEN];
    load_floats(v, (const bf16*)p.x + offset, left, aligned);
    for (uint32_t i = 0; i < LEN; ++i) v[i] = Form::gelu(v[i] + bias[i]);
    store_floats((bf16*)p.to + offset, v, left, aligned);
  }
}

// The same, with the sum of what is written.
template <typename Form, bool aligned>
DEVICE void backward(float (&sum)[LEN], const BiasGeluParams& p, uint32_t column) {
  const uint32_t left = p.cols - column;
  float bias[LEN];
  load_floats(bias, (const bf16*)p.bias + column, left, aligned);
  const uint32_t start = blockIdx.x * p.rows_per_chunk, end = chunk_end(p, start);
  for (uint32_t row = start + threadIdx.x / 32; row < end; row += WARPS) {
    const uint64_t offset = (uint64_t)row * p.cols + column;
    float v[LEN], d[LEN];
    load_floats(v, (const bf16*)p.x + offset, left, aligned);
    load_floats(d, (const bf16*)p.dy + offset, left, aligned);
    for (uint32_t i = 0; i < LEN; ++i) {
      d[i] *= Form::slope(v[i] + bias[i]);
      sum[i] += d[i];
    }
    store_floats((bf16*)p.to + offset, d, left, aligned);
  }
}

template <typename Form>
DEVICE void forward_block(const BiasGeluParams& p) {
  const uint32_t column = lane_column<LEN>(blockIdx.y);
  if (column >= p.cols) return;
  if (p.aligned) forward<Form, true>(p, column);
  else forward<Form, false>(p, column);
}

template <typename Form>
DEVICE void backward_block(const BiasGeluParams& p) {
  SHARED_MEMORY(shared);
  const uint32_t column = lane_column<LEN>(blockIdx.y);
  float sum[LEN] = {};
  if (column < p.cols) {
    if (p.aligned) backward<Form, true>(sum, p, column);
    else backward<Form, false>(sum, p, column);
  }
  const ColumnTotal total = add_warps(sum, (float*)shared, blockIdx.y);
  if (total.column < p.cols) p.partials[(uint64_t)blockIdx.x * p.cols + total.column] = total.sum;
}

KERNEL(bias_gelu_forward, BiasGeluParams, 256, 4) { forward_block<Exact>(p); }
KERNEL(bias_gelu_tanh_forward, BiasGeluParams, 256, 4) { forward_block<Tanh>(p); }
KERNEL(bias_gelu_backward, BiasGeluParams, 256, 4) { backward_block<Exact>(p); }
KERNEL(bias_gelu_tanh_backward, BiasGeluParams, 256, 4) { backward_block<Tanh>(p); }
