// A fiber: a stack that can be left and entered again.
#pragma once

#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(EMULATION_UCONTEXT) && defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))
#define EMULATION_SWITCH_IN_ASSEMBLY
#else
#include <ucontext.h>
#endif

#ifdef EMULATION_ADDRESS
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef EMULATION_SWITCH_IN_ASSEMBLY
// Leaves the stack pointer, below the registers that a call keeps, at `*from`, and goes on where `to` was left.
extern "C" __attribute__((visibility("hidden"))) void emulation_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
  .text
  .p2align 4
  .globl emulation_switch
  .hidden emulation_switch
  .type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulation_switch, .-emulation_switch
)");
#else
asm(R"(
  .text
  .p2align 4
  .globl emulation_switch
  .hidden emulation_switch
  .type emulation_switch, %function
emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size emulation_switch, .-emulation_switch
)");
#endif
#endif

namespace emulation {

class Fiber {
 public:
  // The fiber that is running now, on the stack of its OS thread.
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes it a fiber that runs `entry`, which never returns, on `stack`. What ran there before is forgotten.
  void prepare(void (*entry)(), unsigned char* stack, size_t size) {
    stack_ = stack;
    size_ = size;
#ifdef EMULATION_ADDRESS
    // Frames that were left for good are still marked.
    __asan_unpoison_memory_region(stack, size);
    fake_stack_ = nullptr;
#endif
#ifdef EMULATION_SWITCH_IN_ASSEMBLY
    void** top = reinterpret_cast<void**>(stack + size);
#if defined(__x86_64__)
    // As after a call from nowhere: the registers, the entry as the address to return to, and its own return address.
    top -= 8;
    for (int i = 0; i < 8; ++i) top[i] = nullptr;
    top[6] = reinterpret_cast<void*>(entry);
#else
    top -= 20;
    for (int i = 0; i < 20; ++i) top[i] = nullptr;
    top[11] = reinterpret_cast<void*>(entry);
#endif
    stack_pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // Goes on with `to`; returns when somebody goes on with this one.
  void switch_to(Fiber& to) {
#ifdef EMULATION_ADDRESS
    __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.size_);
#endif
#ifdef EMULATION_SWITCH_IN_ASSEMBLY
    emulation_switch(&stack_pointer_, to.stack_pointer_);
#else
    swapcontext(&context_, &to.context_);
#endif
#ifdef EMULATION_ADDRESS
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

  // The first thing that a new fiber does; `from` is the fiber of the OS thread, if it comes from there.
  static void begin([[maybe_unused]] Fiber* from) {
#ifdef EMULATION_ADDRESS
    const void* stack;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
    if (from) {
      from->stack_ = static_cast<const unsigned char*>(stack);
      from->size_ = size;
    }
#endif
  }

 private:
  const unsigned char* stack_ = nullptr;
  size_t size_ = 0;
#ifdef EMULATION_ADDRESS
  void* fake_stack_ = nullptr;
#endif
#ifdef EMULATION_SWITCH_IN_ASSEMBLY
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

// Stacks for a number of fibers, with a page below each that may not be touched: a stack that is too small ends in a
// segmentation fault and not in the neighbour's variables.
class Stacks {
 public:
  explicit Stacks(size_t count) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), length_(count * stride()) {
    void* memory = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    memory_ = memory == MAP_FAILED ? nullptr : static_cast<unsigned char*>(memory);
    for (size_t i = 0; memory_ && i < count; ++i) mprotect(memory_ + i * stride(), page_, PROT_NONE);
  }
  ~Stacks() {
    if (!memory_) return;
#ifdef EMULATION_ADDRESS
    __asan_unpoison_memory_region(memory_, length_);
#endif
    munmap(memory_, length_);
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  bool is_there() const { return memory_ != nullptr; }
  unsigned char* stack(size_t i) const { return memory_ + i * stride() + page_; }
  // Stacks begin at different places of their last pages: at the same ones, they would push each other out of the cache.
  size_t size_of(size_t i) const { return size - i % 32 * 17 * 64; }
  bool holds(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(memory_) < length_; }

  // Only what is touched takes memory; frames are large under the address sanitizer.
  static constexpr size_t size = 256 << 10;

 private:
  size_t stride() const { return size + page_; }

  size_t page_;
  size_t length_;
  unsigned char* memory_;
};

}  // namespace emulation
