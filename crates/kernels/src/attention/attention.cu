// Softmax attention with grouped queries, forward and backward, for bf16 on the tensor cores of compute capability 8.0 and
// later (mma.sync, cp.async).
//
// Maths, for one query head; s = scale * q k^T, i a query, j a key that it sees:
//   forward   lse_i = ln sum_j exp(s_ij),  p_ij = exp(s_ij - lse_i),  out_i = sum_j p_ij v_j
//   backward  delta_i = out_i . dout_i,  ds_ij = p_ij (dout_i . v_j - delta_i)
//             dv_j = sum_i p_ij dout_i,  dk_j = scale sum_i ds_ij q_i,  dq_i = scale sum_j ds_ij k_j
//   Under the causal mask query i sees the keys j <= i + kv_len - q_len.
// Precision: products of bf16 are summed in f32, softmax is f32; p and ds are rounded to bf16 before they are multiplied.
//
// Layout: element (sequence b, head h, row i, channel c) of a tensor is at b * strides.batch + h * strides.head + i *
// strides.row + c. Packed sequences lie one after another in the rows of one batch entry: the batch stride is 0 and
// `cu_seqlens` says where each begins. head_dim is a multiple of 8; in shared memory it is filled up with zeros to the D of
// the kernel (64, 80 or 128). lse and delta are f32, row i of head h at b * q_rows.batch + h * q_rows.head + i.
//
// Shared memory: a row takes D + 8 elements, an odd number of 16-byte units, so that the eight rows of an 8x8 matrix begin in
// different banks and ldmatrix has no conflicts.
//
// Launch: grid (blocks of rows, query heads, sequences).
//   attention_forward        4 warps of 32 query rows; keys in blocks of 64 from the last to the first, softmax kept running
//   attention_delta          16 lanes a row
//   attention_dkdv           8 warps of 16 keys; queries in blocks of 64. Works on the transposed scores, so that p and ds are
//                            left operands as they come out of the registers. Writes dk and dv of each query head in f32
//   attention_group_sum      adds the query heads that share a key head, in order
//   attention_dq             4 warps of 16 query rows, keys in blocks of 64
// No sum depends on the order in which blocks run: the backward gives the same bits every time. It pays for that with the
// scores computed twice, 7 products where one kernel with atomic additions to dq has 5.
//
// Source: Dao, FlashAttention-2 (2023), for the order of the loops and the running softmax.
#include "vec16.cuh"

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
#define MINUS_INFINITY (-bits_to_float(0x7f800000u))

// In elements.
struct Strides {
  int64_t batch, head, row;
};

// Where rows of one number each lie.
struct Rows {
  int64_t batch, head;
};

struct AttentionForward {
  const bf16* q;
  const bf16* k;
  const bf16* v;
  bf16* out;
  float* lse;
  // The first row of each packed sequence and the end of the last; null if all sequences are of one length.
  const int32_t* cu_seqlens;
  Strides q_strides, k_strides, v_strides, out_strides;
  Rows q_rows;
  // Of every sequence; of all together if they are packed.
  int32_t q_len, kv_len;
  int32_t head_dim;
  // Query heads to a key head.
  int32_t group;
  float scale;
  int32_t unused;
};

struct AttentionBackward {
  const bf16* q;
  const bf16* k;
  const bf16* v;
  const bf16* dout;
  const float* lse;
  const float* delta;
  bf16* dq;
  // (query heads, keys, head_dim) for each batch entry.
  float* dk_heads;
  float* dv_heads;
  const int32_t* cu_seqlens;
  Strides q_strides, k_strides, v_strides, dout_strides, dq_strides;
  Rows q_rows, kv_rows;
  int32_t q_len, kv_len;
  int32_t head_dim;
  int32_t group;
  float scale;
  int32_t unused;
};

struct AttentionDelta {
  const bf16* out;
  const bf16* dout;
  float* delta;
  Strides out_strides, dout_strides;
  Rows q_rows;
  int32_t q_len;
  int32_t head_dim;
};

struct AttentionGroupSum {
  const float* dk_heads;
  const float* dv_heads;
  bf16* dk;
  bf16* dv;
  Strides dk_strides, dv_strides;
  Rows kv_rows;
  int32_t kv_len;
  int32_t head_dim;
  int32_t group;
  int32_t unused;
};

constexpr int WARP = 32;

// Two floats that are stored at once.
struct alignas(8) Pair {
  float first, second;
};

DEVICE int min_int(int left, int right) { return left < right ? left : right; }
DEVICE int max_int(int left, int right) { return left > right ? left : right; }

// Where a sequence begins in the rows of its batch entry, and how long it is.
struct Sequence {
  int start;
  int q_len;
  int kv_len;
};

// What `cu_seqlens` holds is not trusted to lie within the tensors.
DEVICE Sequence find_sequence(const int32_t* cu_seqlens, int q_len, int kv_len) {
  if (cu_seqlens == nullptr) return {0, q_len, kv_len};
  const int start = min_int(max_int(cu_seqlens[blockIdx.z], 0), q_len);
  const int end = min_int(max_int(cu_seqlens[blockIdx.z + 1], start), q_len);
  return {start, end - start, end - start};
}

// The rows of one head of one sequence.
template <typename T>
struct Matrix {
  T* rows;
  int64_t stride;
};

template <typename T>
DEVICE Matrix<T> find_matrix(T* tensor, const Strides& strides, int head, const Sequence& sequence) {
  return {tensor + blockIdx.z * strides.batch + head * strides.head + sequence.start * strides.row, strides.row};
}

DEVICE int64_t find_row(const Rows& rows, int head, const Sequence& sequence) {
  return blockIdx.z * rows.batch + head * rows.head + sequence.start;
}

// A tile of rows of D channels in shared memory.
template <int D>
struct Tile {
  static constexpr int STRIDE = D + 8;

  bf16* elements;

  DEVICE bf16* at(int row, int col) const { return elements + row * STRIDE + col; }

  // The left operand of rows row.. and columns col.. (16x16).
  DEVICE void load_a(uint32_t (&a)[4], int row, int col) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(a, at(row + lane % 16, col + lane / 16 * 8));
  }

  // The right operands whose columns are the rows row.. of the tile (16), and whose rows are its columns col.. (16):
  // b[0], b[1] of the first eight, b[2], b[3] of the others.
  DEVICE void load_b(uint32_t (&b)[4], int row, int col) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(b, at(row + lane / 16 * 8 + lane % 8, col + lane / 8 % 2 * 8));
  }

  // The right operands whose rows are the rows row.. of the tile, and whose columns are its columns col...
  DEVICE void load_b_trans(uint32_t (&b)[4], int row, int col) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(b, at(row + lane % 16, col + lane / 16 * 8));
  }

  // Starts copying ROWS rows from `first` on; what lies beyond `len` rows or `head_dim` channels becomes 0.
  template <int ROWS, int THREADS>
  DEVICE void start_load(const Matrix<const bf16>& from, int first, int len, int head_dim) const {
    // Threads of a row: one for each 16 bytes; 6 of 16 have none where D is 80.
    constexpr int GROUP = D == 64 ? 8 : 16;
    constexpr int STEP = THREADS / GROUP;
    static_assert(ROWS % STEP == 0, "every thread copies as often");
    const int row = threadIdx.x / GROUP, col = threadIdx.x % GROUP * 8;
    if (col >= D) return;
    const bf16* source = from.rows + (first + row) * from.stride + col;
#pragma unroll
    for (int start = 0; start < ROWS; start += STEP) {
      const bool in_bounds = first + row + start < len && col < head_dim;
      cp_async_16(at(row + start, col), source, in_bounds);
      source += STEP * from.stride;
    }
  }

  // Writes a warp's accumulators of 16 rows from `row` on, times a factor for its two rows.
  DEVICE void store(const float (&acc)[D / 8][4], int row, float upper, float lower) const {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      const int col = n * 8 + lane % 4 * 2;
      *(uint32_t*)at(row + lane / 4, col) = pack_bf16(acc[n][0] * upper, acc[n][1] * upper);
      *(uint32_t*)at(row + lane / 4 + 8, col) = pack_bf16(acc[n][2] * lower, acc[n][3] * lower);
    }
  }

  // Copies a warp's ROWS rows from `row` of the tile on to rows `first`.. in global memory.
  template <int ROWS>
  DEVICE void copy_out(const Matrix<bf16>& to, int row, int first, int len, int head_dim) const {
    constexpr int UNITS = D / 8;
    const int lane = threadIdx.x % WARP;
#pragma unroll 4
    for (int index = lane; index < ROWS * UNITS; index += WARP) {
      const int offset = index / UNITS, col = index % UNITS * 8;
      if (first + offset < len && col < head_dim) {
        *(Vec16*)(to.rows + (first + offset) * to.stride + col) = *(const Vec16*)at(row + offset, col);
      }
    }
  }
};

// The left operand of columns 16 * step.. of an accumulator: where PTX puts the results is where it wants the next input.
template <int N>
DEVICE void accumulators_to_a(uint32_t (&a)[4], const float (&acc)[N][4], int step) {
  a[0] = pack_bf16(acc[2 * step][0], acc[2 * step][1]);
  a[1] = pack_bf16(acc[2 * step][2], acc[2 * step][3]);
  a[2] = pack_bf16(acc[2 * step + 1][0], acc[2 * step + 1][1]);
  a[3] = pack_bf16(acc[2 * step + 1][2], acc[2 * step + 1][3]);
}

DEVICE float quad_max(float x) {
  x = fmaxf(x, shfl_xor(x, 1));
  return fmaxf(x, shfl_xor(x, 2));
}

DEVICE float quad_sum(float x) {
  x += shfl_xor(x, 1);
  return x + shfl_xor(x, 2);
}

// ---------------------------------------------------------------------------------------------------------------------

constexpr int FORWARD_WARPS = 4;
constexpr int FORWARD_THREADS = FORWARD_WARPS * WARP;
// 16-row tiles of a warp: each right operand is loaded once for both.
constexpr int FORWARD_TILES = 2;
constexpr int FORWARD_ROWS = FORWARD_WARPS * FORWARD_TILES * 16;
constexpr int FORWARD_KEYS = 64;

// The running softmax of a warp's 16 rows; a thread holds rows lane / 4 and lane / 4 + 8.
struct RunningSoftmax {
  // The largest score so far, before scaling.
  float max[2];
  // The sum of this thread's columns.
  float sum[2];

  // Turns scores to exp(scale * (score - max)); `correction` is what earlier sums are to be multiplied by.
  template <int N>
  DEVICE void update(float (&scores)[N][4], float scale_log2, float (&correction)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float larger = max[half];
#pragma unroll
      for (int n = 0; n < N; n++) larger = fmaxf(larger, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      larger = quad_max(larger);
      // A row that has seen no key yet: any finite number does.
      const float offset = larger == MINUS_INFINITY ? 0.0f : larger * scale_log2;
      correction[half] = exp2_approx(max[half] * scale_log2 - offset);
      max[half] = larger;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < N; n++) {
#pragma unroll
        for (int col = 0; col < 2; col++) {
          float& score = scores[n][2 * half + col];
          score = exp2_approx(score * scale_log2 - offset);
          total += score;
        }
      }
      sum[half] = sum[half] * correction[half] + total;
    }
  }
};

template <int D, bool CAUSAL>
DEVICE void attention_forward(const AttentionForward& p) {
  SHARED_MEMORY(memory);
  const Tile<D> q_tile = {(bf16*)memory};
  const Tile<D> k_tile = {q_tile.at(FORWARD_ROWS, 0)};
  const Tile<D> v_tile = {k_tile.at(FORWARD_KEYS, 0)};

  const Sequence sequence = find_sequence(p.cu_seqlens, p.q_len, p.kv_len);
  // Under the causal mask the last rows have the most to do: they begin first.
  const int first_row = (gridDim.x - 1 - blockIdx.x) * FORWARD_ROWS;
  if (first_row >= sequence.q_len) return;
  const int head = blockIdx.y, kv_head = head / p.group;
  const Matrix<const bf16> q = find_matrix(p.q, p.q_strides, head, sequence);
  const Matrix<const bf16> k = find_matrix(p.k, p.k_strides, kv_head, sequence);
  const Matrix<const bf16> v = find_matrix(p.v, p.v_strides, kv_head, sequence);

  // Row i sees the keys up to i + diagonal.
  const int diagonal = sequence.kv_len - sequence.q_len;
  const int num_keys =
      CAUSAL ? min_int(sequence.kv_len, first_row + FORWARD_ROWS + diagonal) : sequence.kv_len;
  const int num_blocks = (num_keys + FORWARD_KEYS - 1) / FORWARD_KEYS;

  const int lane = threadIdx.x % WARP;
  // Of the block's rows, those of this warp begin here.
  const int warp_row = threadIdx.x / WARP * FORWARD_TILES * 16;
  const float scale_log2 = p.scale * LOG2_E;
  float out[FORWARD_TILES][D / 8][4] = {};
  RunningSoftmax softmax[FORWARD_TILES];
#pragma unroll
  for (int tile = 0; tile < FORWARD_TILES; tile++) {
    softmax[tile] = {{MINUS_INFINITY, MINUS_INFINITY}, {0.0f, 0.0f}};
  }

  q_tile.template start_load<FORWARD_ROWS, FORWARD_THREADS>(q, first_row, sequence.q_len, p.head_dim);
  if (num_blocks > 0) {
    const int last_key = (num_blocks - 1) * FORWARD_KEYS;
    k_tile.template start_load<FORWARD_KEYS, FORWARD_THREADS>(k, last_key, sequence.kv_len, p.head_dim);
  }
  cp_async_commit();

  for (int block = num_blocks - 1; block >= 0; block--) {
    const int first_key = block * FORWARD_KEYS;
    // The keys (and queries) are there, and nobody multiplies by the last block's values any more.
    cp_async_wait<0>();
    __syncthreads();
    v_tile.template start_load<FORWARD_KEYS, FORWARD_THREADS>(v, first_key, sequence.kv_len, p.head_dim);
    cp_async_commit();

    float scores[FORWARD_TILES][FORWARD_KEYS / 8][4] = {};
// Whole, this loop wants more registers than there are where D is 128.
#pragma unroll 2
    for (int step = 0; step < D / 16; step++) {
      uint32_t a[FORWARD_TILES][4];
#pragma unroll
      for (int tile = 0; tile < FORWARD_TILES; tile++) q_tile.load_a(a[tile], warp_row + tile * 16, step * 16);
#pragma unroll
      for (int n = 0; n < FORWARD_KEYS / 16; n++) {
        uint32_t b[4];
        k_tile.load_b(b, n * 16, step * 16);
#pragma unroll
        for (int tile = 0; tile < FORWARD_TILES; tile++) {
          mma_m16n8k16(scores[tile][2 * n], a[tile], b[0], b[1]);
          mma_m16n8k16(scores[tile][2 * n + 1], a[tile], b[2], b[3]);
        }
      }
    }

    // The values are there, and nobody multiplies by this block's keys any more.
    cp_async_wait<0>();
    __syncthreads();
    if (block > 0) {
      k_tile.template start_load<FORWARD_KEYS, FORWARD_THREADS>(k, first_key - FORWARD_KEYS, sequence.kv_len, p.head_dim);
    }
    cp_async_commit();

    const int end_key = first_key + FORWARD_KEYS;
    if (end_key > sequence.kv_len || (CAUSAL && end_key - 1 > first_row + warp_row + diagonal)) {
#pragma unroll
      for (int tile = 0; tile < FORWARD_TILES; tile++) {
#pragma unroll
        for (int n = 0; n < FORWARD_KEYS / 8; n++) {
#pragma unroll
          for (int element = 0; element < 4; element++) {
            const int key = first_key + n * 8 + lane % 4 * 2 + element % 2;
            const int row = first_row + warp_row + tile * 16 + lane / 4 + element / 2 * 8;
            const bool hidden = key >= sequence.kv_len || (CAUSAL && key > row + diagonal);
            if (hidden) scores[tile][n][element] = MINUS_INFINITY;
          }
        }
      }
    }

#pragma unroll
    for (int tile = 0; tile < FORWARD_TILES; tile++) {
      float correction[2];
      softmax[tile].update(scores[tile], scale_log2, correction);
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int element = 0; element < 4; element++) out[tile][n][element] *= correction[element / 2];
      }
    }
#pragma unroll
    for (int step = 0; step < FORWARD_KEYS / 16; step++) {
      uint32_t a[FORWARD_TILES][4];
#pragma unroll
      for (int tile = 0; tile < FORWARD_TILES; tile++) accumulators_to_a(a[tile], scores[tile], step);
#pragma unroll
      for (int n = 0; n < D / 16; n++) {
        uint32_t b[4];
        v_tile.load_b_trans(b, step * 16, n * 16);
#pragma unroll
        for (int tile = 0; tile < FORWARD_TILES; tile++) {
          mma_m16n8k16(out[tile][2 * n], a[tile], b[0], b[1]);
          mma_m16n8k16(out[tile][2 * n + 1], a[tile], b[2], b[3]);
        }
      }
    }
  }
  if (num_blocks == 0) {
    // Nobody has waited for the queries, whose place the result goes through.
    cp_async_wait<0>();
    __syncthreads();
  }

  float* lse = p.lse + find_row(p.q_rows, head, sequence);
#pragma unroll
  for (int tile = 0; tile < FORWARD_TILES; tile++) {
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float sum = quad_sum(softmax[tile].sum[half]);
      const int row = first_row + warp_row + tile * 16 + lane / 4 + half * 8;
      // A row without keys is 0, and the logarithm of its sum minus infinity.
      inverse[half] = sum == 0.0f ? 0.0f : 1.0f / sum;
      if (row < sequence.q_len && lane % 4 == 0) {
        lse[row] = sum == 0.0f ? MINUS_INFINITY : softmax[tile].max[half] * p.scale + logf(sum);
      }
    }
    // The queries were last read before the last barrier: their place is free.
    q_tile.store(out[tile], warp_row + tile * 16, inverse[0], inverse[1]);
  }
  __syncwarp();
  const Matrix<bf16> to = find_matrix(p.out, p.out_strides, head, sequence);
  q_tile.template copy_out<FORWARD_TILES * 16>(to, warp_row, first_row + warp_row, sequence.q_len, p.head_dim);
}

// ---------------------------------------------------------------------------------------------------------------------

constexpr int DELTA_THREADS = 128;
// Lanes of a row: 16 bytes each of at most 128 channels.
constexpr int DELTA_LANES = 16;

KERNEL(attention_delta, AttentionDelta, 128, 1) {
  const int row = blockIdx.x * (DELTA_THREADS / DELTA_LANES) + threadIdx.x / DELTA_LANES;
  const int head = blockIdx.y, col = threadIdx.x % DELTA_LANES * 8;
  const bool in_bounds = row < p.q_len;
  float sum = 0.0f;
  if (in_bounds && col < p.head_dim) {
    const Sequence whole = {0, 0, 0};
    const Matrix<const bf16> out = find_matrix(p.out, p.out_strides, head, whole);
    const Matrix<const bf16> dout = find_matrix(p.dout, p.dout_strides, head, whole);
    float left[8], right[8];
    unpack(left, *(const Vec16*)(out.rows + row * out.stride + col));
    unpack(right, *(const Vec16*)(dout.rows + row * dout.stride + col));
#pragma unroll
    for (int i = 0; i < 8; i++) sum += left[i] * right[i];
  }
#pragma unroll
  for (int distance = DELTA_LANES / 2; distance > 0; distance /= 2) sum += shfl_xor(sum, distance);
  if (in_bounds && col == 0) p.delta[blockIdx.z * p.q_rows.batch + head * p.q_rows.head + row] = sum;
}

// ---------------------------------------------------------------------------------------------------------------------

constexpr int DKDV_WARPS = 8;
constexpr int DKDV_THREADS = DKDV_WARPS * WARP;
constexpr int DKDV_KEYS = DKDV_WARPS * 16;
constexpr int DKDV_ROWS = 64;

// The queries of one step of attention_dkdv.
template <int D>
struct Queries {
  Tile<D> q, dout;
  float* lse;
  float* delta;

  static constexpr int BYTES = 2 * DKDV_ROWS * Tile<D>::STRIDE * (int)sizeof(bf16) + 2 * DKDV_ROWS * (int)sizeof(float);

  DEVICE static Queries at(unsigned char* memory) {
    const Tile<D> q = {(bf16*)memory};
    const Tile<D> dout = {q.at(DKDV_ROWS, 0)};
    float* lse = (float*)dout.at(DKDV_ROWS, 0);
    return {q, dout, lse, lse + DKDV_ROWS};
  }

  DEVICE void start_load(const AttentionBackward& p, const Matrix<const bf16>& from_q, const Matrix<const bf16>& from_dout,
                         int64_t numbers, int first_row, int len) const {
    q.template start_load<DKDV_ROWS, DKDV_THREADS>(from_q, first_row, len, p.head_dim);
    dout.template start_load<DKDV_ROWS, DKDV_THREADS>(from_dout, first_row, len, p.head_dim);
    if (threadIdx.x < 2 * DKDV_ROWS) {
      const int offset = threadIdx.x % DKDV_ROWS;
      const float* from = threadIdx.x < DKDV_ROWS ? p.lse : p.delta;
      const bool in_bounds = first_row + offset < len;
      cp_async_4(lse + threadIdx.x, from + numbers + first_row + offset, in_bounds);
    }
  }
};

template <int D, bool CAUSAL>
DEVICE void attention_dkdv(const AttentionBackward& p) {
  SHARED_MEMORY(memory);
  const Tile<D> k_tile = {(bf16*)memory};
  const Tile<D> v_tile = {k_tile.at(DKDV_KEYS, 0)};
  // Two blocks of queries: the next is on its way while this one is worked on.
  unsigned char* const queries = (unsigned char*)v_tile.at(DKDV_KEYS, 0);

  const Sequence sequence = find_sequence(p.cu_seqlens, p.q_len, p.kv_len);
  const int first_key = blockIdx.x * DKDV_KEYS;
  if (first_key >= sequence.kv_len) return;
  const int head = blockIdx.y, kv_head = head / p.group;
  const Matrix<const bf16> q = find_matrix(p.q, p.q_strides, head, sequence);
  const Matrix<const bf16> k = find_matrix(p.k, p.k_strides, kv_head, sequence);
  const Matrix<const bf16> v = find_matrix(p.v, p.v_strides, kv_head, sequence);
  const Matrix<const bf16> dout = find_matrix(p.dout, p.dout_strides, head, sequence);
  const int64_t numbers = find_row(p.q_rows, head, sequence);

  const int diagonal = sequence.kv_len - sequence.q_len;
  const int num_blocks = (sequence.q_len + DKDV_ROWS - 1) / DKDV_ROWS;
  // Rows before first_key - diagonal see none of these keys.
  const int first_block = CAUSAL ? max_int(first_key - diagonal, 0) / DKDV_ROWS : 0;

  const int lane = threadIdx.x % WARP;
  const int warp_key = threadIdx.x / WARP * 16;
  const float scale_log2 = p.scale * LOG2_E;
  float dk[D / 8][4] = {};
  float dv[D / 8][4] = {};

  k_tile.template start_load<DKDV_KEYS, DKDV_THREADS>(k, first_key, sequence.kv_len, p.head_dim);
  v_tile.template start_load<DKDV_KEYS, DKDV_THREADS>(v, first_key, sequence.kv_len, p.head_dim);
  if (first_block < num_blocks) {
    const Queries<D> first = Queries<D>::at(queries + first_block % 2 * Queries<D>::BYTES);
    first.start_load(p, q, dout, numbers, first_block * DKDV_ROWS, sequence.q_len);
  }
  cp_async_commit();

  for (int block = first_block; block < num_blocks; block++) {
    const int first_row = block * DKDV_ROWS;
    if (block + 1 < num_blocks) {
      const Queries<D> next = Queries<D>::at(queries + (block + 1) % 2 * Queries<D>::BYTES);
      next.start_load(p, q, dout, numbers, first_row + DKDV_ROWS, sequence.q_len);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const Queries<D> now = Queries<D>::at(queries + block % 2 * Queries<D>::BYTES);

    // Transposed: row = key, column = query.
    float scores[DKDV_ROWS / 8][4] = {};
    float dp[DKDV_ROWS / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
      uint32_t keys[4], values[4];
      k_tile.load_a(keys, warp_key, step * 16);
      v_tile.load_a(values, warp_key, step * 16);
#pragma unroll
      for (int n = 0; n < DKDV_ROWS / 16; n++) {
        uint32_t b[4];
        now.q.load_b(b, n * 16, step * 16);
        mma_m16n8k16(scores[2 * n], keys, b[0], b[1]);
        mma_m16n8k16(scores[2 * n + 1], keys, b[2], b[3]);
        now.dout.load_b(b, n * 16, step * 16);
        mma_m16n8k16(dp[2 * n], values, b[0], b[1]);
        mma_m16n8k16(dp[2 * n + 1], values, b[2], b[3]);
      }
    }

    // Queries beyond the last are zeros, and so are their lse and delta: p is 1, but what it is multiplied by is 0.
    const bool is_masked = CAUSAL && first_key + warp_key + 15 > first_row + diagonal;
#pragma unroll
    for (int n = 0; n < DKDV_ROWS / 8; n++) {
      const int col = n * 8 + lane % 4 * 2;
#pragma unroll
      for (int element = 0; element < 4; element++) {
        const int offset = col + element % 2;
        const float exponent = scores[n][element] * scale_log2 - now.lse[offset] * LOG2_E;
        const int key = first_key + warp_key + lane / 4 + element / 2 * 8;
        const bool hidden = is_masked && key > first_row + offset + diagonal;
        const float probability = hidden ? 0.0f : exp2_approx(exponent);
        scores[n][element] = probability;
        dp[n][element] = probability * (dp[n][element] - now.delta[offset]);
      }
    }

#pragma unroll
    for (int step = 0; step < DKDV_ROWS / 16; step++) {
      uint32_t probabilities[4], ds[4];
      accumulators_to_a(probabilities, scores, step);
      accumulators_to_a(ds, dp, step);
#pragma unroll
      for (int n = 0; n < D / 16; n++) {
        uint32_t b[4];
        now.dout.load_b_trans(b, step * 16, n * 16);
        mma_m16n8k16(dv[2 * n], probabilities, b[0], b[1]);
        mma_m16n8k16(dv[2 * n + 1], probabilities, b[2], b[3]);
        now.q.load_b_trans(b, step * 16, n * 16);
        mma_m16n8k16(dk[2 * n], ds, b[0], b[1]);
        mma_m16n8k16(dk[2 * n + 1], ds, b[2], b[3]);
      }
    }
    // The next but one goes where this one is.
    __syncthreads();
  }
  // Keys that no query sees have waited for nothing.
  cp_async_wait<0>();

  const int64_t first = find_row(p.kv_rows, head, sequence) + first_key + warp_key;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = lane / 4 + half * 8;
    if (first_key + warp_key + row >= sequence.kv_len) continue;
    float* dk_row = p.dk_heads + (first + row) * p.head_dim;
    float* dv_row = p.dv_heads + (first + row) * p.head_dim;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      if (n * 8 >= p.head_dim) continue;
      const int col = n * 8 + lane % 4 * 2;
      *(Pair*)(dk_row + col) = {dk[n][2 * half] * p.scale, dk[n][2 * half + 1] * p.scale};
      *(Pair*)(dv_row + col) = {dv[n][2 * half], dv[n][2 * half + 1]};
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------

constexpr int GROUP_SUM_THREADS = 256;

DEVICE Vec16 sum_heads(const float* first, int64_t head_stride, int group) {
  float sums[8] = {};
  for (int head = 0; head < group; head++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float four[4];
      unpack(four, *(const Vec16*)(first + head * head_stride + half * 4));
#pragma unroll
      for (int i = 0; i < 4; i++) sums[half * 4 + i] += four[i];
    }
  }
  return pack(sums);
}

// Grid (16-byte units of all rows, key heads, sequences; packed ones count as one).
KERNEL(attention_group_sum, AttentionGroupSum, 256, 1) {
  const int units = p.head_dim / 8;
  const int64_t index = (int64_t)blockIdx.x * GROUP_SUM_THREADS + threadIdx.x;
  const int64_t row = index / units;
  if (row >= p.kv_len) return;
  const int col = (int)(index % units) * 8, kv_head = blockIdx.y;
  const int64_t head_row = blockIdx.z * p.kv_rows.batch + (int64_t)kv_head * p.group * p.kv_rows.head + row;
  const int64_t from = head_row * p.head_dim + col, head_stride = p.kv_rows.head * p.head_dim;
  const Strides dk = p.dk_strides, dv = p.dv_strides;
  *(Vec16*)(p.dk + blockIdx.z * dk.batch + kv_head * dk.head + row * dk.row + col) =
      sum_heads(p.dk_heads + from, head_stride, p.group);
  *(Vec16*)(p.dv + blockIdx.z * dv.batch + kv_head * dv.head + row * dv.row + col) =
      sum_heads(p.dv_heads + from, head_stride, p.group);
}

// ---------------------------------------------------------------------------------------------------------------------

constexpr int DQ_WARPS = 4;
constexpr int DQ_THREADS = DQ_WARPS * WARP;
constexpr int DQ_ROWS = DQ_WARPS * 16;
constexpr int DQ_KEYS = 64;

template <int D, bool CAUSAL>
DEVICE void attention_dq(const AttentionBackward& p) {
  SHARED_MEMORY(memory);
  // Two blocks of keys and values: the next is on its way while this one is worked on.
  constexpr int TILE = DQ_KEYS * Tile<D>::STRIDE;
  bf16* const tiles = (bf16*)memory;
  static_assert(DQ_ROWS == DQ_KEYS, "queries pass through the place of keys");

  const Sequence sequence = find_sequence(p.cu_seqlens, p.q_len, p.kv_len);
  const int first_row = (gridDim.x - 1 - blockIdx.x) * DQ_ROWS;
  if (first_row >= sequence.q_len) return;
  const int head = blockIdx.y, kv_head = head / p.group;
  const Matrix<const bf16> k = find_matrix(p.k, p.k_strides, kv_head, sequence);
  const Matrix<const bf16> v = find_matrix(p.v, p.v_strides, kv_head, sequence);

  const int diagonal = sequence.kv_len - sequence.q_len;
  const int num_keys = CAUSAL ? min_int(sequence.kv_len, first_row + DQ_ROWS + diagonal) : sequence.kv_len;
  const int num_blocks = (num_keys + DQ_KEYS - 1) / DQ_KEYS;

  const int lane = threadIdx.x % WARP;
  const int warp_row = threadIdx.x / WARP * 16;
  const float scale_log2 = p.scale * LOG2_E;

  // The queries and the gradients of their outputs stay in registers.
  uint32_t q[D / 16][4], dout[D / 16][4];
  const Tile<D> q_tile = {tiles}, dout_tile = {tiles + TILE};
  q_tile.template start_load<DQ_ROWS, DQ_THREADS>(find_matrix(p.q, p.q_strides, head, sequence), first_row,
                                                  sequence.q_len, p.head_dim);
  dout_tile.template start_load<DQ_ROWS, DQ_THREADS>(find_matrix(p.dout, p.dout_strides, head, sequence), first_row,
                                                     sequence.q_len, p.head_dim);
  cp_async_commit();
  const int64_t numbers = find_row(p.q_rows, head, sequence);
  float lse_log2[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = first_row + warp_row + lane / 4 + half * 8;
    const bool in_bounds = row < sequence.q_len;
    lse_log2[half] = in_bounds ? p.lse[numbers + row] * LOG2_E : 0.0f;
    delta[half] = in_bounds ? p.delta[numbers + row] : 0.0f;
  }
  cp_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int step = 0; step < D / 16; step++) {
    q_tile.load_a(q[step], warp_row, step * 16);
    dout_tile.load_a(dout[step], warp_row, step * 16);
  }
  __syncthreads();

  float dq[D / 8][4] = {};
  if (num_blocks > 0) {
    const Tile<D> k_first = {tiles}, v_first = {tiles + TILE};
    k_first.template start_load<DQ_KEYS, DQ_THREADS>(k, 0, sequence.kv_len, p.head_dim);
    v_first.template start_load<DQ_KEYS, DQ_THREADS>(v, 0, sequence.kv_len, p.head_dim);
  }
  cp_async_commit();

  for (int block = 0; block < num_blocks; block++) {
    const int first_key = block * DQ_KEYS;
    if (block + 1 < num_blocks) {
      bf16* const next = tiles + (block + 1) % 2 * 2 * TILE;
      const Tile<D> k_next = {next}, v_next = {next + TILE};
      k_next.template start_load<DQ_KEYS, DQ_THREADS>(k, first_key + DQ_KEYS, sequence.kv_len, p.head_dim);
      v_next.template start_load<DQ_KEYS, DQ_THREADS>(v, first_key + DQ_KEYS, sequence.kv_len, p.head_dim);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    bf16* const here = tiles + block % 2 * 2 * TILE;
    const Tile<D> k_tile = {here}, v_tile = {here + TILE};

    float scores[DQ_KEYS / 8][4] = {};
    float dp[DQ_KEYS / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
#pragma unroll
      for (int n = 0; n < DQ_KEYS / 16; n++) {
        uint32_t b[4];
        k_tile.load_b(b, n * 16, step * 16);
        mma_m16n8k16(scores[2 * n], q[step], b[0], b[1]);
        mma_m16n8k16(scores[2 * n + 1], q[step], b[2], b[3]);
        v_tile.load_b(b, n * 16, step * 16);
        mma_m16n8k16(dp[2 * n], dout[step], b[0], b[1]);
        mma_m16n8k16(dp[2 * n + 1], dout[step], b[2], b[3]);
      }
    }

    const int end_key = first_key + DQ_KEYS;
    const bool is_masked =
        end_key > sequence.kv_len || (CAUSAL && end_key - 1 > first_row + warp_row + diagonal);
#pragma unroll
    for (int n = 0; n < DQ_KEYS / 8; n++) {
#pragma unroll
      for (int element = 0; element < 4; element++) {
        const int key = first_key + n * 8 + lane % 4 * 2 + element % 2;
        const int row = first_row + warp_row + lane / 4 + element / 2 * 8;
        const bool hidden = is_masked && (key >= sequence.kv_len || (CAUSAL && key > row + diagonal));
        const float exponent = scores[n][element] * scale_log2 - lse_log2[element / 2];
        const float probability = hidden ? 0.0f : exp2_approx(exponent);
        dp[n][element] = probability * (dp[n][element] - delta[element / 2]);
      }
    }

#pragma unroll
    for (int step = 0; step < DQ_KEYS / 16; step++) {
      uint32_t ds[4];
      accumulators_to_a(ds, dp, step);
#pragma unroll
      for (int n = 0; n < D / 16; n++) {
        uint32_t b[4];
        k_tile.load_b_trans(b, step * 16, n * 16);
        mma_m16n8k16(dq[2 * n], ds, b[0], b[1]);
        mma_m16n8k16(dq[2 * n + 1], ds, b[2], b[3]);
      }
    }
    // The next but one goes where this one is.
    __syncthreads();
  }

  const Tile<D> out_tile = {tiles};
  out_tile.store(dq, warp_row, p.scale, p.scale);
  __syncwarp();
  const Matrix<bf16> to = find_matrix(p.dq, p.dq_strides, head, sequence);
  out_tile.template copy_out<16>(to, warp_row, first_row + warp_row, sequence.q_len, p.head_dim);
}

// ---------------------------------------------------------------------------------------------------------------------

#define ATTENTION_KERNELS(d)                                                                                           \
  KERNEL(attention_forward_##d, AttentionForward, 128, 1) { attention_forward<d, false>(p); }                          \
  KERNEL(attention_forward_##d##_causal, AttentionForward, 128, 1) { attention_forward<d, true>(p); }                  \
  KERNEL(attention_dkdv_##d, AttentionBackward, 256, 1) { attention_dkdv<d, false>(p); }                               \
  KERNEL(attention_dkdv_##d##_causal, AttentionBackward, 256, 1) { attention_dkdv<d, true>(p); }                       \
  KERNEL(attention_dq_##d, AttentionBackward, 128, 1) { attention_dq<d, false>(p); }                                   \
  KERNEL(attention_dq_##d##_causal, AttentionBackward, 128, 1) { attention_dq<d, true>(p); }

ATTENTION_KERNELS(64)
ATTENTION_KERNELS(80)
ATTENTION_KERNELS(128)
