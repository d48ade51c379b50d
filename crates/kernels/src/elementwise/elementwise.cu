// What else a training step does to every element: casts, sums, fills.
//
//   add        to = left + right, rounded once
//   narrow     to (bf16) = from (f32), rounded to nearest even
//   widen      to (f32) = from (bf16)
//   fill       to = value, 32 bits at a time
// Layout: flat buffers. Launch: a thread takes 16 bytes of its widest operand, the last elements one by one; blocks of 256 threads.
#include "vec16.cuh"

struct ElementwiseParams {
  const void* from;
  // add alone.
  const void* right;
  void* to;
  int64_t len;
  // fill alone.
  uint32_t value;
  uint32_t unused;
};

constexpr int THREADS = 256;

template <int LEN>
DEVICE int64_t first_of() {
  return ((int64_t)blockIdx.x * THREADS + threadIdx.x) * LEN;
}

KERNEL(elementwise_add, ElementwiseParams, 256, 4) {
  const int64_t at = first_of<8>();
  if (at >= p.len) return;
  const uint32_t left = p.len - at < 8 ? (uint32_t)(p.len - at) : 8;
  float values[8], others[8];
  load_floats(values, (const bf16*)p.from + at, left, left == 8);
  load_floats(others, (const bf16*)p.right + at, left, left == 8);
#pragma unroll
  for (int i = 0; i < 8; i++) values[i] += others[i];
  store_floats((bf16*)p.to + at, values, left, left == 8);
}

KERNEL(elementwise_narrow, ElementwiseParams, 256, 4) {
  const int64_t at = first_of<8>();
  if (at >= p.len) return;
  const uint32_t left = p.len - at < 8 ? (uint32_t)(p.len - at) : 8;
  float values[8];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float four[4] = {};
    if (left > half * 4u) load_floats(four, (const float*)p.from + at + half * 4, left - half * 4, left == 8);
#pragma unroll
    for (int i = 0; i < 4; i++) values[half * 4 + i] = four[i];
  }
  store_floats((bf16*)p.to + at, values, left, left == 8);
}

KERNEL(elementwise_widen, ElementwiseParams, 256, 4) {
  const int64_t at = first_of<8>();
  if (at >= p.len) return;
  const uint32_t left = p.len - at < 8 ? (uint32_t)(p.len - at) : 8;
  float values[8];
  load_floats(values, (const bf16*)p.from + at, left, left == 8);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float four[4] = {values[half * 4], values[half * 4 + 1], values[half * 4 + 2], values[half * 4 + 3]};
    if (left > half * 4u) store_floats((float*)p.to + at + half * 4, four, left - half * 4, left == 8);
  }
}

KERNEL(elementwise_fill, ElementwiseParams, 256, 4) {
  const int64_t at = first_of<4>();
  uint32_t* to = (uint32_t*)p.to + at;
  if (at + 4 <= p.len) {
    *(Vec16*)to = {{p.value, p.value, p.value, p.value}};
  } else {
    for (int64_t rest = at; rest < p.len; rest++) *to++ = p.value;
  }
}
