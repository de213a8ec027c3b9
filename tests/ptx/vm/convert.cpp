// Conversions between types. (PTX ISA, "Data Movement and Conversion Instructions: cvt".)

#include <algorithm>
#include <cmath>
#include <cstring>

#include "numbers.h"
#include "translate.h"

namespace ptx {
namespace {

constexpr uint8_t kSaturate = 1, kRelu = 2, kFinite = 4, kFlush = 8, kIntegral = 16;

double as_double(uint64_t bits, Type type) {
  switch (type) {
    case Type::f16:
      return half_to_float(uint16_t(bits));
    case Type::bf16:
      return bfloat16_to_float(uint16_t(bits));
    case Type::f32:
      return bits_as<float>(uint32_t(bits));
    default:
      return bits_as<double>(bits);
  }
}

double integral(double value, Rounding rounding) {
  switch (rounding) {
    case Rounding::zero:
      return std::trunc(value);
    case Rounding::down:
      return std::floor(value);
    case Rounding::up:
      return std::ceil(value);
    default:
      return std::nearbyint(value);  // ties to even
  }
}

uint64_t from_double(double value, const Instruction& i) {
  const Rounding rounding = Rounding(i.option);
  if (i.option2 & kIntegral) {
    value = integral(value, rounding);
  }
  if (i.option2 & kSaturate) {
    value = std::isnan(value) ? 0 : std::clamp(value, 0.0, 1.0);
  }
  if (i.option2 & kRelu && value < 0) {
    value = 0;
  }
  const bool finite = i.option2 & kFinite;
  switch (i.type) {
    case Type::f16:
      return encode(value, kHalf, rounding, finite);
    case Type::bf16:
      return encode(value, kBfloat16, rounding, finite);
    case Type::tf32:
      return uint64_t(encode(value, kTf32, rounding, finite)) << 13;
    case Type::f32: {
      const float result = to_float(value, i.option2 & kIntegral ? Rounding::nearest : rounding);
      return bits_as<uint32_t>(i.option2 & kFlush ? flushed(result) : result);
    }
    default:
      return bits_as<uint64_t>(value);
  }
}

// Floats to integers: beyond the range the nearest there is, NaN to 0 (of 64 bits to the sign).
uint64_t to_integer(double value, Type type, Rounding rounding) {
  const int bits = 8 * bytes_of(type);
  if (std::isnan(value)) {
    return bits == 64 ? 1ull << 63 : 0;
  }
  value = integral(value, rounding);
  if (is_signed(type)) {
    const double end = std::ldexp(1.0, bits - 1);
    return value >= end ? (1ull << (bits - 1)) - 1 : uint64_t(int64_t(std::max(value, -end)));
  }
  const double end = std::ldexp(1.0, bits);
  return value <= 0 ? 0 : value >= end ? ~0ull >> (64 - bits) : uint64_t(value);
}

// The lower bits of a register as a number of 64 bits, of their sign or of zeros in front.
int64_t extended(uint64_t bits, Type type) {
  const int empty = 64 - 8 * bytes_of(type);
  return is_signed(type) ? int64_t(bits << empty) >> empty : int64_t(bits << empty >> empty);
}

int64_t saturated(int64_t value, Type from, Type to) {
  const int bits = 8 * bytes_of(to);
  const bool huge = !is_signed(from) && value < 0;  // 2^63 and more
  if (is_signed(to)) {
    const int64_t end = int64_t(~0ull >> (65 - bits));
    return huge ? end : std::clamp(value, -end - 1, end);
  }
  if (is_signed(from) && value < 0) {
    return 0;
  }
  const uint64_t end = ~0ull >> (64 - bits);
  return int64_t(std::min(uint64_t(value), end));
}

uint64_t converted(uint64_t bits, const Instruction& i) {
  const Type from = i.type2, to = i.type;
  const Rounding rounding = Rounding(i.option);
  if (!is_integer(from)) {
    double value = as_double(bits, from);
    if (i.option2 & kFlush && from == Type::f32) {
      value = flushed(float(value));
    }
    return is_integer(to) ? to_integer(value, to, rounding) : from_double(value, i);
  }
  const int64_t value = extended(bits, from);
  if (is_integer(to)) {
    return uint64_t(
        extended(uint64_t(i.option2 & kSaturate ? saturated(value, from, to) : value), to));
  }
  const bool huge = !is_signed(from) && value < 0;
  if (to == Type::f32 && rounding == Rounding::nearest) {  // in one step
    return bits_as<uint32_t>(huge ? float(uint64_t(value)) : float(value));
  }
  return from_double(huge ? double(uint64_t(value)) : double(value), i);
}

void convert(Warp& warp, const Instruction& i, uint32_t mask) {
  const size_t from = size_t(i.immediate & 255), to = size_t(i.immediate >> 8);
  each(mask, [&](int lane) {
    uint64_t bits = 0;
    std::memcpy(&bits, warp.registers + i.from[0] + from * lane, from);
    const uint64_t result = converted(bits, i);
    std::memcpy(warp.registers + i.to[0] + to * lane, &result, to);
  });
}

// cvt.rn.f16x2.f32 d, a, b: a becomes the upper half.
void convert_two(Warp& warp, const Instruction& i, uint32_t mask) {
  Instruction half = i;
  half.type = i.type == Type::f16x2 ? Type::f16 : Type::bf16;
  const float *a = warp.lanes<float>(i.from[0]), *b = warp.lanes<float>(i.from[1]);
  uint32_t* to = warp.lanes<uint32_t>(i.to[0]);
  each(mask, [&](int lane) {
    to[lane] = uint32_t(from_double(a[lane], half)) << 16 | uint32_t(from_double(b[lane], half));
  });
}

// What kernels are full of, without the detour by double.
Handler quick(const Instruction& i) {
  const bool nearest = i.option == 0 && i.option2 == 0;
  if (!nearest) {
    return nullptr;
  }
  const Type from = i.type2, to = i.type;
  const int from_bytes = int(i.immediate & 255), to_bytes = int(i.immediate >> 8);
  if (from == Type::f16 && to == Type::f32) {
    return lanes<half_to_float, float, uint16_t>;
  }
  if (from == Type::f32 && to == Type::f16) {
    return lanes<float_to_half, uint16_t, float>;
  }
  if (from == Type::bf16 && to == Type::f32) {
    return lanes<bfloat16_to_float, float, uint16_t>;
  }
  if (from == Type::f32 && to == Type::bf16) {
    return lanes<float_to_bfloat16, uint16_t, float>;
  }
  if (from == Type::s32 && to == Type::s64 && from_bytes == 4) {
    return lanes<[](int32_t x) { return int64_t(x); }, int64_t, int32_t>;
  }
  if (from == Type::u32 && to == Type::u64 && from_bytes == 4) {
    return lanes<[](uint32_t x) { return uint64_t(x); }, uint64_t, uint32_t>;
  }
  if (from == Type::u64 && to == Type::u32 && to_bytes == 4) {
    return lanes<[](uint64_t x) { return uint32_t(x); }, uint32_t, uint64_t>;
  }
  return nullptr;
}

void bind_convert(Binding& b) {
  Instruction& i = b.instruction;
  i.type2 = b.type();
  i.type = b.type();
  const int rounding = b.choice({"rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"});
  i.option = uint8_t(rounding < 0 ? 0 : rounding < 5 ? rounding : rounding - 5);
  i.option2 = uint8_t((b.flag("sat") ? kSaturate : 0) | (b.flag("relu") ? kRelu : 0) |
                      (b.flag("satfinite") ? kFinite : 0) | (b.flag("ftz") ? kFlush : 0) |
                      (rounding >= 5 ? kIntegral : 0));
  if (i.type == Type::f16x2 || i.type == Type::bf16x2) {
    if (i.type2 != Type::f32) {
      throw Fault("only from .f32");
    }
    return b.registers(convert_two, 4, {4, 4});
  }
  if ((i.type == Type::tf32 && i.type2 != Type::f32) || i.type2 == Type::tf32 ||
      i.type2 == Type::f16x2 || i.type2 == Type::bf16x2) {
    throw Fault("this conversion is not supported");
  }
  b.expect(2);
  // Registers may be wider than the types.
  int from = std::max(2, bytes_of(i.type2)), to = std::max(2, bytes_of(i.type));
  i.from[i.inputs++] = b.wide_source(b.operands[1], from);
  i.to[i.outputs++] = b.wide_target(b.operands[0], to);
  if (from < bytes_of(i.type2) || to < bytes_of(i.type)) {
    throw Fault("a register is too small for its type");
  }
  i.immediate = from | to << 8;
  const Handler fast = quick(i);
  i.run = fast ? fast : convert;
}

const bool kAdded = add_opcodes({{"cvt", bind_convert}});

}  // namespace
}  // namespace ptx
