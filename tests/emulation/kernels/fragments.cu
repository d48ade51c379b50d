// What each lane receives from ldmatrix, and what mma makes of each lane's registers.
#include "device.cuh"

struct LoadParams {
  // 32 rows of 8 elements: matrix i is rows 8 i to 8 i + 7.
  const bf16* rows;
  // Four registers of each lane.
  uint32_t* registers;
  uint32_t transposed;
};

KERNEL(load_fragments, LoadParams, 32, 1) {
  SHARED_MEMORY(shared);
  bf16* rows = reinterpret_cast<bf16*>(shared);
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) rows[lane * 8 + i] = p.rows[lane * 8 + i];
  __syncthreads();
  uint32_t r[4];
  if (p.transposed) {
    ldmatrix_x4_trans(r, rows + lane * 8);
  } else {
    ldmatrix_x4(r, rows + lane * 8);
  }
  for (int i = 0; i < 4; ++i) p.registers[lane * 4 + i] = r[i];
}

struct MultiplyParams {
  // Of each lane: four registers of a, two of b, four sums.
  const uint32_t* a;
  const uint32_t* b;
  float* c;
  uint32_t repeats;
};

KERNEL(multiply_fragments, MultiplyParams, 32, 1) {
  const int lane = threadIdx.x;
  uint32_t a[4];
  float c[4];
  for (int i = 0; i < 4; ++i) {
    a[i] = p.a[lane * 4 + i];
    c[i] = p.c[lane * 4 + i];
  }
  for (uint32_t i = 0; i < p.repeats; ++i) mma_m16n8k16(c, a, p.b[lane * 2], p.b[lane * 2 + 1]);
  for (int i = 0; i < 4; ++i) p.c[lane * 4 + i] = c[i];
}

// A product as a kernel makes it: a (m x 16, row-major) times b (16 x 8, row-major), through shared memory, a warp for each 16
// rows of a.
struct ProductParams {
  const bf16* a;
  const bf16* b;
  float* c;
};

KERNEL(product, ProductParams, 64, 1) {
  SHARED_MEMORY(shared);
  bf16* a_tile = reinterpret_cast<bf16*>(shared);
  bf16* b_tile = a_tile + 32 * 16;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const bf16* a = p.a + blockIdx.x * 32 * 16;
  cp_async_16(a_tile + thread * 8, a + thread * 8, true);
  if (thread < 16) cp_async_16(b_tile + thread * 8, p.b + thread * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  uint32_t fragment[4], columns[4];
  ldmatrix_x4(fragment, a_tile + (warp * 16 + lane % 16) * 16 + lane / 16 * 8);
  // The rows of b are given twice: two of the four matrices are not used.
  ldmatrix_x4_trans(columns, b_tile + lane % 16 * 8);
  float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma_m16n8k16(c, fragment, columns[0], columns[1]);
  float* out = p.c + (blockIdx.x * 32 + warp * 16) * 8;
  for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
}
