// Sums of columns within a block, in f32 and in one order.
//
// A block of 8 warps takes consecutive rows of one tile of columns: warp w the rows w, w + 8, .. and lane l the LEN
// consecutive columns from l * LEN on, LEN being how many elements sixteen bytes hold. Each thread adds up its rows; then the
// 8 warps are added in their order. The order depends on the sizes alone.
#pragma once

#include "vec16.cuh"

constexpr uint32_t WARPS = 8;

// The first column of this lane within a tile that starts at `tile` times the columns of a tile.
template <uint32_t LEN>
DEVICE uint32_t lane_column(uint32_t tile) {
  return (tile * 32 + threadIdx.x % 32) * LEN;
}

// Of a column of the tile, the sum over the warps of the block. `column` counts from the first of all tiles; it is beyond the
// matrix in threads that have none.
struct ColumnTotal {
  uint32_t column;
  float sum;
};

// Adds up what the warps hold, by way of WARPS * LEN * 32 floats of shared memory. All threads of the block take part; the
// first LEN * 32 of them receive a column each.
template <uint32_t LEN>
DEVICE ColumnTotal add_warps(const float (&sum)[LEN], float* shared, uint32_t tile) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (uint32_t i = 0; i < LEN; ++i) shared[(warp * LEN + i) * 32 + lane] = sum[i];
  __syncthreads();
  if (warp >= LEN) return {0xffffffffu, 0.0f};
  float total = 0.0f;
  for (uint32_t w = 0; w < WARPS; ++w) total += shared[(w * LEN + warp) * 32 + lane];
  return {lane_column<LEN>(tile) + warp, total};
}
