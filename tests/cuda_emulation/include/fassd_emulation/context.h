// A fiber: a stack of its own, and the switch from one to another. A switch saves what the ABI asks
// a function to save, so that it costs a few nanoseconds; swapcontext, a system call each time,
// serves where there is no assembly.

#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#include "sanitizers.h"

#if !defined(FASSD_EMULATION_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define FASSD_EMULATION_UCONTEXT 1
#endif
#ifdef FASSD_EMULATION_UCONTEXT
#include <ucontext.h>
#endif

namespace fassd::emulation {

// Frames of instrumented code are several times as large. Only the pages that are used cost memory.
constexpr size_t stack_bytes = under_asan ? 512 * 1024 : 128 * 1024;

#ifdef FASSD_EMULATION_UCONTEXT

using SavedContext = ucontext_t;

FASSD_UNCHECKED inline void switch_context(SavedContext* from, SavedContext* to) {
  swapcontext(from, to);
}

FASSD_UNCHECKED inline void start_context(SavedContext* context, char* stack, char* top,
                                          void (*entry)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = static_cast<size_t>(top - stack);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}

#else

using SavedContext = void*;  // the stack pointer; the rest lies on the stack

#if defined(__x86_64__)

#ifdef __AVX512F__
#define FASSD_MORE_CLOBBERS                                                                     \
  , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",   \
      "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", \
      "k7"
#else
#define FASSD_MORE_CLOBBERS
#endif

// The 128 bytes below the stack pointer belong to the function. rbx and rbp cannot be named as
// clobbered everywhere, so they are saved by hand; everything else is the compiler's to save.
FASSD_UNCHECKED inline void switch_context(SavedContext* from, SavedContext* to) {
  asm volatile(
      "leaq -128(%%rsp), %%rsp\n\t"
      "leaq 1f(%%rip), %%rax\n\t"
      "pushq %%rax\n\t"
      "pushq %%rbp\n\t"
      "pushq %%rbx\n\t"
      "movq %%rsp, (%0)\n\t"
      "movq (%1), %%rsp\n\t"
      "popq %%rbx\n\t"
      "popq %%rbp\n\t"
      "popq %%rax\n\t"
      "jmpq *%%rax\n"
      "1:\n\t"
      "leaq 128(%%rsp), %%rsp"
      : "+D"(from), "+S"(to)
      :
      : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc",
        "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15" FASSD_MORE_CLOBBERS);
}

FASSD_UNCHECKED inline void start_context(SavedContext* context, char*, char* top,
                                          void (*entry)()) {
  // A function starts with its return address, here none, 8 bytes below a multiple of 16.
  void** frame = reinterpret_cast<void**>(top) - 4;
  frame[0] = nullptr;  // rbx
  frame[1] = nullptr;  // rbp
  frame[2] = reinterpret_cast<void*>(entry);
  frame[3] = nullptr;
  *context = frame;
}

#else  // aarch64

FASSD_UNCHECKED inline void switch_context(SavedContext* from, SavedContext* to) {
  register SavedContext* source asm("x0") = from;
  register SavedContext* target asm("x1") = to;
  asm volatile(
      "sub sp, sp, #48\n\t"
      "stp x29, x30, [sp]\n\t"
      "str x19, [sp, #16]\n\t"
      "adr x9, 1f\n\t"
      "str x9, [sp, #24]\n\t"
      "mov x9, sp\n\t"
      "str x9, [%0]\n\t"
      "ldr x9, [%1]\n\t"
      "mov sp, x9\n\t"
      "ldp x29, x30, [sp]\n\t"
      "ldr x19, [sp, #16]\n\t"
      "ldr x9, [sp, #24]\n\t"
      "add sp, sp, #48\n\t"
      "br x9\n"
      "1:"
      : "+r"(source), "+r"(target)
      :
      : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
        "x16", "x17", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "memory", "cc",
        "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13",
        "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26",
        "v27", "v28", "v29", "v30", "v31");
}

FASSD_UNCHECKED inline void start_context(SavedContext* context, char*, char* top,
                                          void (*entry)()) {
  void** frame = reinterpret_cast<void**>(top) - 6;
  frame[0] = nullptr;  // x29, the frame pointer
  frame[1] = nullptr;  // x30, the return address
  frame[2] = nullptr;  // x19
  frame[3] = reinterpret_cast<void*>(entry);
  *context = frame;
}

#endif
#endif

struct Fiber {
  SavedContext context = {};
  char* stack = nullptr;  // its lowest byte; below it is a page that nobody may touch
  size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;        // ThreadSanitizer's
};

// Gives a fiber its stack. Stacks that all began at the same offset would share a few cache lines'
// sets; `color` shifts them.
inline void create_stack(Fiber& fiber, unsigned color) {
  const Ignore ignore;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t mapped = page + stack_bytes + 32 * 1024;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);
  fiber.stack = static_cast<char*>(memory) + page;
  fiber.bytes = stack_bytes + color % 30 * 1088;
  unpoison(fiber.stack, fiber.bytes);  // of what was there before
}

inline void start_fiber(Fiber& fiber, void (*entry)()) {
  fiber.fake_stack = nullptr;
  char* top = fiber.stack + fiber.bytes;
  start_context(&fiber.context, fiber.stack, top - reinterpret_cast<uintptr_t>(top) % 16, entry);
}

inline void create_tsan_fiber([[maybe_unused]] Fiber& fiber) {
#ifdef FASSD_EMULATION_TSAN
  if (fiber.tsan != nullptr) __tsan_destroy_fiber(fiber.tsan);
  fiber.tsan = __tsan_create_fiber(0);
#endif
}

// To be called first on the stack that a switch leads to. Tells the bounds of the stack that it
// came from, if asked: nobody else knows the host's.
FASSD_INLINE void arrive_on([[maybe_unused]] Fiber& here, [[maybe_unused]] Fiber* previous) {
#ifdef FASSD_EMULATION_ASAN
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(here.fake_stack, &bottom, &size);
  if (previous != nullptr) {
    previous->stack = static_cast<char*>(const_cast<void*>(bottom));
    previous->bytes = size;
  }
#endif
}

FASSD_INLINE void depart([[maybe_unused]] Fiber& from, Fiber& to, [[maybe_unused]] bool for_good) {
#ifdef FASSD_EMULATION_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.bytes);
#endif
#ifdef FASSD_EMULATION_TSAN
  // A switch orders nothing: only barriers do.
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  switch_context(&from.context, &to.context);
}

}  // namespace fassd::emulation
