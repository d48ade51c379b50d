// GELU of rows to which a bias is added, forward and backward, in one pass over memory each.
//
// With v = x + bias and the normal distribution's function Phi(v) = (1 + erf(v / sqrt 2)) / 2 and density
// phi(v) = exp(-v^2 / 2) / sqrt(2 pi):
//   y = v Phi(v)
//   dx = dy (Phi(v) + v phi(v))
//   partials[chunk, c] = sum of dx[r, c], before it is rounded, over the rows r of the chunk; column_sum.cu makes the gradient
//   of the bias of them
//
// Layout: x, y, dy, dx (rows, cols) of bf16, row-major; bias (cols) of bf16; partials (chunks, cols) of f32.
// Launch: (chunks, tiles of columns) blocks of 8 warps. Each lane keeps its columns' bias in registers and goes down the rows
// of the chunk, as column_sum.cuh has it.
// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, the exact form.
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

// Phi.
DEVICE float normal_cdf(float v) { return 0.5f + 0.5f * erff(v * 0.70710678118654752f); }

DEVICE float gelu(float v) { return v * normal_cdf(v); }

DEVICE float gelu_slope(float v) {
  const float density = exp2_approx(v * v * -0.72134752044448170f) * 0.39894228040143268f;
  return normal_cdf(v) + v * density;
}

DEVICE uint32_t chunk_end(const BiasGeluParams& p, uint32_t start) {
  return p.rows - start < p.rows_per_chunk ? p.rows : start + p.rows_per_chunk;
}

// The rows of this warp, of this lane's columns. Aligned rows have code of their own, whose loads nothing keeps apart.
template <bool aligned>
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
    for (uint32_t i = 0; i < LEN; ++i) v[i] = gelu(v[i] + bias[i]);
    store_floats((bf16*)p.to + offset, v, left, aligned);
  }
}

// The same, with the sum of what is written.
template <bool aligned>
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
      d[i] *= gelu_slope(v[i] + bias[i]);
      sum[i] += d[i];
    }
    store_floats((bf16*)p.to + offset, d, left, aligned);
  }
}

KERNEL(bias_gelu_forward, BiasGeluParams, 256, 4) {
  const uint32_t column = lane_column<LEN>(blockIdx.y);
  if (column >= p.cols) return;
  if (p.aligned) forward<true>(p, column);
  else forward<false>(p, column);
}

KERNEL(bias_gelu_backward, BiasGeluParams, 256, 4) {
  SHARED_MEMORY(shared);
  const uint32_t column = lane_column<LEN>(blockIdx.y);
  float sum[LEN] = {};
  if (column < p.cols) {
    if (p.aligned) backward<true>(sum, p, column);
    else backward<false>(sum, p, column);
  }
  const ColumnTotal total = add_warps(sum, (float*)shared, blockIdx.y);
  if (total.column < p.cols) p.partials[(uint64_t)blockIdx.x * p.cols + total.column] = total.sum;
}
