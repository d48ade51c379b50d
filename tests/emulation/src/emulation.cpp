// Runs the blocks of a launch, one after the other, and the rendezvous of their threads.
//
// One file for the three ways kernels are compiled: plainly; with the address sanitizer (EMULATION_ADDRESS), which has to be
// told of the fibers; with the thread sanitizer's instrumentation (EMULATION_RACE), whose callbacks are at the end of this
// file in place of its library. This file itself is always compiled plainly.
//
// The fragments of ldmatrix and mma are those of the PTX ISA manual, "Matrix Fragments for mma.m16n8k16" and "ldmatrix".
#include "emulation.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <vector>

#include "fiber.h"
#include "races.h"

namespace emulation {
namespace {

constexpr unsigned warp_size = 32;
constexpr uint32_t all_lanes = 0xffffffffu;
// NaN as a bf16 and as an f32.
constexpr int poison = 0xff;

// What lanes and threads meet for.
enum class Meeting { none, block_barrier, warp_barrier, shuffle_xor, shuffle_down, ldmatrix, ldmatrix_trans, mma };

const char* name_of(Meeting meeting) {
  switch (meeting) {
    case Meeting::none:
      return "nothing";
    case Meeting::block_barrier:
      return "__syncthreads";
    case Meeting::warp_barrier:
      return "__syncwarp";
    case Meeting::shuffle_xor:
      return "shfl_xor";
    case Meeting::shuffle_down:
      return "shfl_down";
    case Meeting::ldmatrix:
      return "ldmatrix_x4";
    case Meeting::ldmatrix_trans:
      return "ldmatrix_x4_trans";
    case Meeting::mma:
      return "mma_m16n8k16";
  }
  return "?";
}

// What one lane brings to a meeting of its warp and takes from it.
struct Offer {
  float* values;
  const uint32_t* a;
  uint32_t b0, b1;
  uint32_t* registers;
  const void* row;
  int distance;
};

// Bytes on their way to shared memory.
struct Copy {
  void* shared;
  const void* global;
  unsigned bytes;
  bool in_bounds;
  unsigned group;
  Site site;
};

struct Warp;

struct Thread {
  Fiber fiber;
  Warp* warp;
  unsigned index, lane;
  bool has_returned;
  // What it waits for, and where.
  Meeting meeting;
  Site site;
  std::vector<Copy> copies;
  unsigned num_groups;
};

struct Warp {
  // Lanes that can go on; that have arrived at the meeting.
  uint32_t runnable, arrived;
  Meeting meeting;
  Site site;
  // On the stacks of the lanes.
  const Offer* offers[warp_size];
  uint32_t last_sync;
};

struct Request {
  void (*kernel)(const void* params);
  const char* name;
  const void* params;
  unsigned threads;
  size_t shared_memory;
  unsigned grid_x, grid_y, grid_z;
  // Which block is run n-th: offset + n * stride, modulo their number.
  uint64_t first_block, block_stride;
  char* error;
  size_t error_size;
};

// The launch that this OS thread is running.
struct Launch {
  explicit Launch(const Request& request, unsigned char* shared)
      : request(request),
        shared(shared),
        stacks(request.threads),
        threads(new Thread[request.threads]),
        num_warps(request.threads / warp_size),
        warps(new Warp[num_warps])
#ifdef EMULATION_RACE
        ,
        shared_shadow(reinterpret_cast<uintptr_t>(shared), request.shared_memory + 1),
        global_shadow(0, 0)
#endif
  {
  }

  const Request& request;
  unsigned char* shared;
  Stacks stacks;
  std::unique_ptr<Thread[]> threads;
  unsigned num_warps;
  std::unique_ptr<Warp[]> warps;
  Fiber outside;
  Thread* running = nullptr;
  uint64_t linear_block = 0;
  Index block = {0, 0, 0};
  unsigned num_at_barrier = 0, num_returned = 0;
  bool is_fresh_block = false, has_failed = false;
  uint32_t syncs = 1, last_block_sync = 1;
#ifdef EMULATION_RACE
  Shadow shared_shadow, global_shadow;
#endif
};

#ifdef __GLIBC__
// Asked for at every call of a kernel: without a call of its own. There is room for it in programs that load libraries late.
__attribute__((tls_model("initial-exec")))
#endif
thread_local Launch* current = nullptr;

uint32_t lane_bit(const Thread& thread) { return 1u << thread.lane; }

const char* file_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

bool is_same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

// A sentence that is put together piece by piece, as far as there is room.
class Text {
 public:
  Text(char* begin, size_t size) : begin_(begin), size_(size) {}

  __attribute__((format(printf, 2, 3))) void add(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    add_list(format, arguments);
    va_end(arguments);
  }

  void add_list(const char* format, va_list arguments) {
    const int length = vsnprintf(begin_ + used_, size_ - used_, format, arguments);
    if (length > 0) used_ = used_ + length < size_ ? used_ + length : size_ - 1;
  }

 private:
  char* begin_;
  size_t size_, used_ = 0;
};

void add_place(Text& text, const Launch& launch) {
  text.add("kernel %s, block (%u, %u, %u)", launch.request.name, launch.block.x, launch.block.y, launch.block.z);
}

// Leaves the block for good; nobody returns to its fibers.
[[noreturn]] void give_up(Launch& launch) {
  launch.has_failed = true;
  launch.running->fiber.switch_to(launch.outside);
  abort();
}

// Reports what the running thread has done wrong.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Launch& launch, const char* format, ...) {
  Text text(launch.request.error, launch.request.error_size);
  add_place(text, launch);
  text.add(", thread %u: ", launch.running->index);
  va_list arguments;
  va_start(arguments, format);
  text.add_list(format, arguments);
  va_end(arguments);
  give_up(launch);
}

void add_state(Text& text, const Thread& thread) {
  if (thread.has_returned) {
    text.add("returned");
  } else if (thread.meeting == Meeting::none) {
    text.add("can go on");
  } else {
    text.add("at %s (%s:%d)", name_of(thread.meeting), file_name(thread.site.file), thread.site.line);
  }
}

bool is_same_state(const Thread& a, const Thread& b) {
  if (a.has_returned || b.has_returned) return a.has_returned == b.has_returned;
  return a.meeting == b.meeting && (a.meeting == Meeting::none || is_same(a.site, b.site));
}

// Reports that threads wait for each other, with where each of them is.
[[noreturn]] void fail_diverged(Launch& launch) {
  Text text(launch.request.error, launch.request.error_size);
  add_place(text, launch);
  text.add(": threads diverged, and nobody can go on;");
  for (unsigned first = 0; first < launch.request.threads;) {
    unsigned next = first + 1;
    while (next < launch.request.threads && is_same_state(launch.threads[first], launch.threads[next])) ++next;
    text.add(next - first == 1 ? "%s thread %u " : "%s threads %u", first ? "," : "", first);
    if (next - first > 1) text.add(" to %u ", next - 1);
    add_state(text, launch.threads[first]);
    first = next;
  }
  give_up(launch);
}

// The next thread that can go on, of the same warp if possible: its lanes' stacks are in the cache.
Thread* next_runnable(Launch& launch, const Thread& after) {
  const uint32_t later = after.warp->runnable & ~(all_lanes >> (warp_size - 1 - after.lane));
  if (later) return &launch.threads[after.index - after.lane + static_cast<unsigned>(__builtin_ctz(later))];
  unsigned warp = after.index / warp_size;
  for (unsigned i = 0; i < launch.num_warps; ++i) {
    const uint32_t runnable = launch.warps[warp].runnable;
    if (runnable) return &launch.threads[warp * warp_size + static_cast<unsigned>(__builtin_ctz(runnable))];
    if (++warp == launch.num_warps) warp = 0;
  }
  return nullptr;
}

void go_on_with(Launch& launch, Thread& self, Thread& next) {
  launch.running = &next;
  self.fiber.switch_to(next.fiber);
}

// Lets the others run until somebody makes this thread runnable.
void wait(Launch& launch, Thread& self) {
  Thread* next = next_runnable(launch, self);
  if (!next) fail_diverged(launch);
  go_on_with(launch, self, *next);
}

// A block's threads begin and end here.
[[noreturn]] void run_thread() {
  Launch& launch = *current;
  Fiber::begin(launch.is_fresh_block ? &launch.outside : nullptr);
  launch.is_fresh_block = false;
  Thread& self = *launch.running;
  launch.request.kernel(launch.request.params);
  self.has_returned = true;
  self.warp->runnable &= ~lane_bit(self);
  ++launch.num_returned;
  if (Thread* next = next_runnable(launch, self)) {
    go_on_with(launch, self, *next);
  } else if (launch.num_returned == launch.request.threads) {
    self.fiber.switch_to(launch.outside);
  } else {
    fail_diverged(launch);
  }
  abort();
}

bool is_in_shared_memory(const Launch& launch, const void* pointer, size_t size) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(launch.shared);
  return offset < launch.request.shared_memory && size <= launch.request.shared_memory - offset;
}

bool is_aligned(const void* pointer, size_t alignment) { return reinterpret_cast<uintptr_t>(pointer) % alignment == 0; }

// The place of an access, as far as it is known: in the source, or else the code that returns to an address.
struct Place {
  Site site;
  const void* code;
};

void note(Launch& launch, unsigned thread, const void* pointer, size_t size, Access access, const Place& place);

// Sanitizers do not see what this file touches for a kernel.
void check_addressable([[maybe_unused]] Launch& launch, [[maybe_unused]] const void* pointer,
                       [[maybe_unused]] size_t size, [[maybe_unused]] const char* what, [[maybe_unused]] Site site) {
#ifdef EMULATION_ADDRESS
  const void* bad = __asan_region_is_poisoned(const_cast<void*>(pointer), size);
  if (bad) {
    fail(launch, "%s (%s:%d) touches %zu bytes at %p, of which %p is outside of every buffer", what,
         file_name(site.file), site.line, size, pointer, bad);
  }
#endif
}

// What is moved at once is in shared memory, at a multiple of its size.
void check_shared(Launch& launch, const char* what, const void* pointer, unsigned bytes, Site site) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(pointer) - launch.shared;
  if (!is_in_shared_memory(launch, pointer, bytes)) {
    fail(launch, "%s (%s:%d): the %u bytes at offset %td are not in the %zu bytes of shared memory", what,
         file_name(site.file), site.line, bytes, offset, launch.request.shared_memory);
  }
  if (!is_aligned(pointer, bytes)) {
    fail(launch, "%s (%s:%d): offset %td of shared memory is not a multiple of %u bytes", what, file_name(site.file),
         site.line, offset, bytes);
  }
}

// ldmatrix: matrix i has its rows where lanes 8 i to 8 i + 7 say. Lane l receives elements 2 * (l % 4) and the next of row
// l / 4; transposed, of column l / 4.
void distribute_matrices(Launch& launch, Warp& warp, unsigned first_thread, bool transposed) {
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    uint16_t elements[8][8];
    for (unsigned row = 0; row < 8; ++row) memcpy(elements[row], warp.offers[matrix * 8 + row]->row, 16);
    for (unsigned lane = 0; lane < warp_size; ++lane) {
      const unsigned major = lane / 4, minor = lane % 4 * 2;
      const uint32_t low = transposed ? elements[minor][major] : elements[major][minor];
      const uint32_t high = transposed ? elements[minor + 1][major] : elements[major][minor + 1];
      warp.offers[lane]->registers[matrix] = high << 16 | low;
#ifdef EMULATION_RACE
      // The lane that receives an element is the one that reads it.
      for (unsigned i = 0; i < 2; ++i) {
        const unsigned row = transposed ? minor + i : major, column = transposed ? major : minor + i;
        const void* element = static_cast<const unsigned char*>(warp.offers[matrix * 8 + row]->row) + column * 2;
        note(launch, first_thread + lane, element, 2, Access::read, {warp.site, nullptr});
      }
#endif
    }
  }
  (void)launch, (void)first_thread;
}

float from_bf16(uint32_t bits) {
  bits <<= 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The upper half of a register is the element of higher index.
void unpack(float* pair, uint32_t bits) {
  pair[0] = from_bf16(bits & 0xffff);
  pair[1] = from_bf16(bits >> 16);
}

// mma.m16n8k16, with g = lane / 4 and t = 2 * (lane % 4). Two elements of a register:
// a[0]: row g, columns t, t + 1; a[1]: row g + 8; a[2]: row g, columns t + 8, t + 9; a[3]: row g + 8, the same columns.
// b0: rows t, t + 1 of column g; b1: rows t + 8, t + 9. c[0], c[1]: row g, columns t, t + 1; c[2], c[3]: row g + 8.
void multiply_matrices(Warp& warp) {
  typedef float Row __attribute__((vector_size(32)));
  float a[16][16], b[16][8], c[16][8];
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    const Offer& offer = *warp.offers[lane];
    const unsigned g = lane / 4, t = lane % 4 * 2;
    unpack(&a[g][t], offer.a[0]);
    unpack(&a[g + 8][t], offer.a[1]);
    unpack(&a[g][t + 8], offer.a[2]);
    unpack(&a[g + 8][t + 8], offer.a[3]);
    float pair[2];
    unpack(pair, offer.b0);
    b[t][g] = pair[0];
    b[t + 1][g] = pair[1];
    unpack(pair, offer.b1);
    b[t + 8][g] = pair[0];
    b[t + 9][g] = pair[1];
    memcpy(&c[g][t], offer.values, 8);
    memcpy(&c[g + 8][t], offer.values + 2, 8);
  }
  Row rows[16];
  memcpy(rows, b, sizeof b);
  for (unsigned m = 0; m < 16; ++m) {
    Row sum;
    memcpy(&sum, c[m], sizeof sum);
    for (unsigned k = 0; k < 16; ++k) sum += a[m][k] * rows[k];
    memcpy(c[m], &sum, sizeof sum);
  }
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    const unsigned g = lane / 4, t = lane % 4 * 2;
    memcpy(warp.offers[lane]->values, &c[g][t], 8);
    memcpy(warp.offers[lane]->values + 2, &c[g + 8][t], 8);
  }
}

// Offers of shuffles hold the value in `values[0]`; what is received goes to `values[1]`.
void shuffle(Warp& warp, bool is_xor) {
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    const unsigned distance = static_cast<unsigned>(warp.offers[lane]->distance);
    const unsigned source = is_xor ? lane ^ distance : lane + distance;
    const bool exists = source < warp_size && distance < warp_size;
    warp.offers[lane]->values[1] = warp.offers[exists ? source : lane]->values[0];
  }
}

// What lanes do together once all of them are there.
__attribute__((noinline)) void do_together(Launch& launch, Warp& warp, unsigned first_thread) {
  switch (warp.meeting) {
    case Meeting::warp_barrier:
      warp.last_sync = ++launch.syncs;
      break;
    case Meeting::shuffle_xor:
    case Meeting::shuffle_down:
      shuffle(warp, warp.meeting == Meeting::shuffle_xor);
      break;
    case Meeting::ldmatrix:
    case Meeting::ldmatrix_trans:
      distribute_matrices(launch, warp, first_thread, warp.meeting == Meeting::ldmatrix_trans);
      break;
    case Meeting::mma:
      multiply_matrices(warp);
      break;
    case Meeting::none:
    case Meeting::block_barrier:
      abort();
  }
}

// A meeting of a warp: whoever comes last does what is to be done.
void meet(Meeting meeting, Site site, const Offer& offer) {
  Launch& launch = *current;
  Thread& self = *launch.running;
  Warp& warp = *self.warp;
  if (!warp.arrived) {
    warp.meeting = meeting;
    warp.site = site;
  } else if (warp.meeting != meeting || !is_same(warp.site, site)) {
    fail(launch, "at %s (%s:%d) while lanes of its warp are at %s (%s:%d)", name_of(meeting), file_name(site.file),
         site.line, name_of(warp.meeting), file_name(warp.site.file), warp.site.line);
  }
  warp.offers[self.lane] = &offer;
  warp.arrived |= lane_bit(self);
  if (warp.arrived == all_lanes) {
    do_together(launch, warp, self.index - self.lane);
    warp.arrived = 0;
    warp.runnable = all_lanes;
    return;
  }
  self.meeting = meeting;
  self.site = site;
  warp.runnable &= ~lane_bit(self);
  wait(launch, self);
  self.meeting = Meeting::none;
}

void start_block(Launch& launch, uint64_t linear) {
  const Request& request = launch.request;
  launch.linear_block = linear;
  launch.block.x = static_cast<unsigned>(linear % request.grid_x);
  launch.block.y = static_cast<unsigned>(linear / request.grid_x % request.grid_y);
  launch.block.z = static_cast<unsigned>(linear / request.grid_x / request.grid_y);
  memset(launch.shared, poison, request.shared_memory);
  launch.syncs = launch.last_block_sync = 1;
  launch.num_at_barrier = launch.num_returned = 0;
  for (unsigned i = 0; i < launch.num_warps; ++i) {
    Warp& warp = launch.warps[i];
    warp.runnable = all_lanes;
    warp.arrived = 0;
    warp.last_sync = 1;
  }
  for (unsigned i = 0; i < request.threads; ++i) {
    Thread& thread = launch.threads[i];
    thread.fiber.prepare(run_thread, launch.stacks.stack(i), launch.stacks.size_of(i));
    thread.warp = &launch.warps[i / warp_size];
    thread.index = i;
    thread.lane = i % warp_size;
    thread.has_returned = false;
    thread.meeting = Meeting::none;
    thread.copies.clear();
    thread.num_groups = 0;
  }
}

void finish_copy(Launch& launch, Thread& self, const Copy& copy) {
  const Place place = {copy.site, nullptr};
  if (copy.in_bounds) {
    note(launch, self.index, copy.global, copy.bytes, Access::read, place);
    memcpy(copy.shared, copy.global, copy.bytes);
  } else {
    memset(copy.shared, 0, copy.bytes);
  }
  note(launch, self.index, copy.shared, copy.bytes, Access::copy_end, place);
}

template <typename T>
T add_atomically(T* address, T value, Site site) {
  Launch& launch = *current;
  if (!is_aligned(address, sizeof(T))) {
    fail(launch, "atomicAdd (%s:%d): the address is not a multiple of %zu bytes", file_name(site.file), site.line,
         sizeof(T));
  }
  check_addressable(launch, address, sizeof(T), "atomicAdd", site);
  note(launch, launch.running->index, address, sizeof(T), Access::atomic, {site, nullptr});
  const T before = *address;
  *address = before + value;
  return before;
}

#ifdef EMULATION_ADDRESS
// Says where the launch was, below the sanitizer's own report.
void say_place(const char*) {
  if (!current) return;
  char buffer[512];
  Text text(buffer, sizeof buffer);
  add_place(text, *current);
  fprintf(stderr, "emulation: %s, thread %u\n", buffer, current->running ? current->running->index : 0);
}
#endif

}  // namespace

unsigned thread_x() { return current->running->index; }
unsigned block_x() { return current->block.x; }
unsigned block_y() { return current->block.y; }
unsigned block_z() { return current->block.z; }
unsigned num_threads() { return current->request.threads; }
unsigned grid_x() { return current->request.grid_x; }
unsigned grid_y() { return current->request.grid_y; }
unsigned grid_z() { return current->request.grid_z; }
unsigned char* shared_memory() { return current->shared; }

void block_barrier(Site site) {
  Launch& launch = *current;
  Thread& self = *launch.running;
  self.meeting = Meeting::block_barrier;
  self.site = site;
  if (++launch.num_at_barrier == launch.request.threads) {
    for (unsigned i = 0; i < launch.request.threads; ++i) {
      if (!is_same(launch.threads[i].site, site)) fail_diverged(launch);
    }
    launch.num_at_barrier = 0;
    launch.last_block_sync = ++launch.syncs;
    for (unsigned i = 0; i < launch.num_warps; ++i) launch.warps[i].runnable = all_lanes;
  } else {
    self.warp->runnable &= ~lane_bit(self);
    wait(launch, self);
  }
  self.meeting = Meeting::none;
}

void warp_barrier(Site site) { meet(Meeting::warp_barrier, site, {}); }

float shuffle_xor(float value, int mask, Site site) {
  float values[2] = {value, 0.0f};
  Offer offer = {};
  offer.values = values;
  offer.distance = mask;
  meet(Meeting::shuffle_xor, site, offer);
  return values[1];
}

float shuffle_down(float value, int delta, Site site) {
  float values[2] = {value, 0.0f};
  Offer offer = {};
  offer.values = values;
  offer.distance = delta;
  meet(Meeting::shuffle_down, site, offer);
  return values[1];
}

void load_matrices(uint32_t* registers, const void* row, bool transposed, Site site) {
  const Meeting meeting = transposed ? Meeting::ldmatrix_trans : Meeting::ldmatrix;
  check_shared(*current, name_of(meeting), row, 16, site);
  Offer offer = {};
  offer.registers = registers;
  offer.row = row;
  meet(meeting, site, offer);
}

void multiply_accumulate(float* c, const uint32_t* a, uint32_t b0, uint32_t b1, Site site) {
  Offer offer = {};
  offer.values = c;
  offer.a = a;
  offer.b0 = b0;
  offer.b1 = b1;
  meet(Meeting::mma, site, offer);
}

// As late as is allowed: until the wait that covers it, there is poison where the data will be.
void copy_async(void* shared, const void* global, unsigned bytes, bool in_bounds, Site site) {
  Launch& launch = *current;
  Thread& self = *launch.running;
  const char* what = bytes == 16 ? "cp_async_16" : "cp_async_4";
  const Place place = {site, nullptr};
  check_shared(launch, what, shared, bytes, site);
  if (in_bounds) {
    if (!is_aligned(global, bytes)) {
      fail(launch, "%s (%s:%d): the global address is not a multiple of %u bytes", what, file_name(site.file), site.line,
           bytes);
    }
    if (is_in_shared_memory(launch, global, 1)) {
      fail(launch, "%s (%s:%d): the source is in shared memory", what, file_name(site.file), site.line);
    }
    check_addressable(launch, global, bytes, what, site);
    note(launch, self.index, global, bytes, Access::read, place);
  }
  note(launch, self.index, shared, bytes, Access::copy_start, place);
  memset(shared, poison, bytes);
  self.copies.push_back({shared, global, bytes, in_bounds, self.num_groups, site});
}

void commit_copies() { ++current->running->num_groups; }

void wait_for_copies(unsigned groups) {
  Launch& launch = *current;
  Thread& self = *launch.running;
  size_t done = 0;
  while (done < self.copies.size() && self.copies[done].group + groups < self.num_groups) {
    finish_copy(launch, self, self.copies[done++]);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<ptrdiff_t>(done));
}

float atomic_add(float* address, float value, Site site) { return add_atomically(address, value, site); }
int atomic_add(int* address, int value, Site site) { return add_atomically(address, value, site); }
unsigned atomic_add(unsigned* address, unsigned value, Site site) { return add_atomically(address, value, site); }

// As `cvt.rn.bf16x2.f32`: to the nearest, ties to even; every NaN is the same one.
uint32_t pack_bf16(float low, float high) {
  const float values[2] = {low, high};
  uint32_t pair = 0;
  for (int i = 0; i < 2; ++i) {
    uint32_t bits;
    memcpy(&bits, &values[i], sizeof bits);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    // Half of the last place kept, less one if that place is even.
    const uint32_t rounded = is_nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    pair |= rounded << (16 * i);
  }
  return pair;
}

// As `ex2.approx.ftz.f32`, but exact to an ulp.
float exp2_flushed(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

namespace {

void note([[maybe_unused]] Launch& launch, [[maybe_unused]] unsigned thread, [[maybe_unused]] const void* pointer,
          [[maybe_unused]] size_t size, [[maybe_unused]] Access access, [[maybe_unused]] const Place& place) {
#ifdef EMULATION_RACE
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  // What is on a thread's stack is its own.
  if (launch.stacks.holds(address)) return;
  const bool is_shared = is_in_shared_memory(launch, pointer, 1);
  const uint32_t first = static_cast<uint32_t>(launch.linear_block) * launch.request.threads;
  const Block block = {first, launch.request.threads};
  const Clock clock = {launch.syncs, launch.last_block_sync, launch.warps[thread / warp_size].last_sync};
  Race race;
  Shadow& shadow = is_shared ? launch.shared_shadow : launch.global_shadow;
  if (!shadow.note(block, first + thread, clock, address, size, access, race)) return;

  static const char* const now[] = {"reads", "writes", "adds to", "starts a cp_async to", "ends a cp_async to"};
  static const char* const before[] = {"read", "wrote", "added to", "has a cp_async under way to", "wrote"};
  const uint32_t other = race.thread;
  const uint64_t other_block = other / launch.request.threads;
  Text text(launch.request.error, launch.request.error_size);
  add_place(text, launch);
  text.add(": race on ");
  if (is_shared) {
    text.add("byte %zu of shared memory", static_cast<size_t>(race.address - reinterpret_cast<uintptr_t>(launch.shared)));
  } else {
    text.add("the byte at %#zx of global memory", static_cast<size_t>(race.address));
  }
  text.add(": thread %u %s what thread %u", thread, now[static_cast<int>(access)], other % launch.request.threads);
  if (other_block != launch.linear_block) {
    const Request& request = launch.request;
    text.add(" of block (%u, %u, %u)", static_cast<unsigned>(other_block % request.grid_x),
             static_cast<unsigned>(other_block / request.grid_x % request.grid_y),
             static_cast<unsigned>(other_block / request.grid_x / request.grid_y));
  }
  text.add(" %s, and no barrier is between them", before[static_cast<int>(race.access)]);
  // For whoever turns it into a line of the source: the call is before the address that it returns to.
  Dl_info library;
  if (place.site.file) {
    text.add(" (%s:%d)", file_name(place.site.file), place.site.line);
  } else if (dladdr(place.code, &library)) {
    const char* begin = static_cast<char*>(library.dli_fbase);
    text.add(" [code +%#zx]", static_cast<size_t>(static_cast<const char*>(place.code) - begin) - 1);
  }
  give_up(launch);
#endif
}

void run_blocks(Launch& launch) {
  const Request& request = launch.request;
  const uint64_t blocks = uint64_t{request.grid_x} * request.grid_y * request.grid_z;
  uint64_t block = request.first_block % blocks;
  for (uint64_t n = 0; n < blocks; ++n) {
    start_block(launch, block);
    launch.is_fresh_block = true;
    launch.running = &launch.threads[0];
    launch.outside.switch_to(launch.threads[0].fiber);
    if (launch.has_failed) return;
    block = (block + request.block_stride) % blocks;
  }
}

int refuse(const Request& request, const char* why) {
  snprintf(request.error, request.error_size, "kernel %s: %s", request.name, why);
  return 1;
}

}  // namespace
}  // namespace emulation

// Runs a launch to its end: 0, or 1 with what went wrong in `error`. The stride is coprime to the number of blocks.
extern "C" __attribute__((visibility("default"))) int emulation_launch(const emulation::Request* request) {
  using namespace emulation;
#ifdef EMULATION_RACE
  const double threads = 1.0 * request->grid_x * request->grid_y * request->grid_z * request->threads;
  if (threads >= 4294967296.0) return refuse(*request, "the race check counts at most 2^32 threads of a launch");
#endif
#ifdef EMULATION_ADDRESS
  __asan_set_error_report_callback(say_place);
#endif
  // Exactly as large as was asked for, so that the address sanitizer knows its end.
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, request->shared_memory)) return refuse(*request, "no memory for the block's shared memory");
  std::unique_ptr<void, void (*)(void*)> shared(memory, free);
  Launch launch(*request, static_cast<unsigned char*>(memory));
  if (!launch.stacks.is_there()) return refuse(*request, "no memory for the threads' stacks");
  current = &launch;
  run_blocks(launch);
  current = nullptr;
  return launch.has_failed;
}

#ifdef EMULATION_RACE
// What the thread sanitizer's instrumentation calls, with the address of the code as a breakpoint has it.
namespace {

inline void note_access(const void* pointer, size_t size, emulation::Access access, const void* code) {
  if (emulation::current) {
    const emulation::Place place = {{nullptr, 0}, code};
    emulation::note(*emulation::current, emulation::current->running->index, pointer, size, access, place);
  }
}

}  // namespace

#define EMULATION_ACCESS(name, size, access)                                                  \
  extern "C" void __tsan_##name(void* pointer) {                                              \
    note_access(pointer, size, emulation::Access::access, __builtin_return_address(0));       \
  }
#define EMULATION_ACCESSES(size)                      \
  EMULATION_ACCESS(read##size, size, read)            \
  EMULATION_ACCESS(write##size, size, write)          \
  EMULATION_ACCESS(unaligned_read##size, size, read)  \
  EMULATION_ACCESS(unaligned_write##size, size, write)
EMULATION_ACCESSES(1)
EMULATION_ACCESSES(2)
EMULATION_ACCESSES(4)
EMULATION_ACCESSES(8)
EMULATION_ACCESSES(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* pointer, size_t size) {
  note_access(pointer, size, emulation::Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* pointer, size_t size) {
  note_access(pointer, size, emulation::Access::write, __builtin_return_address(0));
}
// Some compilers turn these three into calls of their own.
void* __tsan_memcpy(void* to, const void* from, size_t size) {
  note_access(from, size, emulation::Access::read, __builtin_return_address(0));
  note_access(to, size, emulation::Access::write, __builtin_return_address(0));
  return memcpy(to, from, size);
}
void* __tsan_memmove(void* to, const void* from, size_t size) {
  note_access(from, size, emulation::Access::read, __builtin_return_address(0));
  note_access(to, size, emulation::Access::write, __builtin_return_address(0));
  return memmove(to, from, size);
}
void* __tsan_memset(void* to, int value, size_t size) {
  note_access(to, size, emulation::Access::write, __builtin_return_address(0));
  return memset(to, value, size);
}
}
#endif
