// Conversions between floating-point formats, with the roundings of PTX.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace ptx {

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

enum class Rounding : uint8_t { nearest, zero, down, up, away };

// The formats of floating point that a register may hold: bits of the exponent and of the fraction.
struct Format {
  int exponent, fraction;
};
constexpr Format kHalf{5, 10}, kBfloat16{8, 7}, kTf32{8, 10}, kFloat{8, 23};

// `value` to a format of at most 32 bits, the sign in front; `finite` clamps instead of
// overflowing (.satfinite).
inline uint32_t encode(double value, Format format, Rounding rounding, bool finite = false) {
  const int bias = (1 << (format.exponent - 1)) - 1, width = 1 + format.exponent + format.fraction;
  const uint32_t sign = uint32_t(std::signbit(value)) << (width - 1);
  const uint32_t infinity = ((1u << format.exponent) - 1) << format.fraction;
  if (std::isnan(value)) {
    return (1u << (width - 1)) - 1;  // the canonical NaN: all ones but the sign
  }
  if (std::isinf(value)) {
    return sign | (finite ? infinity - 1 : infinity);
  }
  const double magnitude = std::fabs(value);
  if (magnitude == 0) {
    return sign;
  }
  // In units of the last place, which is that of the least normal number for what is smaller.
  const int exponent = std::max(std::ilogb(magnitude), 1 - bias);
  const double scaled = std::ldexp(magnitude, format.fraction - exponent);
  double whole = std::floor(scaled);
  const double rest = scaled - whole;
  bool more = false;
  switch (rounding) {
    case Rounding::nearest:
      more = rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2) == 1);
      break;
    case Rounding::away:
      more = rest >= 0.5;
      break;
    case Rounding::zero:
      break;
    case Rounding::down:
      more = rest > 0 && sign;
      break;
    case Rounding::up:
      more = rest > 0 && !sign;
      break;
  }
  // A carry out of the fraction makes the next exponent, as the fields lie side by side.
  const uint64_t steps = uint64_t(whole) + more;
  const uint64_t bits = (uint64_t(exponent + bias - 1) << format.fraction) + steps;
  if (bits >= infinity) {
    const bool towards_zero = rounding == Rounding::zero || (rounding == Rounding::down && !sign) ||
                              (rounding == Rounding::up && sign);
    return sign | (finite || towards_zero ? infinity - 1 : infinity);
  }
  return sign | uint32_t(bits);
}

inline double decode(uint32_t bits, Format format) {
  const int bias = (1 << (format.exponent - 1)) - 1, width = 1 + format.exponent + format.fraction;
  const uint32_t exponent = bits >> format.fraction & ((1u << format.exponent) - 1);
  const uint32_t fraction = bits & ((1u << format.fraction) - 1);
  const double sign = bits >> (width - 1) & 1 ? -1 : 1;
  if (exponent == (1u << format.exponent) - 1) {
    return fraction ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) {
    return sign * std::ldexp(double(fraction), 1 - bias - format.fraction);
  }
  return sign * std::ldexp(double(fraction + (1u << format.fraction)),
                           int(exponent) - bias - format.fraction);
}

// The four that kernels use most, without the arithmetic above.
inline float half_to_float(uint16_t half) {
  return float(_Float16(bits_as<_Float16>(half)));
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

// What a tensor core reads of a float in TF32: it drops the low bits. (PTX ISA, "Matrix Fragments
// for mma.m16n8k8": the lower bits are ignored.)
inline float tf32_read(uint32_t bits) {
  return bits_as<float>(bits & ~0x1FFFu);
}

// A sum in double precision to float.
inline float to_float(double value, Rounding rounding = Rounding::nearest) {
  return rounding == Rounding::nearest ? float(value)
                                       : bits_as<float>(encode(value, kFloat, rounding));
}

// Subnormal numbers become zeros of their sign (.ftz).
inline float flushed(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

}  // namespace ptx
