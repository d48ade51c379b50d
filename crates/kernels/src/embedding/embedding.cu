// Embeddings of a sequence of tokens and visual features, and the gradient of the table of tokens.
//
//   forward   to[r] = table[s] if s = sources[r] is a token, 0 or more; visual[-1 - s] otherwise
//   backward  dtable[ids[b]] += sum of dy[rows[i]] over starts[b] <= i < starts[b + 1], for every bucket b
// The host sorts the rows of each token into a bucket, so that no two blocks add to one row, and every sum has one order:
// warp w of 8 adds the rows w, w + 8, .. of the bucket, then the warps are added in their order, and that is added to what
// was there. The gradient of visual features is gather_rows.cu's.
//
// A token or a visual row that is not there takes the last one forward and is passed over backward; so are rows that are not
// there, and starts are moved to within the list: nothing is read or written outside.
//
// Layout: table (vocab, hidden), visual (visual_rows, hidden), to, dy (num_rows, hidden) of bf16; dtable (vocab, hidden) of
// f32; sources (num_rows), ids (buckets), starts (buckets + 1), rows of i32; all row-major.
// Launch: forward a warp for each row, 8 warps a block; backward (buckets, tiles of 256 columns) blocks of 8 warps, a lane
// eight columns.
#include "../gather_rows/gather_rows.cuh"

struct EmbeddingForward {
  const bf16* table;
  const bf16* visual;
  const int32_t* sources;
  bf16* to;
  uint32_t vocab;
  uint32_t visual_rows;
  uint32_t num_rows;
  uint32_t hidden;
  // Whether rows are whole numbers of aligned sixteen bytes.
  uint32_t aligned;
};

struct EmbeddingBackward {
  const bf16* dy;
  const int32_t* ids;
  const int32_t* starts;
  const int32_t* rows;
  float* dtable;
  uint32_t vocab;
  // Of dy.
  uint32_t num_rows;
  // In `rows`.
  uint32_t num_listed;
  uint32_t hidden;
  uint32_t aligned;
};

constexpr uint32_t LEN = VEC16_LEN<bf16>;
constexpr uint32_t WARPS = 8;
constexpr uint32_t TILE = 32 * LEN;

KERNEL(embedding_forward, EmbeddingForward, 256, 4) {
  const uint32_t row = blockIdx.x * ROWS + threadIdx.x / 32;
  if (row >= p.num_rows) return;
  const int32_t source = p.sources[row];
  const bf16* const from = source >= 0 ? row_at(p.table, p.vocab, (uint32_t)source, p.hidden)
                                       : row_at(p.visual, p.visual_rows, (uint32_t)(-1 - source), p.hidden);
  copy_row(p.to + (uint64_t)row * p.hidden, from, p.hidden, p.aligned);
}

// Aligned rows have code of their own, whose loads nothing keeps apart.
template <bool ALIGNED>
DEVICE void add_rows(const EmbeddingBackward& p) {
  SHARED_MEMORY(shared);
  float* const sums = (float*)shared;
  const uint32_t id = (uint32_t)p.ids[blockIdx.x];
  if (id >= p.vocab) return;
  const int32_t listed = (int32_t)p.num_listed;
  const int32_t start = max(0, min(p.starts[blockIdx.x], listed));
  const int32_t end = max(0, min(p.starts[blockIdx.x + 1], listed));
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t column = blockIdx.y * TILE + lane * LEN;
  float sum[LEN] = {};
  if (column < p.hidden && p.num_rows > 0) {
#pragma unroll 4
    for (int64_t at = (int64_t)start + warp; at < end; at += WARPS) {
      // No branch, so that several loads are on their way at one time.
      const uint32_t row = (uint32_t)p.rows[at];
      const bf16* const from = p.dy + (uint64_t)min(row, p.num_rows - 1) * p.hidden + column;
      float x[LEN];
      load_floats(x, from, p.hidden - column, ALIGNED);
#pragma unroll
      for (uint32_t i = 0; i < LEN; ++i) sum[i] += row < p.num_rows ? x[i] : 0.0f;
    }
  }
  const float low[4] = {sum[0], sum[1], sum[2], sum[3]}, high[4] = {sum[4], sum[5], sum[6], sum[7]};
  Vec16* const own = (Vec16*)(sums + warp * TILE + lane * LEN);
  own[0] = pack(low);
  own[1] = pack(high);
  __syncthreads();
  // Four columns a thread.
  const uint32_t first = threadIdx.x * 4, to_column = blockIdx.y * TILE + first;
  if (first >= TILE || to_column >= p.hidden) return;
  float total[4], old[4];
  unpack(total, *(const Vec16*)(sums + first));
  for (uint32_t w = 1; w < WARPS; ++w) {
    float of_warp[4];
    unpack(of_warp, *(const Vec16*)(sums + w * TILE + first));
    for (uint32_t i = 0; i < 4; ++i) total[i] += of_warp[i];
  }
  float* const to = p.dtable + (uint64_t)id * p.hidden + to_column;
  load_floats(old, to, p.hidden - to_column, ALIGNED);
  for (uint32_t i = 0; i < 4; ++i) total[i] += old[i];
  store_floats(to, total, p.hidden - to_column, ALIGNED);
}

KERNEL(embedding_backward, EmbeddingBackward, 256, 4) {
  if (p.aligned) {
    add_rows<true>(p);
  } else {
    add_rows<false>(p);
  }
}
