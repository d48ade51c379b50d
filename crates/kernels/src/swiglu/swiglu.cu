// SwiGLU over the fused gate and up projections, forward and backward, one pass over memory each.
//
//   h = gate sigmoid(gate) up
//   dgate = dh up (sigmoid(gate) + gate sigmoid(gate) (1 - sigmoid(gate))),  dup = dh gate sigmoid(gate)
// The backward computes the product anew from gate and up: it is cheaper to make than to keep.
//
// Layout: gate_up and its gradient (rows, 2 * cols) of bf16, the gate in the first half of each row; h, dh (rows, cols).
// Launch: a thread takes 8 channels; blocks of 256 threads.
// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
#include "vec16.cuh"

struct SwigluParams {
  const bf16* gate_up;
  // Backward alone.
  const bf16* dh;
  // Forward h, backward the gradient of gate_up.
  bf16* to;
  int64_t units;
  // Of h, in units of 8.
  int32_t units_per_row;
  int32_t unused;
};

constexpr int THREADS = 256;
constexpr int LEN = 8;

// Where a thread's channels are.
struct Place {
  int64_t unit;
  // Of the gate; the up projection is a row of h further.
  int64_t gate;
  int64_t up;
};

DEVICE Place find_place(const SwigluParams& p) {
  const int64_t unit = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  const int64_t row = unit / p.units_per_row;
  const int64_t gate = (unit + row * p.units_per_row) * LEN;
  return {unit, gate, gate + (int64_t)p.units_per_row * LEN};
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp2_approx(x * -1.4426950408889634f)); }

KERNEL(swiglu_forward, SwigluParams, 256, 4) {
  const Place place = find_place(p);
  if (place.unit >= p.units) return;
  float gate[LEN], up[LEN];
  unpack(gate, *(const Vec16*)(p.gate_up + place.gate));
  unpack(up, *(const Vec16*)(p.gate_up + place.up));
#pragma unroll
  for (int i = 0; i < LEN; i++) up[i] *= gate[i] * sigmoid(gate[i]);
  *(Vec16*)(p.to + place.unit * LEN) = pack(up);
}

KERNEL(swiglu_backward, SwigluParams, 256, 4) {
  const Place place = find_place(p);
  if (place.unit >= p.units) return;
  float gate[LEN], up[LEN], dh[LEN];
  unpack(gate, *(const Vec16*)(p.gate_up + place.gate));
  unpack(up, *(const Vec16*)(p.gate_up + place.up));
  unpack(dh, *(const Vec16*)(p.dh + place.unit * LEN));
#pragma unroll
  for (int i = 0; i < LEN; i++) {
    const float s = sigmoid(gate[i]), silu = gate[i] * s;
    gate[i] = dh[i] * up[i] * (s + silu * (1.0f - s));
    up[i] = dh[i] * silu;
  }
  *(Vec16*)(p.to + place.gate) = pack(gate);
  *(Vec16*)(p.to + place.up) = pack(up);
}
