// Softmax cross-entropy of rows of logits, which are overwritten by their gradient, and the sums of what the rows say.
//
// Maths, for a row x of logits with the label t, m its maximum and log_sum = m + log(sum of exp(x_c - m)):
//   loss = log_sum - x_t,  z = z_loss log_sum^2,  hit = 1 if t is the first index of the maximum
//   x_c becomes scale (exp(x_c - log_sum) (1 + 2 z_loss log_sum) - [c = t])
// `scale` is a parameter times, where there is one, a number in the memory of the device: one over the number of labels of a
// whole step is known only there. A row whose label is `ignore_index` is not read and becomes zeros, and its loss is 0; a label
// that is neither that nor below the vocabulary makes the row and its loss NaN, as a logit that is NaN does.
//
// Layout: x (rows, vocab) of bf16, row-major; labels (rows) of i32; stats (rows, 4) of f32: loss, z, 1 if there is a label, hit.
// Launch: a block for each row, of 1,024 threads for long rows and 128 for short ones. The first pass keeps a maximum and a sum
// that is relative to it in every thread (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018); the
// second goes backwards over the row, whose end is still in the cache. The order of sums depends on the sizes alone.
// cross_entropy_totals is one block of 256 threads, which adds up the rows' stats, always in one order.
#include "vec16.cuh"

struct CrossEntropyParams {
  bf16* logits;
  const int32_t* labels;
  // Null if there is none.
  const float* device_scale;
  float* stats;
  uint32_t vocab;
  int32_t ignore_index;
  float scale;
  float z_loss;
  // Whether rows of logits are whole numbers of aligned sixteen bytes.
  uint32_t aligned;
};

struct TotalsParams {
  const float* stats;
  // Loss and z.
  float* sums;
  // Labels and hits.
  int32_t* counts;
  uint32_t rows;
  // Whether the old content of `sums` and `counts` is added.
  uint32_t accumulate;
};

constexpr uint32_t LEN = VEC16_LEN<bf16>;
// Sixteen bytes of a thread that are on their way at one time, in the first pass and in the second.
constexpr uint32_t READS = 4;
constexpr uint32_t WRITES = 2;
constexpr float LOG2_E = 1.4426950408889634f;
#define MINUS_INFINITY (-bits_to_float(0x7f800000u))
#define NOT_A_NUMBER bits_to_float(0x7fc00000u)

DEVICE float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, shfl_xor(x, distance));
  return x;
}

DEVICE float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += shfl_xor(x, distance);
  return x;
}

// e^(x - max). A maximum of minus infinity stands for nothing but such: they give 0.
DEVICE float exponential(float x, float max) {
  return exp2_approx((x - (max == MINUS_INFINITY ? 0.0f : max)) * LOG2_E);
}

// A maximum, and the sum of exponentials relative to it. What is not a number reaches the sum alone.
struct Softmax {
  float max;
  float sum;
};

// The same relative to a maximum that is no smaller.
DEVICE float sum_relative_to(const Softmax& of, float max) {
  return of.sum * exponential(of.max, max);
}

// Of all lanes; every lane receives the same bits.
DEVICE Softmax over_warp(const Softmax& of) {
  const float max = warp_max(of.max);
  return {max, warp_sum(sum_relative_to(of, max))};
}

// LEN logits from `unit` times as many on; what is beyond the row is minus infinity.
template <bool ALIGNED>
DEVICE Vec16 load_logits(const bf16* row, uint32_t unit, const CrossEntropyParams& p) {
  constexpr uint32_t BEYOND = 0xff80;
  if constexpr (ALIGNED) {
    if (unit * LEN < p.vocab) return ((const Vec16*)row)[unit];
    return {{BEYOND << 16 | BEYOND, BEYOND << 16 | BEYOND, BEYOND << 16 | BEYOND, BEYOND << 16 | BEYOND}};
  } else {
    Vec16 logits;
#pragma unroll
    for (uint32_t i = 0; i < LEN / 2; ++i) {
      const uint32_t column = unit * LEN + 2 * i;
      const uint32_t low = column < p.vocab ? row[column] : BEYOND;
      const uint32_t high = column + 1 < p.vocab ? row[column + 1] : BEYOND;
      logits.words[i] = high << 16 | low;
    }
    return logits;
  }
}

template <uint32_t THREADS, bool ALIGNED>
DEVICE void cross_entropy(const CrossEntropyParams& p) {
  constexpr uint32_t WARPS = THREADS / 32;
  SHARED_MEMORY(shared);
  float* const maxima = (float*)shared;
  float* const sums = maxima + WARPS;
  float* const flags = sums + WARPS;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t units = (p.vocab + LEN - 1) / LEN;
  bf16* const row = p.logits + (uint64_t)blockIdx.x * p.vocab;
  Vec16* const stats = (Vec16*)p.stats + blockIdx.x;
  const int32_t label = p.labels[blockIdx.x];
  if (label == p.ignore_index) {
    const float zeros[LEN] = {};
    for (uint32_t unit = threadIdx.x; unit < units; unit += THREADS) {
      store_floats(row + unit * LEN, zeros, p.vocab - unit * LEN, ALIGNED);
    }
    if (threadIdx.x == 0) *stats = Vec16{};
    return;
  }
  const uint32_t target = (uint32_t)label;
  const float at_target = target < p.vocab ? bf16_to_float(row[target]) : NOT_A_NUMBER;

  Softmax softmax = {MINUS_INFINITY, 0.0f};
  for (uint32_t first = threadIdx.x; first < units; first += THREADS * READS) {
    Vec16 logits[READS];
#pragma unroll
    for (uint32_t i = 0; i < READS; ++i) logits[i] = load_logits<ALIGNED>(row, first + i * THREADS, p);
#pragma unroll
    for (uint32_t i = 0; i < READS; ++i) {
      float x[LEN];
      unpack(x, logits[i]);
      float max = softmax.max;
#pragma unroll
      for (uint32_t j = 0; j < LEN; ++j) max = fmaxf(max, x[j]);
      float sum = sum_relative_to(softmax, max);
#pragma unroll
      for (uint32_t j = 0; j < LEN; ++j) sum += exponential(x[j], max);
      softmax = {max, sum};
    }
  }
  softmax = over_warp(softmax);
  if (lane == 0) {
    maxima[warp] = softmax.max;
    sums[warp] = softmax.sum;
  }
  // Behind it, nobody reads logits that another thread writes.
  __syncthreads();
  softmax = {MINUS_INFINITY, 0.0f};
  if (lane < WARPS) softmax = {maxima[lane], sums[lane]};
  softmax = over_warp(softmax);

  const float log_sum = logf(softmax.sum);
  const float scale = p.device_scale == nullptr ? p.scale : p.scale * *p.device_scale;
  const float slope = 1.0f + 2.0f * p.z_loss * (softmax.max + log_sum);
  const float factor = target < p.vocab ? scale * slope / softmax.sum : NOT_A_NUMBER;
  // Whether the maximum is reached before the target.
  float earlier = 0.0f;
  constexpr uint32_t STEP = THREADS * WRITES;
  for (uint32_t step = (units + STEP - 1) / STEP; step > 0; --step) {
    const uint32_t first = (step - 1) * STEP + threadIdx.x;
    Vec16 logits[WRITES];
#pragma unroll
    for (uint32_t i = 0; i < WRITES; ++i) logits[i] = load_logits<ALIGNED>(row, first + i * THREADS, p);
#pragma unroll
    for (uint32_t i = 0; i < WRITES; ++i) {
      const uint32_t column = (first + i * THREADS) * LEN;
      if (column >= p.vocab) break;
      float x[LEN];
      unpack(x, logits[i]);
#pragma unroll
      for (uint32_t j = 0; j < LEN; ++j) {
        if (x[j] == softmax.max && column + j < target) earlier = 1.0f;
        x[j] = exponential(x[j], softmax.max) * factor;
        if (column + j == target) x[j] -= scale;
      }
      store_floats(row + column, x, p.vocab - column, ALIGNED);
    }
  }
  earlier = warp_max(earlier);
  if (lane == 0) flags[warp] = earlier;
  __syncthreads();
  if (warp > 0) return;
  earlier = warp_max(lane < WARPS ? flags[lane] : 0.0f);
  if (lane > 0) return;
  const float all = softmax.max + log_sum;
  const float hit = at_target == softmax.max && earlier == 0.0f ? 1.0f : 0.0f;
  // The maximum cancels before the logarithm is added.
  const float of_row[4] = {softmax.max - at_target + log_sum, p.z_loss * all * all, 1.0f, hit};
  *stats = pack(of_row);
}

template <uint32_t THREADS>
DEVICE void cross_entropy(const CrossEntropyParams& p) {
  if (p.aligned) {
    cross_entropy<THREADS, true>(p);
  } else {
    cross_entropy<THREADS, false>(p);
  }
}

KERNEL(cross_entropy_1024, CrossEntropyParams, 1024, 1) { cross_entropy<1024>(p); }
KERNEL(cross_entropy_128, CrossEntropyParams, 128, 8) { cross_entropy<128>(p); }

DEVICE void totals(const TotalsParams& p) {
  SHARED_MEMORY(shared);
  float* const of_warps = (float*)shared;
  float loss = 0.0f, z = 0.0f;
  uint32_t labels = 0, hits = 0;
  for (uint32_t row = threadIdx.x; row < p.rows; row += 256) {
    float of_row[4];
    unpack(of_row, ((const Vec16*)p.stats)[row]);
    loss += of_row[0];
    z += of_row[1];
    labels += of_row[2] != 0.0f;
    hits += of_row[3] != 0.0f;
  }
  // Sixteen bits at a time, so that floats hold their sums over the block exactly.
  const float parts[6] = {loss,
                          z,
                          (float)(labels & 0xffffu),
                          (float)(labels >> 16),
                          (float)(hits & 0xffffu),
                          (float)(hits >> 16)};
  for (uint32_t i = 0; i < 6; ++i) {
    const float sum = warp_sum(parts[i]);
    if (threadIdx.x % 32 == 0) of_warps[i * 8 + threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  float sums[6];
  for (uint32_t i = 0; i < 6; ++i) {
    sums[i] = of_warps[i * 8];
    for (uint32_t warp = 1; warp < 8; ++warp) sums[i] += of_warps[i * 8 + warp];
  }
  for (uint32_t i = 0; i < 2; ++i) {
    const int32_t count = (int32_t)((uint32_t)sums[2 + 2 * i] + ((uint32_t)sums[3 + 2 * i] << 16));
    p.sums[i] = p.accumulate ? p.sums[i] + sums[i] : sums[i];
    p.counts[i] = p.accumulate ? p.counts[i] + count : count;
  }
}

KERNEL(cross_entropy_totals, TotalsParams, 256, 1) { totals(p); }
