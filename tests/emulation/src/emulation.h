// CUDA's words for a CPU: what device.cuh has instead of its PTX where no CUDA compiler reads it.
//
// Every thread of a block is a fiber. A barrier, and everything that a warp does together, is a rendezvous: the last one to
// arrive does the work for all of them. What happens there is in emulation.cpp, which is compiled without the sanitizers
// that the kernels are compiled with.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

namespace emulation {

// Where in the source a thread stands. Lanes that meet must stand at the same place.
struct Site {
  const char* file;
  int line;
};

struct Index {
  unsigned x, y, z;
};

// The same for the whole life of a thread, hence `const`; single numbers, because only their calls are made once.
__attribute__((const)) unsigned thread_x();
__attribute__((const)) unsigned block_x();
__attribute__((const)) unsigned block_y();
__attribute__((const)) unsigned block_z();
__attribute__((const)) unsigned num_threads();
__attribute__((const)) unsigned grid_x();
__attribute__((const)) unsigned grid_y();
__attribute__((const)) unsigned grid_z();
__attribute__((const)) unsigned char* shared_memory();

void block_barrier(Site site);
void warp_barrier(Site site);
float shuffle_xor(float value, int mask, Site site);
float shuffle_down(float value, int delta, Site site);
void load_matrices(uint32_t* registers, const void* row, bool transposed, Site site);
void multiply_accumulate(float* c, const uint32_t* a, uint32_t b0, uint32_t b1, Site site);
void copy_async(void* shared, const void* global, unsigned bytes, bool in_bounds, Site site);
void commit_copies();
void wait_for_copies(unsigned groups);
float atomic_add(float* address, float value, Site site);
int atomic_add(int* address, int value, Site site);
unsigned atomic_add(unsigned* address, unsigned value, Site site);
uint32_t pack_bf16(float low, float high);
float exp2_flushed(float x);

}  // namespace emulation

// As default arguments, these two are the place of the call.
#define EMULATION_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Beside the kernel, what its launch needs to know: an entry that takes the parameters by address, their size, and the
// threads that the kernel was written for.
#define KERNEL(name, Params, threads, min_blocks_per_multiprocessor)                                                   \
  static void name(const Params& p);                                                                                   \
  extern "C" {                                                                                                         \
  __attribute__((visibility("default"))) extern const unsigned params_size_##name;                                    \
  const unsigned params_size_##name = sizeof(Params);                                                                  \
  __attribute__((visibility("default"))) extern const unsigned threads_##name;                                        \
  const unsigned threads_##name = threads;                                                                             \
  __attribute__((visibility("default"))) void emulated_##name(const void* params) {                                   \
    name(*static_cast<const Params*>(params));                                                                         \
  }                                                                                                                    \
  }                                                                                                                    \
  static_assert((min_blocks_per_multiprocessor) >= 1, "at least one block runs");                                      \
  static void name([[maybe_unused]] const Params& p)
#define DEVICE inline
#define SHARED_MEMORY(name) unsigned char* const name = ::emulation::shared_memory()

#define threadIdx (::emulation::Index{::emulation::thread_x(), 0, 0})
#define blockIdx (::emulation::Index{::emulation::block_x(), ::emulation::block_y(), ::emulation::block_z()})
#define blockDim (::emulation::Index{::emulation::num_threads(), 1, 1})
#define gridDim (::emulation::Index{::emulation::grid_x(), ::emulation::grid_y(), ::emulation::grid_z()})
constexpr int warpSize = 32;

inline void __syncthreads(EMULATION_SITE) { emulation::block_barrier({file, line}); }
inline void __syncwarp(EMULATION_SITE) { emulation::warp_barrier({file, line}); }

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMULATION_SITE) {
  emulation::load_matrices(r, row, false, {file, line});
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, EMULATION_SITE) {
  emulation::load_matrices(r, row, true, {file, line});
}
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMULATION_SITE) {
  emulation::multiply_accumulate(c, a, b0, b1, {file, line});
}

inline void cp_async_16(void* shared, const void* global, bool in_bounds, EMULATION_SITE) {
  emulation::copy_async(shared, global, 16, in_bounds, {file, line});
}
inline void cp_async_4(void* shared, const void* global, bool in_bounds, EMULATION_SITE) {
  emulation::copy_async(shared, global, 4, in_bounds, {file, line});
}
inline void cp_async_commit() { emulation::commit_copies(); }
template <int groups>
inline void cp_async_wait() {
  static_assert(groups >= 0, "a number of groups");
  emulation::wait_for_copies(groups);
}

inline float shfl_xor(float value, int mask, EMULATION_SITE) { return emulation::shuffle_xor(value, mask, {file, line}); }
inline float shfl_down(float value, int delta, EMULATION_SITE) {
  return emulation::shuffle_down(value, delta, {file, line});
}

inline float atomicAdd(float* address, float value, EMULATION_SITE) {
  return emulation::atomic_add(address, value, {file, line});
}
inline int atomicAdd(int* address, int value, EMULATION_SITE) {
  return emulation::atomic_add(address, value, {file, line});
}
inline unsigned atomicAdd(unsigned* address, unsigned value, EMULATION_SITE) {
  return emulation::atomic_add(address, value, {file, line});
}

inline uint32_t pack_bf16(float low, float high) { return emulation::pack_bf16(low, high); }
inline float exp2_approx(float x) { return emulation::exp2_flushed(x); }

// What CUDA has beyond <math.h>. The fast ones are exact here: a test's tolerance is for the GPU.
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int min(int x, int y) { return x < y ? x : y; }
inline int max(int x, int y) { return x < y ? y : x; }
inline unsigned min(unsigned x, unsigned y) { return x < y ? x : y; }
inline unsigned max(unsigned x, unsigned y) { return x < y ? y : x; }
inline long long min(long long x, long long y) { return x < y ? x : y; }
inline long long max(long long x, long long y) { return x < y ? y : x; }
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
