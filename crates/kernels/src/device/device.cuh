// The words kernels are written in: what CUDA C++ lacks is one function around one PTX instruction, so that the same source
// also runs on a CPU, where `emulation.h` of the tests gives these functions another body.
//
// A kernel is declared by KERNEL, takes one struct by value, and finds its shared memory through SHARED_MEMORY. Blocks have
// one dimension and whole warps. bf16 is handled as its bits, two in a 32-bit register, the element of lower index in the
// lower half, as PTX has it: nothing here needs a header of the toolkit.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__

// Parameters lie in constant memory; nothing copies them.
#define KERNEL(name, Params, threads, min_blocks_per_multiprocessor)                                                   \
  extern "C" __global__ void __launch_bounds__(threads, min_blocks_per_multiprocessor)                                \
      name(const __grid_constant__ Params p)
#define DEVICE __device__ __forceinline__
// The dynamic shared memory of the block, as bytes; its size is an argument of the launch.
#define SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]

DEVICE uint32_t shared_address(const void* pointer) { return (uint32_t)__cvta_generic_to_shared(pointer); }

// Four 8x8 matrices of 16-bit elements from shared memory. Lane i gives the address of row i % 8 of matrix i / 8, 16 bytes
// aligned; it receives elements 2 * (lane % 4) and the next of row lane / 4 of each matrix.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, each matrix transposed on the way.
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Volatile, since all lanes of the warp take part: the compiler may not move it into a branch.
// c (16x8, f32) += a (16x16, bf16, row-major) * b (16x8, bf16, column-major), the registers as PTX's m16n8k16 spreads them.
DEVICE void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts copying 16 bytes from global to shared memory, both 16 bytes aligned; writes zeros instead where `in_bounds` is
// false, and then reads nothing.
DEVICE void cp_async_16(void* shared, const void* global, bool in_bounds) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(global), "r"(in_bounds ? 16 : 0)
               : "memory");
}

// The same for 4 bytes.
DEVICE void cp_async_4(void* shared, const void* global, bool in_bounds) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(shared_address(shared)), "l"(global), "r"(in_bounds ? 4 : 0)
               : "memory");
}

// Ends the group of this thread's copies started since the last group.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the last `groups` groups of this thread are under way. Other threads see the data after a barrier.
template <int groups>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// The value of lane `lane ^ mask`; all lanes of the warp take part.
DEVICE float shfl_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
// The value of the lane `delta` further; the last lanes keep their own.
DEVICE float shfl_down(float value, int delta) { return __shfl_down_sync(0xffffffffu, value, delta); }

// Two floats rounded to the nearest even bf16, `low` in the lower half.
DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// 2^x to within 2 ulp; subnormal results are 0.
DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else
// threadIdx, blockIdx, gridDim, __syncthreads, __syncwarp, atomicAdd and every function above.
#include "emulation.h"
#endif

// A bf16 as its bits.
typedef uint16_t bf16;

DEVICE float bits_to_float(uint32_t bits) {
  union {
    uint32_t bits;
    float value;
  } both = {bits};
  return both.value;
}

DEVICE float bf16_to_float(bf16 x) { return bits_to_float((uint32_t)x << 16); }
// The element of lower, of higher index of a pair.
DEVICE float low_bf16(uint32_t pair) { return bits_to_float(pair << 16); }
DEVICE float high_bf16(uint32_t pair) { return bits_to_float(pair & 0xffff0000u); }
DEVICE bf16 float_to_bf16(float x) { return (bf16)(pack_bf16(x, 0.0f) & 0xffffu); }

// Sixteen bytes that are loaded and stored at once.
struct alignas(16) Vec16 {
  uint32_t words[4];
};
