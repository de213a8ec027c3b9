// CUDA's half precision type: its bits, and the conversions. Arithmetic is left out: kernels
// compute in float. Conversions by cast are there unless __CUDA_NO_HALF_CONVERSIONS__ is defined,
// as PyTorch's builds of CUDA extensions define it.

#pragma once

#include "cuda_runtime.h"
#include "fassd_emulation/float_bits.h"

struct alignas(2) __half_raw {
  unsigned short x;
};

class alignas(2) __half {
 public:
  __half() = default;
  __half(const __half_raw& raw) : bits(raw.x) {}
  operator __half_raw() const { return {bits}; }
#ifndef __CUDA_NO_HALF_CONVERSIONS__
  __half(float value) : bits(fassd::emulation::float_to_half(value)) {}
  __half(double value) : bits(fassd::emulation::double_to_half(value)) {}
  explicit __half(int value) : bits(fassd::emulation::double_to_half(value)) {}
  operator float() const { return fassd::emulation::half_to_float(bits); }
#endif

 private:
  unsigned short bits;
};

struct alignas(4) __half2 {
  __half x, y;
};

FASSD_INLINE __half __ushort_as_half(unsigned short bits) {
  return __half_raw{bits};
}
FASSD_INLINE __half __short_as_half(short bits) {
  return __half_raw{static_cast<unsigned short>(bits)};
}
FASSD_INLINE unsigned short __half_as_ushort(__half value) {
  return __half_raw(value).x;
}
FASSD_INLINE short __half_as_short(__half value) {
  return static_cast<short>(__half_raw(value).x);
}

FASSD_INLINE __half __float2half(float value) {
  return __ushort_as_half(fassd::emulation::float_to_half(value));
}
FASSD_INLINE __half __float2half_rn(float value) {
  return __float2half(value);
}
FASSD_INLINE __half __double2half(double value) {
  return __ushort_as_half(fassd::emulation::double_to_half(value));
}
FASSD_INLINE float __half2float(__half value) {
  return fassd::emulation::half_to_float(__half_as_ushort(value));
}

FASSD_INLINE __half2 make_half2(__half x, __half y) {
  return {x, y};
}
FASSD_INLINE __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
FASSD_INLINE __half __low2half(__half2 pair) {
  return pair.x;
}
FASSD_INLINE __half __high2half(__half2 pair) {
  return pair.y;
}
FASSD_INLINE float __low2float(__half2 pair) {
  return __half2float(pair.x);
}
FASSD_INLINE float __high2float(__half2 pair) {
  return __half2float(pair.y);
}
FASSD_INLINE __half2 __floats2half2_rn(float x, float y) {
  return {__float2half(x), __float2half(y)};
}
FASSD_INLINE __half2 __float22half2_rn(float2 pair) {
  return __floats2half2_rn(pair.x, pair.y);
}
FASSD_INLINE float2 __half22float2(__half2 pair) {
  return {__half2float(pair.x), __half2float(pair.y)};
}

using half = __half;
using half2 = __half2;
