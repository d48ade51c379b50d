// SwiGLU, forward and backward, one pass over memory each.
//
//   h = gate sigmoid(gate) up
//   dgate = dh up (sigmoid(gate) + gate sigmoid(gate) (1 - sigmoid(gate))),  dup = dh gate sigmoid(gate)
// The backward computes the product anew from gate and up: it is cheaper to make than to keep.
//
// Layout: gate, up and their gradients (rows, cols) of bf16, `stride` units of 8 from one row to the next: those of a row where
// they are matrices of their own, twice as many where they are halves of the rows of a fused projection. h, dh (rows, cols).
// Launch: a thread takes 8 channels; blocks of 256 threads.
// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
#include "vec16.cuh"

struct SwigluParams {
  const bf16* gate;
  const bf16* up;
  // Backward alone.
  const bf16* dh;
  // Forward h, backward the gradient of the gate.
  bf16* to;
  // Backward alone: the gradient of `up`.
  bf16* dup;
  int64_t units;
  // Of h, in units of 8.
  int32_t units_per_row;
  // Of the gate and up, in units of 8.
  int32_t stride;
};

constexpr int THREADS = 256;
constexpr int LEN = 8;

DEVICE int64_t find_unit() { return (int64_t)blockIdx.x * THREADS + threadIdx.x; }

// Where the gate and up of a unit of h are.
DEVICE int64_t find_input(const SwigluParams& p, int64_t unit) {
  const int64_t row = unit / p.units_per_row;
  return (unit + row * (p.stride - p.units_per_row)) * LEN;
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp2_approx(x * -1.4426950408889634f)); }

KERNEL(swiglu_forward, SwigluParams, 256, 4) {
  const int64_t unit = find_unit();
  if (unit >= p.units) return;
  const int64_t at = find_input(p, unit);
  float gate[LEN], up[LEN];
  unpack(gate, *(const Vec16*)(p.gate + at));
  unpack(up, *(const Vec16*)(p.up + at));
#pragma unroll
  for (int i = 0; i < LEN; i++) up[i] *= gate[i] * sigmoid(gate[i]);
  *(Vec16*)(p.to + unit * LEN) = pack(up);
}

KERNEL(swiglu_backward, SwigluParams, 256, 4) {
  const int64_t unit = find_unit();
  if (unit >= p.units) return;
  const int64_t at = find_input(p, unit);
  float gate[LEN], up[LEN], dh[LEN];
  unpack(gate, *(const Vec16*)(p.gate + at));
  unpack(up, *(const Vec16*)(p.up + at));
  unpack(dh, *(const Vec16*)(p.dh + unit * LEN));
#pragma unroll
  for (int i = 0; i < LEN; i++) {
    const float s = sigmoid(gate[i]), silu = gate[i] * s;
    gate[i] = dh[i] * up[i] * (s + silu * (1.0f - s));
    up[i] = dh[i] * silu;
  }
  *(Vec16*)(p.to + at) = pack(gate);
  *(Vec16*)(p.dup + at) = pack(up);
}
