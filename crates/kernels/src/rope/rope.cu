// Bias and rotary position embedding of fused queries, keys and values, in place, forward and backward.
//
// Maths, for a row at position t and the pair c < head_dim / 2 of a query or key head, with x and y its elements c and
// c + head_dim / 2 after the bias was added:
//   forward   x' = x cos[t, c] - y sin[t, c],   y' = y cos[t, c] + x sin[t, c]
//   backward  the same with -sin, of gradients and without a bias
// Values get the bias alone. The gradient of the bias is the sum of what the backward leaves, before it is rounded, over rows:
//   partials[chunk, c] is that over the rows of a chunk, and column_sum.cu adds the chunks
//
// Layout: x (rows, (heads + 2 kv_heads) head_dim) of bf16, row-major: queries, keys, values; bias as a row of it; positions
// (rows) of i32; cos, sin (num_positions, head_dim / 2) of f32; partials (chunks, columns of x) of f32. A position that is not
// in the tables takes the nearest that is: nothing is read beyond them.
// Launch: (chunks, tiles of units) blocks of 8 warps. A unit is eight pairs of a head, of which each lane has one; it goes down
// the rows of the chunk as column_sum.cuh has it, with its bias or its sums in registers.
// Source: Su et al., "RoFormer", 2021; half-split layout as in modeling_qwen2.py of transformers.
#include "../column_sum/column_sum.cuh"

struct RopeParams {
  bf16* x;
  // Null if there is none; forward alone.
  const bf16* bias;
  const int32_t* positions;
  const float* cos;
  const float* sin;
  // Null if nobody asks; backward alone.
  float* partials;
  uint32_t rows;
  uint32_t rows_per_chunk;
  // Queries and keys.
  uint32_t rotated_heads;
  // All of which this launch has something to do with.
  uint32_t heads;
  uint32_t half;
  // Elements of a row of x.
  uint32_t cols;
  uint32_t num_positions;
  // Whether halves of heads are whole numbers of aligned sixteen bytes.
  uint32_t aligned;
};

constexpr uint32_t LEN = VEC16_LEN<bf16>;

// Where eight pairs are.
struct Unit {
  uint32_t head;
  // The first of them; beyond the head where there is none.
  uint32_t pair;
  // The column of its first element.
  uint32_t column;
};

DEVICE Unit unit_of(const RopeParams& p, uint32_t number) {
  const uint32_t of_head = (p.half + LEN - 1) / LEN;
  const uint32_t head = number / of_head, pair = number % of_head * LEN;
  return {head, head < p.heads ? pair : p.half, head * 2 * p.half + pair};
}

template <bool ALIGNED>
DEVICE void load_table(float (&values)[LEN], const float* from, uint32_t left) {
  float low[4], high[4];
  load_floats(low, from, left, ALIGNED);
  load_floats(high, from + 4, left > 4 ? left - 4 : 0, ALIGNED);
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    values[i] = low[i];
    values[4 + i] = high[i];
  }
}

template <bool BACKWARD, bool ALIGNED>
DEVICE void rope(const RopeParams& p) {
  const Unit unit = unit_of(p, blockIdx.y * 32 + threadIdx.x % 32);
  const bool is_rotated = unit.head < p.rotated_heads;
  float added[2][LEN] = {};
  if (unit.pair < p.half) {
    const uint32_t left = p.half - unit.pair;
    if (!BACKWARD && p.bias != nullptr) {
      load_floats(added[0], p.bias + unit.column, left, ALIGNED);
      load_floats(added[1], p.bias + unit.column + p.half, left, ALIGNED);
    }
    const uint32_t start = blockIdx.x * p.rows_per_chunk;
    const uint32_t end = p.rows - start < p.rows_per_chunk ? p.rows : start + p.rows_per_chunk;
    for (uint32_t row = start + threadIdx.x / 32; row < end; row += WARPS) {
      bf16* const to = p.x + (uint64_t)row * p.cols + unit.column;
      const int32_t position = max(0, min(p.positions[row], (int32_t)p.num_positions - 1));
      const uint64_t at = (uint64_t)position * p.half + unit.pair;
      // Values have no use for the tables, but without a branch all loads are on their way at one time.
      float x[2][LEN], cos[LEN], sin[LEN];
      load_floats(x[0], to, left, ALIGNED);
      load_floats(x[1], to + p.half, left, ALIGNED);
      load_table<ALIGNED>(cos, p.cos + at, left);
      load_table<ALIGNED>(sin, p.sin + at, left);
#pragma unroll
      for (uint32_t i = 0; i < LEN; ++i) {
        const float first = BACKWARD ? x[0][i] : x[0][i] + added[0][i];
        const float second = BACKWARD ? x[1][i] : x[1][i] + added[1][i];
        const float s = BACKWARD ? -sin[i] : sin[i];
        x[0][i] = is_rotated ? first * cos[i] - second * s : first;
        x[1][i] = is_rotated ? second * cos[i] + first * s : second;
      }
      if (BACKWARD) {
#pragma unroll
        for (uint32_t i = 0; i < LEN; ++i) {
          added[0][i] += x[0][i];
          added[1][i] += x[1][i];
        }
      }
      // The gradients of values stay as they are.
      if (!BACKWARD || is_rotated) {
        store_floats(to, x[0], left, ALIGNED);
        store_floats(to + p.half, x[1], left, ALIGNED);
      }
    }
  }
  if constexpr (BACKWARD) {
    if (p.partials == nullptr) return;
    SHARED_MEMORY(shared);
    float* const to = p.partials + (uint64_t)blockIdx.x * p.cols;
#pragma unroll
    for (uint32_t side = 0; side < 2; ++side) {
      const ColumnTotal total = add_warps(added[side], (float*)shared + side * WARPS * LEN * 32, blockIdx.y);
      // Eight columns of these stand for the pairs of a unit.
      const Unit from = unit_of(p, total.column / LEN);
      const uint32_t i = total.column % LEN;
      if (from.pair + i < p.half) to[from.column + i + side * p.half] = total.sum;
    }
  }
}

// Aligned rows have code of their own, whose loads nothing keeps apart.
template <bool BACKWARD>
DEVICE void rope(const RopeParams& p) {
  if (p.aligned) {
    rope<BACKWARD, true>(p);
  } else {
    rope<BACKWARD, false>(p);
  }
}

KERNEL(rope_forward, RopeParams, 256, 3) { rope<false>(p); }
KERNEL(rope_backward, RopeParams, 256, 3) { rope<true>(p); }
