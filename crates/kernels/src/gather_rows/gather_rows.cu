// Rows of a matrix by their numbers.
//
//   to[r] = from[indices[r]], or zeros where indices[r] is negative
//
// With the numbers of the rows that carry a label this makes their hidden states one matrix; with, for every row, its place
// among those or -1 it makes the gradient of all hidden states of theirs, and nothing has to be cleared before. A number
// beyond `from` takes its last row: nothing is read outside.
//
// Layout: from (from_rows, cols), to (rows, cols) of bf16, row-major; indices (rows) of i32.
// Launch: a warp for each row, 8 warps a block.
#include "gather_rows.cuh"

struct GatherRowsParams {
  const bf16* from;
  const int32_t* indices;
  bf16* to;
  uint32_t from_rows;
  // Of `to`.
  uint32_t rows;
  uint32_t cols;
  // Whether rows are whole numbers of aligned sixteen bytes.
  uint32_t aligned;
};

KERNEL(gather_rows, GatherRowsParams, 256, 4) {
  const uint32_t row = blockIdx.x * ROWS + threadIdx.x / 32;
  if (row >= p.rows) return;
  const int32_t index = p.indices[row];
  const bf16* const from = index < 0 ? nullptr : row_at(p.from, p.from_rows, (uint32_t)index, p.cols);
  copy_row(p.to + (uint64_t)row * p.cols, from, p.cols, p.aligned);
}
