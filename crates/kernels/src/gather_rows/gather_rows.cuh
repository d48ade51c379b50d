// Copies of rows, sixteen bytes at a time where they allow it.
#pragma once

#include "vec16.cuh"

// Rows of a block: one for each of its 8 warps.
constexpr uint32_t ROWS = 8;

// Copies a row of `cols` elements, or writes zeros if `from` is null; the 32 lanes of a warp share the work. `aligned`: rows
// are whole numbers of aligned sixteen bytes.
DEVICE void copy_row(bf16* to, const bf16* from, uint32_t cols, bool aligned) {
  // So many loads are on their way before the first is waited for.
  constexpr uint32_t BATCH = 4;
  const uint32_t lane = threadIdx.x % 32;
  if (!aligned) {
    for (uint32_t column = lane; column < cols; column += 32) to[column] = from == nullptr ? (bf16)0 : from[column];
    return;
  }
  const uint32_t units = cols / VEC16_LEN<bf16>;
  for (uint32_t first = lane; first < units; first += 32 * BATCH) {
    Vec16 batch[BATCH] = {};
    if (from != nullptr) {
#pragma unroll
      for (uint32_t i = 0; i < BATCH; ++i) {
        if (first + 32 * i < units) batch[i] = ((const Vec16*)from)[first + 32 * i];
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < BATCH; ++i) {
      if (first + 32 * i < units) ((Vec16*)to)[first + 32 * i] = batch[i];
    }
  }
}

// Row `index` of `rows`, the last if there are fewer. Null if there is none.
DEVICE const bf16* row_at(const bf16* from, uint32_t rows, uint32_t index, uint32_t cols) {
  if (rows == 0) return nullptr;
  return from + (uint64_t)min(index, rows - 1) * cols;
}
