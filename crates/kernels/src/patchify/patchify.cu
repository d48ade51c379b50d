// Patches of images as the rows of a matrix, normalised, so that a patch embedding is a product with its weights.
//
//   rows[patch, c * edge^2 + y * edge + x] = pixel(patch, y, x, c) * scale[c] + shift[c]
// with scale = 1 / (255 deviation) and shift = -mean / deviation. Columns from 3 edge^2 on, up to a multiple of 8, are 0.
//
// Layout: pixels (batch, grid_rows * edge, grid_cols * edge, 3) of u8, as decoders give them; rows (batch * grid_rows *
// grid_cols, cols) of bf16, patches row after row, columns in the order of a convolution's weight (out, 3, edge, edge).
// Launch: a thread makes 8 columns; blocks of 256 threads.
// Source: PatchEmbed of timm, as a product.
#include "vec16.cuh"

struct PatchifyParams {
  const uint8_t* pixels;
  bf16* rows;
  // All, of 8 columns each.
  int64_t units;
  int32_t grid_rows, grid_cols;
  int32_t edge;
  // Of a row of the result, in units.
  int32_t units_per_row;
  float scale[3];
  float shift[3];
};

constexpr int THREADS = 256;
constexpr int LEN = 8;
constexpr int CHANNELS = 3;

KERNEL(patchify, PatchifyParams, 256, 4) {
  const int64_t unit = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (unit >= p.units) return;
  const int64_t patch = unit / p.units_per_row;
  const int first = (int)(unit % p.units_per_row) * LEN;
  const int patches = p.grid_rows * p.grid_cols;
  const int64_t image = patch / patches;
  const int within = (int)(patch % patches);
  const int64_t width = (int64_t)p.grid_cols * p.edge;
  const int64_t top = (image * p.grid_rows + within / p.grid_cols) * p.edge;
  const int64_t left = (int64_t)(within % p.grid_cols) * p.edge;
  const int area = p.edge * p.edge;
  float values[LEN];
#pragma unroll
  for (int i = 0; i < LEN; i++) {
    const int column = first + i, channel = column / area, place = column % area;
    values[i] = 0.0f;
    if (channel < CHANNELS) {
      const int64_t row = top + place / p.edge, col = left + place % p.edge;
      const float pixel = (float)p.pixels[(row * width + col) * CHANNELS + channel];
      values[i] = pixel * p.scale[channel] + p.shift[channel];
    }
  }
  *(Vec16*)(p.rows + unit * LEN) = pack(values);
}
