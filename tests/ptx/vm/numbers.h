// Numbers as registers hold them, with the roundings of PTX.

#pragma once

#ifdef __F16C__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "machine.h"

namespace ptx {

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float half_to_float(uint16_t half) {
#ifdef __F16C__  // the compiler would call a function for a half that ends as a double
  return _cvtsh_ss(half);
#else
  return float(bits_as<_Float16>(half));
#endif
}
inline uint16_t float_to_half(float value) {
  return std::isnan(value) ? 0x7FFF : bits_as<uint16_t>(_Float16(value));
}
inline float bfloat16_to_float(uint16_t bits) {
  return bits_as<float>(uint32_t(bits) << 16);
}
inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  return std::isnan(value) ? 0x7FFF : uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
// To nearest, of two equally near to that away from zero; infinities stay.
inline uint32_t float_to_tf32(float value) {
  return std::isnan(value) ? 0x7FFFE000 : (bits_as<uint32_t>(value) + 0x1000) & ~0x1FFFu;
}
enum class Rounding : uint8_t { nearest, zero, down, up, away };

template <typename Real>
Real integral(Real value, Rounding rounding) {
  switch (rounding) {
    case Rounding::zero:
      return std::trunc(value);
    case Rounding::down:
      return std::floor(value);
    case Rounding::up:
      return std::ceil(value);
    case Rounding::away:
      return std::round(value);
    default:
      return std::nearbyint(value);  // ties to even
  }
}

inline double decode(uint64_t bits, Type type) {
  switch (type) {
    case Type::f16:
    case Type::f16x2:
      return half_to_float(uint16_t(bits));
    case Type::bf16:
    case Type::bf16x2:
      return bfloat16_to_float(uint16_t(bits));
    case Type::tf32:  // PTX ISA, "Matrix Fragments for mma.m16n8k8": the lower bits are ignored
      return bits_as<float>(uint32_t(bits) & ~0x1FFFu);
    case Type::f32:
      return bits_as<float>(uint32_t(bits));
    default:
      return bits_as<double>(bits);
  }
}

// `value` to a format of floating point; `finite` clamps instead of overflowing (.satfinite).
template <typename Real>
uint64_t encode(Real value, Type type, Rounding rounding = Rounding::nearest, bool finite = false) {
  if (type == Type::f64) {
    return bits_as<uint64_t>(double(value));
  }
  const bool half = type == Type::f16 || type == Type::f16x2;
  const int exponent_bits = half ? 5 : 8;
  const int fraction_bits = type == Type::f32 ? 23 : half || type == Type::tf32 ? 10 : 7;
  const int bias = (1 << (exponent_bits - 1)) - 1, width = 1 + exponent_bits + fraction_bits;
  const int unused = type == Type::tf32 ? 13 : 0;  // bits below the fraction
  const uint32_t infinity = ((1u << exponent_bits) - 1) << fraction_bits;
  const uint32_t sign = uint32_t(std::signbit(value)) << (width - 1);
  if (std::isnan(value)) {
    return type == Type::f32 ? 0x7FFFFFFF : ((1u << (width - 1)) - 1) << unused;  // canonical
  }
  uint32_t bits = infinity;
  if (value == 0) {
    bits = 0;
  } else if (!std::isinf(value)) {
    // In units of the last place, which is that of the least normal number for what is smaller. A
    // carry out of the fraction makes the next exponent, as the fields lie side by side.
    const int exponent = std::max(std::ilogb(value), 1 - bias);
    const Real steps = integral(std::scalbn(value, fraction_bits - exponent), rounding);
    const uint64_t wide =
        (uint64_t(exponent + bias - 1) << fraction_bits) + uint64_t(std::fabs(steps));
    // Beyond the largest number: to it or to infinity, as three quarters become 0 or 1.
    const bool stays = integral(std::copysign(Real(0.75), value), rounding) == 0;
    bits = wide < infinity ? uint32_t(wide) : infinity - stays;
  }
  return uint64_t(sign | (finite ? std::min(bits, infinity - 1) : bits)) << unused;
}

// How tensor cores round a sum is not documented: to nearest here, or, set so, towards zero.
inline float rounded_sum(double sum) {
  return settings.truncate_products
             ? bits_as<float>(uint32_t(encode(sum, Type::f32, Rounding::zero)))
             : float(sum);
}

// Subnormal numbers become zeros of their sign (.ftz).
inline float flushed(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

}  // namespace ptx
