// Indices, barriers, shuffles, atomics, asynchronous copies, and the conversions of numbers.
#include "device.cuh"

struct IndicesParams {
  // Of each thread: x, y, z of its block, its own x, threads, blocks along x, y, z.
  uint32_t* indices;
};

KERNEL(indices, IndicesParams, 64, 1) {
  const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  uint32_t* own = p.indices + (block * blockDim.x + threadIdx.x) * 8;
  own[0] = blockIdx.x;
  own[1] = blockIdx.y;
  own[2] = blockIdx.z;
  own[3] = threadIdx.x;
  own[4] = blockDim.x;
  own[5] = gridDim.x;
  own[6] = gridDim.y;
  own[7] = gridDim.z;
}

struct ValuesParams {
  const float* input;
  float* output;
};

// Each block's values in reverse order, twice through the same shared memory.
KERNEL(reversed, ValuesParams, 96, 1) {
  SHARED_MEMORY(shared);
  float* values = reinterpret_cast<float*>(shared);
  const int thread = threadIdx.x, start = blockIdx.x * 96;
  for (int round = 0; round < 2; ++round) {
    values[thread] = p.input[start + thread] + float(round);
    __syncthreads();
    p.output[(start + thread) * 2 + round] = values[95 - thread];
    __syncthreads();
  }
}

// Of each thread: the sum over its warp, and the value that shfl_down brings from 3 lanes further.
KERNEL(shuffled, ValuesParams, 64, 1) {
  const int thread = threadIdx.x;
  float sum = p.input[thread];
  p.output[thread * 2 + 1] = shfl_down(sum, 3);
  for (int mask = 16; mask > 0; mask /= 2) sum += shfl_xor(sum, mask);
  p.output[thread * 2] = sum;
}

// Lanes hand values round through shared memory, with nothing but __syncwarp between them.
KERNEL(handed_round, ValuesParams, 64, 1) {
  SHARED_MEMORY(shared);
  float* values = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * 32;
  const int lane = threadIdx.x % 32;
  float value = p.input[threadIdx.x];
  for (int step = 0; step < 3; ++step) {
    values[lane] = value;
    __syncwarp();
    value = values[(lane + 1) % 32];
    __syncwarp();
  }
  p.output[threadIdx.x] = value;
}

struct CountParams {
  float* floats;
  int32_t* signed_numbers;
  uint32_t* unsigned_numbers;
};

// Every thread of every block adds; each block counts its threads in shared memory.
KERNEL(counted, CountParams, 64, 1) {
  SHARED_MEMORY(shared);
  uint32_t* count = reinterpret_cast<uint32_t*>(shared);
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  atomicAdd(count, 1u);
  atomicAdd(p.floats, 0.5f);
  atomicAdd(p.signed_numbers, -2);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(p.unsigned_numbers, *count);
}

struct CopyParams {
  const float* input;
  // Of each thread, four floats: the first of its first group, and of each of its three groups one after the wait for that
  // group; the last was copied from out of bounds.
  float* output;
  uint32_t len;
};

// Three groups of copies; who waits for one reads what it copied itself, so that no barrier is needed.
KERNEL(copied, CopyParams, 32, 1) {
  SHARED_MEMORY(shared);
  float* own = reinterpret_cast<float*>(shared) + threadIdx.x * 12;
  const uint32_t first = threadIdx.x * 8;
  cp_async_16(own, p.input + first, true);
  cp_async_commit();
  cp_async_4(own + 4, p.input + first + 5, true);
  cp_async_4(own + 5, p.input + p.len, false);
  cp_async_commit();
  cp_async_16(own + 8, p.input + p.len + (1 << 20), false);
  cp_async_commit();
  cp_async_wait<2>();
  p.output[threadIdx.x * 4 + 1] = own[1];
  cp_async_wait<1>();
  p.output[threadIdx.x * 4 + 2] = own[4] + own[5];
  cp_async_wait<0>();
  p.output[threadIdx.x * 4 + 3] = own[8];
  p.output[threadIdx.x * 4] = own[0];
}

struct NumbersParams {
  const float* input;
  uint32_t* packed;
  float* powers;
};

KERNEL(numbers, NumbersParams, 32, 1) {
  const uint32_t i = blockIdx.x * 32 + threadIdx.x;
  p.packed[i] = pack_bf16(p.input[i], -p.input[i]);
  p.powers[i] = exp2_approx(p.input[i]);
}

struct RoundsParams {
  uint64_t rounds;
};

// What a barrier costs.
KERNEL(waiting, RoundsParams, 128, 1) {
  for (uint64_t i = 0; i < p.rounds; ++i) __syncthreads();
}
