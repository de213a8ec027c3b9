// Conversions between types. (PTX ISA, "Data Movement and Conversion Instructions: cvt".)

#include "translate.h"

namespace ptx {
namespace {

// Every integer of 64 bits and every float there is has its place in a long double.
using Real = long double;
static_assert(std::numeric_limits<Real>::digits >= 64);

// An integer of `value`: beyond the range the nearest there is, NaN to 0 (of 64 bits to the sign).
uint64_t to_integer(Real value, Type type, Rounding rounding) {
  const int bits = 8 * bytes_of(type);
  if (std::isnan(value)) {
    return bits == 64 ? 1ull << 63 : 0;
  }
  const Real end = std::scalbn(Real(1), is_signed(type) ? bits - 1 : bits);
  value = std::clamp<Real>(integral(value, rounding), is_signed(type) ? -end : 0, end - 1);
  return value < 0 ? uint64_t(int64_t(value)) : uint64_t(value);
}

// The lower bits of a register as a number, of its sign or of zeros in front.
uint64_t extended(uint64_t bits, Type type) {
  const int empty = 64 - 8 * bytes_of(type);
  return is_signed(type) ? uint64_t(int64_t(bits << empty) >> empty) : bits << empty >> empty;
}

void convert(Warp& warp, const Instruction& i, uint32_t mask) {
  const size_t from = i.from_bytes, to = i.to_bytes;
  each(mask, [&](int lane) {
    uint64_t bits = 0, result = 0;
    std::memcpy(&bits, warp.registers + i.from[0] + from * lane, from);
    bits = is_integer(i.type2) ? extended(bits, i.type2) : bits;
    const Real value = !is_integer(i.type2) ? decode(bits, i.type2)
                       : is_signed(i.type2) ? Real(int64_t(bits))
                                            : Real(bits);
    const Real flat = i.choices[kFlush] && i.type2 == Type::f32 ? flushed(float(value)) : value;
    if (!is_integer(i.type)) {
      result = rounded(flat, i);
    } else if (is_integer(i.type2) && !i.choices[kSaturate]) {
      result = extended(bits, i.type);
    } else {
      result = to_integer(flat, i.type, rounding_of(i));
    }
    std::memcpy(warp.registers + i.to[0] + to * lane, &result, to);
  });
}

// cvt.rn.f16x2.f32 d, a, b: a becomes the upper half.
void convert_two(Warp& warp, const Instruction& i, uint32_t mask) {
  const float *a = warp.lanes<float>(i.from[0]), *b = warp.lanes<float>(i.from[1]);
  uint32_t* to = warp.lanes<uint32_t>(i.to[0]);
  each(mask,
       [&](int lane) { to[lane] = uint32_t(rounded(a[lane], i) << 16 | rounded(b[lane], i)); });
}

template <Type type>
Handler pick_pair(Instruction& i) {
  i.type = type;
  return convert_two;
}

// What kernels are full of, without the detour.
template <typename To, typename From>
constexpr Handler kPlain = lanes<[](From x) { return To(x); }, To, From>;
const struct {
  Type to, from;
  int to_bytes, from_bytes;
  Handler run;
  Rounding rounding = Rounding::nearest;
} kQuick[] = {
    {Type::f32, Type::f16, 4, 2, lanes<half_to_float, float, uint16_t>},
    {Type::f16, Type::f32, 2, 4, lanes<float_to_half, uint16_t, float>},
    {Type::f32, Type::bf16, 4, 2, lanes<bfloat16_to_float, float, uint16_t>},
    {Type::bf16, Type::f32, 2, 4, lanes<float_to_bfloat16, uint16_t, float>},
    {Type::tf32, Type::f32, 4, 4, lanes<float_to_tf32, uint32_t, float>, Rounding::away},
    {Type::s64, Type::s32, 8, 4, kPlain<int64_t, int32_t>},
    {Type::u64, Type::u32, 8, 4, kPlain<uint64_t, uint32_t>},
    {Type::u32, Type::u64, 4, 8, kPlain<uint32_t, uint64_t>},
    {Type::f32, Type::s32, 4, 4, kPlain<float, int32_t>},
    {Type::f32, Type::u32, 4, 4, kPlain<float, uint32_t>},
};

Handler pick_conversion(Instruction& i) {
  const auto is_packed = [](Type type) { return type == Type::f16x2 || type == Type::bf16x2; };
  fault_if(is_packed(i.type) || is_packed(i.type2) || i.type2 == Type::tf32 ||
               (i.type == Type::tf32 && i.type2 != Type::f32),
           "this conversion is not supported");
  for (const auto& quick : kQuick) {
    if (is_plain(i, quick.rounding) && quick.to == i.type && quick.from == i.type2 &&
        quick.to_bytes == i.to_bytes && quick.from_bytes == i.from_bytes) {
      return quick.run;
    }
  }
  return convert;
}

const bool kAdded = add_forms({
    {"cvt", FASSD_PTX_ROUNDING "T T", "=r r", pick_conversion},
    {"cvt", FASSD_PTX_ROUNDING "f16x2 f32", "=4 4 4", pick_pair<Type::f16>},
    {"cvt", FASSD_PTX_ROUNDING "bf16x2 f32", "=4 4 4", pick_pair<Type::bf16>},
});

}  // namespace
}  // namespace ptx
