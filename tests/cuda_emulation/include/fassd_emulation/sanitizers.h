// What the sanitizers have to be told about fibers, shared memory and barriers. Without one, every
// function here is empty.

#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define FASSD_EMULATION_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define FASSD_EMULATION_TSAN 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FASSD_EMULATION_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define FASSD_EMULATION_TSAN 1
#endif
#endif

#ifdef FASSD_EMULATION_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef FASSD_EMULATION_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

// The emulation's own books are kept by all fibers, which is no race: ThreadSanitizer must not see
// it. A function that switches stacks must not be seen by AddressSanitizer either.
#define FASSD_UNCHECKED __attribute__((noinline, no_sanitize("thread", "address", "undefined")))
// Becomes part of its caller, and its accesses are seen or not as those of its caller are. Its own
// variables' ends are not: in a caller that is not watched, what is marked then stays so for ever.
#define FASSD_INLINE inline __attribute__((always_inline, no_sanitize("address", "undefined")))

namespace fassd::emulation {

#ifdef FASSD_EMULATION_TSAN
constexpr bool under_tsan = true;
#else
constexpr bool under_tsan = false;
#endif
#ifdef FASSD_EMULATION_ASAN
constexpr bool under_asan = true;
#else
constexpr bool under_asan = false;
#endif

// What other threads did before their release is seen after this thread's acquire.
FASSD_INLINE void order_release([[maybe_unused]] void* token) {
#ifdef FASSD_EMULATION_TSAN
  __tsan_release(token);
#endif
}

FASSD_INLINE void order_acquire([[maybe_unused]] void* token) {
#ifdef FASSD_EMULATION_TSAN
  __tsan_acquire(token);
#endif
}

// While it lives, ThreadSanitizer looks away, in intercepted functions too. Memory allocated or
// freed meanwhile is new to it: nobody has touched it.
struct Ignore {
  FASSD_INLINE Ignore() {
#ifdef FASSD_EMULATION_TSAN
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  FASSD_INLINE ~Ignore() {
#ifdef FASSD_EMULATION_TSAN
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }
  Ignore(const Ignore&) = delete;
  Ignore& operator=(const Ignore&) = delete;
};

FASSD_INLINE void poison([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#ifdef FASSD_EMULATION_ASAN
  __asan_poison_memory_region(begin, bytes);
#endif
}

FASSD_INLINE void unpoison([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#ifdef FASSD_EMULATION_ASAN
  __asan_unpoison_memory_region(begin, bytes);
#endif
}

// memset and memcpy that no sanitizer intercepts.
FASSD_UNCHECKED inline void fill_unseen(volatile unsigned char* to, unsigned char value,
                                        size_t bytes) {
  size_t i = 0;
  if (reinterpret_cast<uintptr_t>(to) % 8 == 0) {
    const uint64_t word = 0x0101010101010101u * uint64_t(value);
    for (; i + 8 <= bytes; i += 8) *reinterpret_cast<volatile uint64_t*>(to + i) = word;
  }
  for (; i < bytes; i++) to[i] = value;
}

FASSD_UNCHECKED inline bool filled_unseen(const volatile unsigned char* from, unsigned char value,
                                          size_t bytes) {
  for (size_t i = 0; i < bytes; i++) {
    if (from[i] != value) return false;
  }
  return true;
}

}  // namespace fassd::emulation
