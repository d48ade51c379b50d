// AdamW over flat buffers, and the norm of the gradient that clips it, without a word to the host between them.
//
// gradient_norm_partial, gradient_norm_finish
//   norm = scale sqrt(sum g^2), in f32 within a chunk of CHUNK elements and f64 over the chunks, always in one order
//   control = [norm, scale min(1, max_norm / (norm + 1e-6)), skip, 1 - beta1^step, 1 - beta2^step]
//   A norm that is not finite sets `skip` and does not count as a step.
// adamw_update, where `skip` is not set
//   g = clip grad,  m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
//   w = w (1 - lr decay) - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//   bf16 copy = w rounded,  ema = ema_decay ema + (1 - ema_decay) w
//   and grad = 0 in any case.
//
// Layout: w, grad, m, v, ema of f32 and the copy of bf16, n elements each, the last three optional as said; ranges: their
// boundaries (count + 1) of i64, multiples of 8, and the weight decay (count) of f32 of each.
// Launch: partial (chunks) and finish (1) blocks of 256 threads; update: a thread takes 8 elements.
// Source: Loshchilov and Hutter, 2019; torch.optim.AdamW and torch.nn.utils.clip_grad_norm_ for the order of operations.
#include "vec16.cuh"

struct GradientNorm {
  const float* grad;
  float* partials;
  int64_t len;
};

struct GradientNormFinish {
  const float* partials;
  // What gradients are multiplied by before anything else, on the device; null for 1.
  const float* scale;
  float* control;
  int32_t* step;
  int64_t count;
  double max_norm;
  double beta1;
  double beta2;
};

struct AdamwUpdate {
  float* w;
  float* grad;
  float* m;
  float* v;
  // Null if there is none.
  bf16* copy;
  float* ema;
  const int64_t* boundaries;
  const float* decays;
  const float* control;
  int64_t units;
  int32_t ranges;
  float lr;
  float beta1;
  float beta2;
  float eps;
  float ema_decay;
};

constexpr int THREADS = 256;
constexpr int64_t CHUNK = 65536;
// Elements of a thread of adamw_update.
constexpr int LEN = 8;
// Places in `control`.
constexpr int NORM = 0, CLIP = 1, SKIP = 2, CORRECTION1 = 3, CORRECTION2 = 4;

// Adds what the threads hold, halving their number each time; thread 0 receives the sum.
template <typename T>
DEVICE T add_threads(T* shared, T x) {
  shared[threadIdx.x] = x;
  __syncthreads();
  for (int distance = THREADS / 2; distance > 0; distance /= 2) {
    if (threadIdx.x < (uint32_t)distance) shared[threadIdx.x] += shared[threadIdx.x + distance];
    __syncthreads();
  }
  return shared[0];
}

KERNEL(gradient_norm_partial, GradientNorm, 256, 4) {
  SHARED_MEMORY(shared);
  const int64_t start = blockIdx.x * CHUNK;
  const int64_t end = start + CHUNK < p.len ? start + CHUNK : p.len;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t at = start + threadIdx.x * 4; at < end; at += THREADS * 4) {
    if (at + 4 <= end) {
      float g[4];
      unpack(g, *(const Vec16*)(p.grad + at));
#pragma unroll
      for (int i = 0; i < 4; i++) sum += g[i] * g[i];
    } else {
      for (int64_t rest = at; rest < end; rest++) sum += p.grad[rest] * p.grad[rest];
    }
  }
  const float total = add_threads((float*)shared, sum);
  if (threadIdx.x == 0) p.partials[blockIdx.x] = total;
}

KERNEL(gradient_norm_finish, GradientNormFinish, 256, 1) {
  SHARED_MEMORY(shared);
  double sum = 0.0;
  for (int64_t at = threadIdx.x; at < p.count; at += THREADS) sum += (double)p.partials[at];
  const double total = add_threads((double*)shared, sum);
  if (threadIdx.x != 0) return;
  const double scale = p.scale == nullptr ? 1.0 : (double)*p.scale;
  const double norm = sqrt(total) * fabs(scale);
  // Neither infinite nor not a number.
  const bool is_finite = norm <= 3.4028234663852886e38;
  const double clip = p.max_norm / (norm + 1e-6);
  p.control[NORM] = (float)norm;
  p.control[CLIP] = is_finite ? (float)(scale * (clip < 1.0 ? clip : 1.0)) : 0.0f;
  p.control[SKIP] = is_finite ? 0.0f : 1.0f;
  const int32_t step = *p.step + (is_finite ? 1 : 0);
  *p.step = step;
  p.control[CORRECTION1] = (float)(1.0 - pow(p.beta1, (double)step));
  p.control[CORRECTION2] = (float)(1.0 - pow(p.beta2, (double)step));
}

// The decay of the range that an element is in.
DEVICE float find_decay(const AdamwUpdate& p, int64_t element) {
  int low = 0, high = p.ranges;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (p.boundaries[middle] <= element) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return p.decays[low];
}

DEVICE void load_eight(float (&values)[LEN], const float* from) {
  float half[4];
  unpack(half, *(const Vec16*)from);
  for (int i = 0; i < 4; i++) values[i] = half[i];
  unpack(half, *(const Vec16*)(from + 4));
  for (int i = 0; i < 4; i++) values[4 + i] = half[i];
}

DEVICE void store_eight(float* to, const float (&values)[LEN]) {
  const float low[4] = {values[0], values[1], values[2], values[3]};
  const float high[4] = {values[4], values[5], values[6], values[7]};
  *(Vec16*)to = pack(low);
  *(Vec16*)(to + 4) = pack(high);
}

KERNEL(adamw_update, AdamwUpdate, 256, 2) {
  const int64_t unit = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (unit >= p.units) return;
  const int64_t at = unit * LEN;
  if (p.control[SKIP] == 0.0f) {
    const float clip = p.control[CLIP], correction1 = p.control[CORRECTION1], correction2 = p.control[CORRECTION2];
    const float keep = 1.0f - p.lr * find_decay(p, at);
    const float rate = p.lr / correction1, root = 1.0f / sqrtf(correction2);
    float w[LEN], g[LEN], m[LEN], v[LEN];
    load_eight(w, p.w + at);
    load_eight(g, p.grad + at);
    load_eight(m, p.m + at);
    load_eight(v, p.v + at);
#pragma unroll
    for (int i = 0; i < LEN; i++) {
      g[i] *= clip;
      m[i] = p.beta1 * m[i] + (1.0f - p.beta1) * g[i];
      v[i] = p.beta2 * v[i] + (1.0f - p.beta2) * g[i] * g[i];
      w[i] = w[i] * keep - rate * m[i] / (sqrtf(v[i]) * root + p.eps);
    }
    store_eight(p.w + at, w);
    store_eight(p.m + at, m);
    store_eight(p.v + at, v);
    if (p.copy != nullptr) *(Vec16*)(p.copy + at) = pack(w);
    if (p.ema != nullptr) {
      float ema[LEN];
      load_eight(ema, p.ema + at);
#pragma unroll
      for (int i = 0; i < LEN; i++) ema[i] = p.ema_decay * ema[i] + (1.0f - p.ema_decay) * w[i];
      store_eight(p.ema + at, ema);
    }
  }
  const float zeros[LEN] = {};
  store_eight(p.grad + at, zeros);
}
