// Half precision and bfloat16 as bits: conversions, each with one rounding, to nearest, ties to
// even. What is not a number becomes 0x7FFF, as on a GPU.

#pragma once

#ifdef __F16C__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "intrinsics.h"

namespace fassd::emulation {

// A format's bits are its values in order, so a value's are the number of steps from zero to it.
template <int exponent_bits, int mantissa_bits>
FASSD_INLINE uint16_t round_to_format(double value) {
  constexpr int bias = (1 << (exponent_bits - 1)) - 1;
  constexpr int lowest = 1 - bias - mantissa_bits;  // exponent of the smallest step
  constexpr uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  if (value != value) return 0x7FFF;
  const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  if (magnitude > std::numeric_limits<float>::max()) return uint16_t(sign | infinity);
  if (magnitude == 0) return static_cast<uint16_t>(sign);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int step = std::max(exponent - 1 - mantissa_bits, lowest);
  // Exact: a scaled double, rounded to an integer of at most mantissa_bits + 2 bits.
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -step)));
  const uint32_t bits = steps + (static_cast<uint32_t>(step - lowest) << mantissa_bits);
  return static_cast<uint16_t>(sign | std::min(bits, infinity));
}

FASSD_INLINE uint16_t double_to_half(double value) {
  return round_to_format<5, 10>(value);
}
FASSD_INLINE uint16_t double_to_bfloat16(double value) {
  return round_to_format<8, 7>(value);
}

FASSD_INLINE uint16_t float_to_half(float value) {
#ifdef __F16C__
  return value == value ? static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))
                        : uint16_t(0x7FFF);
#else
  return double_to_half(value);
#endif
}

FASSD_INLINE float half_to_float(uint16_t bits) {
#ifdef __F16C__
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return bits_as<float>(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  if (magnitude < 0x400u) {
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  return bits_as<float>(sign | ((magnitude << 13) + (112u << 23)));
#endif
}

FASSD_INLINE uint16_t float_to_bfloat16(float value) {
  if (value != value) return 0x7FFF;
  const uint32_t bits = bits_as<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

FASSD_INLINE float bfloat16_to_float(uint16_t bits) {
  return bits_as<float>(static_cast<uint32_t>(bits) << 16);
}

}  // namespace fassd::emulation
