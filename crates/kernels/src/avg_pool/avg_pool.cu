// Adaptive average pooling of square grids of feature vectors, forward and backward.
//
// With n = grid and m = pooled, output row i covers the input rows from floor(i n / m) up to, not including,
// ceil((i + 1) n / m), and columns alike:
//   y[i, j] = sum of x[r, c] over the window of (i, j), divided by the number of elements of that window
//   dx[r, c] = sum of dy[i, j] / size(i, j) over the outputs (i, j) whose windows hold (r, c)
// Input row r is held by the outputs from floor(r m / n) up to ceil((r + 1) m / n): the same formula with n and m exchanged,
// so that both directions gather, every element is written once, by one thread, and sums have one order.
//
// Layout: x (batch, n, n, channels), y (batch, m, m, channels), row-major, bf16 or f32; sums in f32.
// Launch: a warp for each pixel that is written, 8 warps in a block; lanes go along the channels, sixteen bytes each.
// Source: `adaptive_avg_pool2d` of PyTorch.
#include "vec16.cuh"

struct AvgPoolParams {
  const void* from;
  void* to;
  // Of `to`, in the whole batch.
  uint32_t num_pixels;
  // Edge of the grid of `from`, of `to`.
  uint32_t from_edge;
  uint32_t to_edge;
  uint32_t channels;
  // Whether rows of channels are whole numbers of aligned sixteen bytes.
  uint32_t aligned;
};

// Rows, or columns, of a grid: from `start` up to, not including, `end`.
struct Window {
  uint32_t start;
  uint32_t end;
};

// What `index` of a grid of edge `of` covers in one of edge `in`.
DEVICE Window window(uint32_t index, uint32_t of, uint32_t in) {
  return {index * in / of, ((index + 1) * in + of - 1) / of};
}

// Where a warp writes: a pixel, and the windows it gathers from.
struct Place {
  uint32_t image;
  Window rows;
  Window cols;
};

DEVICE Place place(const AvgPoolParams& p, uint32_t pixel) {
  const uint32_t row = pixel / p.to_edge;
  const uint32_t image = row / p.to_edge;
  return {image, window(row - image * p.to_edge, p.to_edge, p.from_edge),
          window(pixel - row * p.to_edge, p.to_edge, p.from_edge)};
}

DEVICE uint32_t warp_pixel() { return blockIdx.x * 8 + threadIdx.x / 32; }

DEVICE uint64_t from_offset(const AvgPoolParams& p, uint32_t image, uint32_t row, uint32_t col) {
  return (((uint64_t)image * p.from_edge + row) * p.from_edge + col) * p.channels;
}

template <typename T, bool aligned>
DEVICE void forward(const AvgPoolParams& p) {
  constexpr uint32_t LEN = VEC16_LEN<T>;
  const uint32_t pixel = warp_pixel();
  if (pixel >= p.num_pixels) return;
  const Place at = place(p, pixel);
  const float size = (float)((at.rows.end - at.rows.start) * (at.cols.end - at.cols.start));
  const T* from = (const T*)p.from;
  T* to = (T*)p.to + (uint64_t)pixel * p.channels;
  for (uint32_t channel = threadIdx.x % 32 * LEN; channel < p.channels; channel += 32 * LEN) {
    float sum[LEN] = {};
    for (uint32_t row = at.rows.start; row < at.rows.end; ++row) {
#pragma unroll 4
      for (uint32_t col = at.cols.start; col < at.cols.end; ++col) {
        float x[LEN];
        load_floats(x, from + from_offset(p, at.image, row, col) + channel, p.channels - channel, aligned);
        for (uint32_t i = 0; i < LEN; ++i) sum[i] += x[i];
      }
    }
    for (uint32_t i = 0; i < LEN; ++i) sum[i] /= size;
    store_floats(to + channel, sum, p.channels - channel, aligned);
  }
}

template <typename T, bool aligned>
DEVICE void backward(const AvgPoolParams& p) {
  constexpr uint32_t LEN = VEC16_LEN<T>;
  const uint32_t pixel = warp_pixel();
  if (pixel >= p.num_pixels) return;
  const Place at = place(p, pixel);
  const T* from = (const T*)p.from;
  T* to = (T*)p.to + (uint64_t)pixel * p.channels;
  for (uint32_t channel = threadIdx.x % 32 * LEN; channel < p.channels; channel += 32 * LEN) {
    float sum[LEN] = {};
    for (uint32_t row = at.rows.start; row < at.rows.end; ++row) {
      const Window rows = window(row, p.from_edge, p.to_edge);
      for (uint32_t col = at.cols.start; col < at.cols.end; ++col) {
        const Window cols = window(col, p.from_edge, p.to_edge);
        const float share = 1.0f / (float)((rows.end - rows.start) * (cols.end - cols.start));
        float dy[LEN];
        load_floats(dy, from + from_offset(p, at.image, row, col) + channel, p.channels - channel, aligned);
        for (uint32_t i = 0; i < LEN; ++i) sum[i] += dy[i] * share;
      }
    }
    store_floats(to + channel, sum, p.channels - channel, aligned);
  }
}

// Each with code of its own for aligned rows, whose loads nothing keeps apart.
KERNEL(avg_pool_forward_bf16, AvgPoolParams, 256, 4) {
  if (p.aligned) forward<bf16, true>(p);
  else forward<bf16, false>(p);
}
KERNEL(avg_pool_forward_f32, AvgPoolParams, 256, 4) {
  if (p.aligned) forward<float, true>(p);
  else forward<float, false>(p);
}
KERNEL(avg_pool_backward_bf16, AvgPoolParams, 256, 4) {
  if (p.aligned) backward<bf16, true>(p);
  else backward<bf16, false>(p);
}
KERNEL(avg_pool_backward_f32, AvgPoolParams, 256, 4) {
  if (p.aligned) backward<float, true>(p);
  else backward<float, false>(p);
}
