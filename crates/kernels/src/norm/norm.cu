// RMSNorm and LayerNorm with the addition that precedes them in a network, forward and backward.
//
// Maths, for a row of n channels; s is what is normalised:
//   s = x + residual (rounded to bf16, as it is kept), or x itself
//   RMSNorm    inverse = 1 / sqrt(mean(s^2) + eps),                          y = s inverse weight
//   LayerNorm  mean = mean(s), inverse = 1 / sqrt(mean((s - mean)^2) + eps), y = (s - mean) inverse weight + bias
// With n_c the normalised channel before its weight and g_c = dy_c weight_c:
//   ds_c = inverse (g_c - n_c mean(n g) - mean(g)) + dresidual_c        (RMSNorm: without mean(g))
//   dweight = sum over rows of dy n,  dbias = sum over rows of dy
// `dresidual` is the gradient that reaches s past the norm; ds goes to both x and the residual.
//
// Layout: x, residual, sum, y, dy, ... (rows, hidden) of bf16; weight, bias (hidden) of bf16; mean, inverse (rows) of f32.
// Launch: a warp a row, 8 warps a block. A lane keeps UNITS times 8 channels in registers, so that a row is read once; UNITS is
// the least of 1, 2, 4, 6, 8, 16 that holds hidden / 8 / 32. The backward gives each block ROWS_PER_BLOCK rows and adds their
// gradients of the gains in registers, then over its warps in their order, to one row of partials (blocks, hidden) for each
// gain; column_sum.cu adds the blocks. Nothing is atomic, the order depends on the sizes alone.
// Source: Zhang and Sennrich, 2019; Ba et al., 2016; the order of rounding is that of modeling_qwen2.py of transformers, but for
// its rounding of the normalised row before the weight, which is left out.
#include "vec16.cuh"

struct NormForward {
  const bf16* x;
  // Null if nothing is added.
  const bf16* residual;
  const bf16* weight;
  // LayerNorm alone.
  const bf16* bias;
  // Null if nothing is added.
  bf16* sum;
  bf16* y;
  // LayerNorm alone.
  float* mean;
  float* inverse;
  int64_t rows;
  int32_t hidden;
  float eps;
};

struct NormBackward {
  // What was normalised.
  const bf16* s;
  const bf16* weight;
  const bf16* dy;
  // Null if there is none.
  const bf16* dresidual;
  // LayerNorm alone.
  const float* mean;
  const float* inverse;
  bf16* ds;
  // (blocks, hidden), of `weight` and, for LayerNorm, `bias`.
  float* dweight;
  float* dbias;
  int64_t rows;
  int32_t hidden;
  int32_t rows_per_block;
};

constexpr int WARP = 32;
constexpr int WARPS = 8;
constexpr int LEN = 8;

DEVICE float warp_sum(float x) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) x += shfl_xor(x, distance);
  return x;
}

// The channels of this lane's unit `unit`.
DEVICE int channel_of(int unit) { return (unit * WARP + (int)(threadIdx.x % WARP)) * LEN; }

DEVICE void load_unit(float (&values)[LEN], const bf16* row, int channel, int hidden) {
  if (channel < hidden) {
    unpack(values, *(const Vec16*)(row + channel));
  } else {
#pragma unroll
    for (int i = 0; i < LEN; i++) values[i] = 0.0f;
  }
}

template <int UNITS, bool LAYER>
DEVICE void norm_forward(const NormForward& p) {
  const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
  // Whole warps leave together: none of their lanes is waited for.
  if (row >= p.rows) return;
  const int64_t start = row * p.hidden;
  float s[UNITS][LEN];
#pragma unroll
  for (int unit = 0; unit < UNITS; unit++) load_unit(s[unit], p.x + start, channel_of(unit), p.hidden);
  if (p.residual != nullptr) {
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
      const int channel = channel_of(unit);
      float residual[LEN];
      load_unit(residual, p.residual + start, channel, p.hidden);
#pragma unroll
      for (int i = 0; i < LEN; i++) s[unit][i] += residual[i];
      const Vec16 rounded = pack(s[unit]);
      unpack(s[unit], rounded);
      if (channel < p.hidden) *(Vec16*)(p.sum + start + channel) = rounded;
    }
  }

  const float share = 1.0f / (float)p.hidden;
  float mean = 0.0f;
  if (LAYER) {
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
#pragma unroll
      for (int i = 0; i < LEN; i++) mean += s[unit][i];
    }
    mean = warp_sum(mean) * share;
  }
  float squares = 0.0f;
#pragma unroll
  for (int unit = 0; unit < UNITS; unit++) {
    if (channel_of(unit) < p.hidden) {
#pragma unroll
      for (int i = 0; i < LEN; i++) {
        s[unit][i] -= mean;
        squares += s[unit][i] * s[unit][i];
      }
    }
  }
  const float inverse = 1.0f / sqrtf(warp_sum(squares) * share + p.eps);
  if (threadIdx.x % WARP == 0) {
    p.inverse[row] = inverse;
    if (LAYER) p.mean[row] = mean;
  }
#pragma unroll
  for (int unit = 0; unit < UNITS; unit++) {
    const int channel = channel_of(unit);
    if (channel < p.hidden) {
      float weight[LEN], bias[LEN] = {};
      load_unit(weight, p.weight, channel, p.hidden);
      if (LAYER) load_unit(bias, p.bias, channel, p.hidden);
#pragma unroll
      for (int i = 0; i < LEN; i++) s[unit][i] = s[unit][i] * inverse * weight[i] + bias[i];
      *(Vec16*)(p.y + start + channel) = pack(s[unit]);
    }
  }
}

// Adds what the warps of the block hold, in their order, to `to` (hidden); all threads take part.
template <int UNITS>
DEVICE void add_warps(const float (&sums)[UNITS][LEN], float* shared, float* to, int hidden) {
  const int warp = threadIdx.x / WARP;
  for (int turn = 0; turn < WARPS; turn++) {
    if (turn == warp) {
#pragma unroll
      for (int unit = 0; unit < UNITS; unit++) {
        const int channel = channel_of(unit);
        if (channel < hidden) {
#pragma unroll
          for (int i = 0; i < LEN; i++) {
            float& total = shared[channel + i];
            total = turn == 0 ? sums[unit][i] : total + sums[unit][i];
          }
        }
      }
    }
    __syncthreads();
  }
  for (int channel = threadIdx.x; channel < hidden; channel += WARPS * WARP) to[channel] = shared[channel];
  // The next call writes where this one reads.
  __syncthreads();
}

template <int UNITS, bool LAYER>
DEVICE void norm_backward(const NormBackward& p) {
  SHARED_MEMORY(shared);
  const float share = 1.0f / (float)p.hidden;
  const int64_t first = (int64_t)blockIdx.x * p.rows_per_block;
  const int64_t end = first + p.rows_per_block < p.rows ? first + p.rows_per_block : p.rows;
  float dweight[UNITS][LEN] = {};
  float dbias[LAYER ? UNITS : 1][LEN] = {};
  for (int64_t row = first + threadIdx.x / WARP; row < end; row += WARPS) {
    const int64_t start = row * p.hidden;
    const float inverse = p.inverse[row];
    const float mean = LAYER ? p.mean[row] : 0.0f;
    // The normalised row, and the gradient times the weight.
    float n[UNITS][LEN], g[UNITS][LEN];
    float sum = 0.0f, dot = 0.0f;
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
      const int channel = channel_of(unit);
      float weight[LEN];
      load_unit(n[unit], p.s + start, channel, p.hidden);
      load_unit(g[unit], p.dy + start, channel, p.hidden);
      load_unit(weight, p.weight, channel, p.hidden);
#pragma unroll
      for (int i = 0; i < LEN; i++) {
        n[unit][i] = (n[unit][i] - mean) * inverse;
        dweight[unit][i] += g[unit][i] * n[unit][i];
        if (LAYER) dbias[unit][i] += g[unit][i];
        // Beyond the row both are 0, and so is what they add.
        g[unit][i] *= weight[i];
        sum += g[unit][i];
        dot += g[unit][i] * n[unit][i];
      }
    }
    const float mean_dot = warp_sum(dot) * share;
    const float mean_sum = LAYER ? warp_sum(sum) * share : 0.0f;
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
      const int channel = channel_of(unit);
      if (channel < p.hidden) {
        float past[LEN] = {};
        if (p.dresidual != nullptr) load_unit(past, p.dresidual + start, channel, p.hidden);
#pragma unroll
        for (int i = 0; i < LEN; i++) {
          past[i] += inverse * (g[unit][i] - n[unit][i] * mean_dot - mean_sum);
        }
        *(Vec16*)(p.ds + start + channel) = pack(past);
      }
    }
  }
  add_warps(dweight, (float*)shared, p.dweight + (int64_t)blockIdx.x * p.hidden, p.hidden);
  if constexpr (LAYER) add_warps(dbias, (float*)shared, p.dbias + (int64_t)blockIdx.x * p.hidden, p.hidden);
}

#define NORM_KERNELS(units)                                                                                            \
  KERNEL(rms_norm_forward_##units, NormForward, 256, 1) { norm_forward<units, false>(p); }                             \
  KERNEL(rms_norm_backward_##units, NormBackward, 256, 1) { norm_backward<units, false>(p); }                          \
  KERNEL(layer_norm_forward_##units, NormForward, 256, 1) { norm_forward<units, true>(p); }                            \
  KERNEL(layer_norm_backward_##units, NormBackward, 256, 1) { norm_backward<units, true>(p); }

NORM_KERNELS(1)
NORM_KERNELS(2)
NORM_KERNELS(4)
NORM_KERNELS(6)
NORM_KERNELS(8)
NORM_KERNELS(16)
