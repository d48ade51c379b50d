// Kernels with one fault each, for the tests that must find it.
#include "device.cuh"

struct FaultParams {
  // As many elements as a block has threads.
  const float* input;
  float* output;
};

// The value of the next thread, read without waiting for that thread to write it.
KERNEL(no_block_barrier, FaultParams, 64, 1) {
  SHARED_MEMORY(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = p.input[threadIdx.x];
  p.output[threadIdx.x] = values[(threadIdx.x + 1) % 64];
}

// A __syncwarp is not enough for the values of another warp.
KERNEL(warp_barrier_between_warps, FaultParams, 64, 1) {
  SHARED_MEMORY(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = p.input[threadIdx.x];
  __syncwarp();
  p.output[threadIdx.x] = values[(threadIdx.x + 32) % 64];
}

// The barrier is there, but the next round writes what slower threads still read.
KERNEL(no_barrier_before_writing_again, FaultParams, 64, 1) {
  SHARED_MEMORY(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = p.input[threadIdx.x];
  __syncthreads();
  p.output[threadIdx.x] = values[63 - threadIdx.x];
  values[threadIdx.x] = 0.0f;
}

// A shuffle brings lanes together but orders no memory.
KERNEL(no_warp_barrier, FaultParams, 32, 1) {
  SHARED_MEMORY(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = p.input[threadIdx.x];
  const float other = shfl_xor(p.input[threadIdx.x], 1);
  p.output[threadIdx.x] = values[threadIdx.x ^ 1] + other;
}

// ldmatrix reads rows that other lanes have just written.
KERNEL(no_barrier_before_ldmatrix, FaultParams, 32, 1) {
  SHARED_MEMORY(shared);
  bf16* rows = reinterpret_cast<bf16*>(shared);
  for (int i = 0; i < 8; ++i) rows[threadIdx.x * 8 + i] = float_to_bf16(p.input[threadIdx.x]);
  uint32_t r[4];
  ldmatrix_x4(r, rows + threadIdx.x * 8);
  p.output[threadIdx.x] = low_bf16(r[0]);
}

// A barrier is not a wait for the copy.
KERNEL(no_copy_wait, FaultParams, 32, 1) {
  SHARED_MEMORY(shared);
  float* values = reinterpret_cast<float*>(shared);
  if (threadIdx.x < 8) cp_async_16(values + threadIdx.x * 4, p.input + threadIdx.x * 4, true);
  cp_async_commit();
  __syncthreads();
  p.output[threadIdx.x] = values[threadIdx.x];
}

// A wait is not a barrier: the copies of other threads may still be under way.
KERNEL(no_barrier_after_copy_wait, FaultParams, 32, 1) {
  SHARED_MEMORY(shared);
  float* values = reinterpret_cast<float*>(shared);
  if (threadIdx.x < 8) cp_async_16(values + threadIdx.x * 4, p.input + threadIdx.x * 4, true);
  cp_async_commit();
  cp_async_wait<0>();
  p.output[threadIdx.x] = values[threadIdx.x];
}

// Every block writes the same elements.
KERNEL(blocks_write_the_same, FaultParams, 32, 1) { p.output[threadIdx.x] = float(blockIdx.x); }

// Every block adds to the first element; only some of them know that it has to be done atomically.
KERNEL(atomic_and_plain, FaultParams, 32, 1) {
  if (blockIdx.x == 0) {
    atomicAdd(p.output, 1.0f);
  } else if (threadIdx.x == 0) {
    p.output[0] += 1.0f;
  }
}

KERNEL(reads_past_shared_memory, FaultParams, 32, 1) {
  SHARED_MEMORY(shared);
  const float* values = reinterpret_cast<float*>(shared);
  p.output[threadIdx.x] = values[threadIdx.x + 1];
}

KERNEL(writes_past_the_output, FaultParams, 32, 1) { p.output[threadIdx.x + 1] = p.input[threadIdx.x]; }

KERNEL(copies_past_the_input, FaultParams, 32, 1) {
  SHARED_MEMORY(shared);
  float* values = reinterpret_cast<float*>(shared);
  if (threadIdx.x < 8) cp_async_16(values + threadIdx.x * 4, p.input + 4 + threadIdx.x * 4, true);
  cp_async_commit();
  cp_async_wait<0>();
  p.output[threadIdx.x] = 0.0f;
}

// Sixteen bytes at once from where only four are aligned. Through a copy of their bits, so that only a check notices.
KERNEL(reads_misaligned, FaultParams, 32, 1) {
  const Vec16* words = reinterpret_cast<const Vec16*>(p.input + 1);
  p.output[threadIdx.x] = bits_to_float(words->words[threadIdx.x % 2]);
}

KERNEL(diverged_at_a_barrier, FaultParams, 64, 1) {
  if (threadIdx.x < 40) __syncthreads();
  p.output[threadIdx.x] = p.input[threadIdx.x];
}

// Both sides have a barrier, but not the same one.
KERNEL(two_barriers, FaultParams, 64, 1) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    p.output[threadIdx.x] = p.input[threadIdx.x];
    __syncthreads();
  }
}

// Warp 0 waits for lane 3, which waits for the block, which waits for warp 0.
KERNEL(waits_in_a_circle, FaultParams, 64, 1) {
  float value = p.input[threadIdx.x];
  if (threadIdx.x == 3 || threadIdx.x >= 32) {
    __syncthreads();
  } else {
    value = shfl_xor(value, 1);
  }
  p.output[threadIdx.x] = value;
}

KERNEL(lane_missing_in_a_shuffle, FaultParams, 32, 1) {
  float value = p.input[threadIdx.x];
  if (threadIdx.x != 5) value = shfl_down(value, 1);
  p.output[threadIdx.x] = value;
}

KERNEL(lanes_at_different_calls, FaultParams, 32, 1) {
  float value = p.input[threadIdx.x];
  if (threadIdx.x < 16) {
    value = shfl_xor(value, 1);
  } else {
    __syncwarp();
  }
  p.output[threadIdx.x] = value;
}

KERNEL(misaligned_ldmatrix, FaultParams, 32, 1) {
  SHARED_MEMORY(shared);
  uint32_t r[4];
  ldmatrix_x4(r, shared + threadIdx.x * 16 + (threadIdx.x == 7 ? 8 : 0));
  p.output[threadIdx.x] = bits_to_float(r[0]);
}

KERNEL(ldmatrix_of_global_memory, FaultParams, 32, 1) {
  uint32_t r[4];
  ldmatrix_x4(r, p.input);
  p.output[threadIdx.x] = bits_to_float(r[0]);
}

// The last rows begin inside and end outside.
KERNEL(ldmatrix_past_shared_memory, FaultParams, 32, 1) {
  SHARED_MEMORY(shared);
  uint32_t r[4];
  ldmatrix_x4(r, shared + threadIdx.x * 16);
  p.output[threadIdx.x] = bits_to_float(r[0]);
}

KERNEL(misaligned_copy, FaultParams, 32, 1) {
  SHARED_MEMORY(shared);
  cp_async_16(shared, p.input + 1, true);
  cp_async_commit();
  cp_async_wait<0>();
  p.output[threadIdx.x] = 0.0f;
}
