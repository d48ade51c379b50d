// Sums of the columns of a matrix in two stages, in f32 and in one order, without atomics: the gradient of a bias.
//
//   partials[chunk, c] = sum of x[r, c] over the rows r of the chunk
//   to[c] = sum of partials[chunk, c] over the chunks, added to the old content of `to` if that is asked for
//
// Layout: x (rows, cols) of bf16 or f32, partials (chunks, cols) of f32, row-major; to (cols) of bf16 or f32.
// Launch: first stage (chunks, tiles of columns) blocks, second stage (1, tiles), each of 8 warps; column_sum.cuh has the rest.
#include "column_sum.cuh"

struct ColumnSumParams {
  const void* from;
  void* to;
  // Of `from`.
  uint32_t rows;
  uint32_t cols;
  uint32_t rows_per_chunk;
  // Whether rows of `from` are whole numbers of aligned sixteen bytes.
  uint32_t aligned;
  // Whether the old content of `to` is added.
  uint32_t accumulate;
};

// Adds the rows of this warp to `sum`. Aligned rows have code of their own, whose loads nothing keeps apart.
template <typename T, bool aligned>
DEVICE void add_rows(float (&sum)[VEC16_LEN<T>], const ColumnSumParams& p, uint32_t column, uint32_t start, uint32_t end) {
#pragma unroll 4
  for (uint32_t row = start + threadIdx.x / 32; row < end; row += WARPS) {
    float x[VEC16_LEN<T>];
    load_floats(x, (const T*)p.from + (uint64_t)row * p.cols + column, p.cols - column, aligned);
    for (uint32_t i = 0; i < VEC16_LEN<T>; ++i) sum[i] += x[i];
  }
}

// The sum over the rows of this block's chunk, of a column of this block's tile.
template <typename T>
DEVICE ColumnTotal chunk_total(const ColumnSumParams& p) {
  constexpr uint32_t LEN = VEC16_LEN<T>;
  SHARED_MEMORY(shared);
  const uint32_t column = lane_column<LEN>(blockIdx.y);
  const uint32_t start = blockIdx.x * p.rows_per_chunk;
  const uint32_t end = p.rows - start < p.rows_per_chunk ? p.rows : start + p.rows_per_chunk;
  float sum[LEN] = {};
  if (column < p.cols) {
    if (p.aligned) add_rows<T, true>(sum, p, column, start, end);
    else add_rows<T, false>(sum, p, column, start, end);
  }
  return add_warps(sum, (float*)shared, blockIdx.y);
}

template <typename T>
DEVICE void partial(const ColumnSumParams& p) {
  const ColumnTotal total = chunk_total<T>(p);
  if (total.column < p.cols) ((float*)p.to)[(uint64_t)blockIdx.x * p.cols + total.column] = total.sum;
}

template <typename T>
DEVICE void finish(const ColumnSumParams& p) {
  const ColumnTotal total = chunk_total<float>(p);
  if (total.column >= p.cols) return;
  T& to = ((T*)p.to)[total.column];
  from_float(to, p.accumulate ? to_float(to) + total.sum : total.sum);
}

KERNEL(column_sum_partial_bf16, ColumnSumParams, 256, 4) { partial<bf16>(p); }
KERNEL(column_sum_partial_f32, ColumnSumParams, 256, 4) { partial<float>(p); }
KERNEL(column_sum_finish_bf16, ColumnSumParams, 256, 4) { finish<bf16>(p); }
KERNEL(column_sum_finish_f32, ColumnSumParams, 256, 4) { finish<float>(p); }
