// The words that CUDA adds to C++, and its vector types.

#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __restrict__ __restrict
#define __launch_bounds__(...)
// The standard library names the attribute so.
#define __noinline__
// Instrumented code grows: there, inlining is left to the compiler.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define __forceinline__ inline
#else
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define __align__(n) alignas(n)
// Storage of one block, as blocks run one after another. Nothing else in a library of kernels is
// local to a thread of the CPU, so the emulation knows where it all is; AddressSanitizer watches
// the bounds of ordinary variables only.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#define FASSD_VECTOR(T, name, alignment1, alignment2, alignment4) \
  struct alignas(alignment1) name##1 {                            \
    T x;                                                          \
  };                                                              \
  struct alignas(alignment2) name##2 {                            \
    T x, y;                                                       \
  };                                                              \
  struct name##3 {                                                \
    T x, y, z;                                                    \
  };                                                              \
  struct alignas(alignment4) name##4 {                            \
    T x, y, z, w;                                                 \
  };                                                              \
  constexpr name##1 make_##name##1(T x) {                         \
    return {x};                                                   \
  }                                                               \
  constexpr name##2 make_##name##2(T x, T y) {                    \
    return {x, y};                                                \
  }                                                               \
  constexpr name##3 make_##name##3(T x, T y, T z) {               \
    return {x, y, z};                                             \
  }                                                               \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) {          \
    return {x, y, z, w};                                          \
  }

FASSD_VECTOR(signed char, char, 1, 2, 4)
FASSD_VECTOR(unsigned char, uchar, 1, 2, 4)
FASSD_VECTOR(short, short, 2, 4, 8)
FASSD_VECTOR(unsigned short, ushort, 2, 4, 8)
FASSD_VECTOR(int, int, 4, 8, 16)
FASSD_VECTOR(unsigned, uint, 4, 8, 16)
FASSD_VECTOR(float, float, 4, 8, 16)
FASSD_VECTOR(long long, longlong, 8, 16, 16)
FASSD_VECTOR(unsigned long long, ulonglong, 8, 16, 16)
FASSD_VECTOR(double, double, 8, 16, 16)
#undef FASSD_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// Of the thread that runs; the emulation sets them at every switch.
inline uint3 threadIdx = {};
inline uint3 blockIdx = {};
inline dim3 blockDim;
inline dim3 gridDim;
constexpr int warpSize = 32;
