// CUDA's bfloat16 type: its bits, and the conversions. Arithmetic is left out: kernels compute in
// float. Conversions by cast are there unless __CUDA_NO_BFLOAT16_CONVERSIONS__ is defined, as
// PyTorch's builds of CUDA extensions define it.

#pragma once

#include "cuda_runtime.h"
#include "fassd_emulation/float_bits.h"

struct alignas(2) __nv_bfloat16_raw {
  unsigned short x;
};

class alignas(2) __nv_bfloat16 {
 public:
  __nv_bfloat16() = default;
  __nv_bfloat16(const __nv_bfloat16_raw& raw) : bits(raw.x) {}
  operator __nv_bfloat16_raw() const { return {bits}; }
#ifndef __CUDA_NO_BFLOAT16_CONVERSIONS__
  __nv_bfloat16(float value) : bits(fassd::emulation::float_to_bfloat16(value)) {}
  __nv_bfloat16(double value) : bits(fassd::emulation::double_to_bfloat16(value)) {}
  explicit __nv_bfloat16(int value) : bits(fassd::emulation::double_to_bfloat16(value)) {}
  operator float() const { return fassd::emulation::bfloat16_to_float(bits); }
#endif

 private:
  unsigned short bits;
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

FASSD_INLINE __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return __nv_bfloat16_raw{bits};
}
FASSD_INLINE __nv_bfloat16 __short_as_bfloat16(short bits) {
  return __nv_bfloat16_raw{static_cast<unsigned short>(bits)};
}
FASSD_INLINE unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
  return __nv_bfloat16_raw(value).x;
}
FASSD_INLINE short __bfloat16_as_short(__nv_bfloat16 value) {
  return static_cast<short>(__nv_bfloat16_raw(value).x);
}

FASSD_INLINE __nv_bfloat16 __float2bfloat16(float value) {
  return __ushort_as_bfloat16(fassd::emulation::float_to_bfloat16(value));
}
FASSD_INLINE __nv_bfloat16 __float2bfloat16_rn(float value) {
  return __float2bfloat16(value);
}
FASSD_INLINE __nv_bfloat16 __double2bfloat16(double value) {
  return __ushort_as_bfloat16(fassd::emulation::double_to_bfloat16(value));
}
FASSD_INLINE float __bfloat162float(__nv_bfloat16 value) {
  return fassd::emulation::bfloat16_to_float(__bfloat16_as_ushort(value));
}

FASSD_INLINE __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
FASSD_INLINE __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
FASSD_INLINE __nv_bfloat16 __low2bfloat16(__nv_bfloat162 pair) {
  return pair.x;
}
FASSD_INLINE __nv_bfloat16 __high2bfloat16(__nv_bfloat162 pair) {
  return pair.y;
}
FASSD_INLINE float __low2float(__nv_bfloat162 pair) {
  return __bfloat162float(pair.x);
}
FASSD_INLINE float __high2float(__nv_bfloat162 pair) {
  return __bfloat162float(pair.y);
}
FASSD_INLINE __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16(x), __float2bfloat16(y)};
}
FASSD_INLINE __nv_bfloat162 __float22bfloat162_rn(float2 pair) {
  return __floats2bfloat162_rn(pair.x, pair.y);
}
FASSD_INLINE float2 __bfloat1622float2(__nv_bfloat162 pair) {
  return {__bfloat162float(pair.x), __bfloat162float(pair.y)};
}

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
