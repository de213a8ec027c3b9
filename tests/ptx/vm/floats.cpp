// Floating-point arithmetic. (PTX ISA, "Floating-Point Instructions", "Half Precision
// Floating-Point Instructions".) Approximations are exact to the last bit but one, which the ISA
// allows: what an .approx leaves open cannot be seen here.

#include <cmath>
#include <cstring>

#include "arithmetic.h"
#include "numbers.h"

namespace ptx {
namespace {

constexpr uint8_t kFlush = 1, kSaturate = 2, kRelu = 4;

// .rn, .rz, .rm, .rp and .ftz, .sat, .relu; returns whether all are the default.
bool modes(Binding& b) {
  Instruction& i = b.instruction;
  const int rounding = b.choice({"rn", "rz", "rm", "rp"});
  i.option = uint8_t(rounding < 0 ? 0 : rounding);
  i.option2 = uint8_t((b.flag("ftz") ? kFlush : 0) | (b.flag("sat") ? kSaturate : 0) |
                      (b.flag("relu") ? kRelu : 0));
  return i.option == 0 && i.option2 == 0;
}

Rounding rounding_of(const Instruction& i) { return Rounding(i.option); }

double limited(double value, uint8_t options) {
  if (options & kSaturate) {
    return std::isnan(value) ? 0.0 : std::fmin(std::fmax(value, 0.0), 1.0);
  }
  return options & kRelu && value < 0 ? 0.0 : value;
}

// Any operation of up to three floats that is not of the default modes. (A sum of two floats in
// double precision may be inexact where their exponents lie 29 apart; rounding twice then errs by
// one unit at most.)
template <auto F, int sources>
void float_with_modes(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    double values[3] = {};
    for (int k = 0; k < sources; ++k) {
      const float value = warp.lanes<float>(i.from[k])[lane];
      values[k] = i.option2 & kFlush ? flushed(value) : value;
    }
    const float result = to_float(limited(F(values[0], values[1], values[2]), i.option2),
                                  rounding_of(i));
    warp.lanes<float>(i.to[0])[lane] = i.option2 & kFlush ? flushed(result) : result;
  });
}

template <bool bfloat>
double half_value(uint16_t bits) {
  return bfloat ? bfloat16_to_float(bits) : half_to_float(bits);
}
template <bool bfloat>
uint16_t half_bits(double value) {
  return uint16_t(encode(value, bfloat ? kBfloat16 : kHalf, Rounding::nearest));
}

// One half, or two in a register, each by itself. The result is rounded once, from double, in
// which sums and products of halves are exact; of bfloat16, but for sums far apart.
template <bool bfloat, int count, auto F, int sources>
void half_by_half(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    uint16_t values[3][count] = {}, result[count];
    for (int k = 0; k < sources; ++k) {
      std::memcpy(values[k], warp.registers + i.from[k] + lane * sizeof values[k],
                  sizeof values[k]);
    }
    for (int k = 0; k < count; ++k) {
      const double value =
          F(half_value<bfloat>(values[0][k]), half_value<bfloat>(values[1][k]),
            half_value<bfloat>(values[2][k]));
      result[k] = half_bits<bfloat>(limited(value, i.option2));
    }
    std::memcpy(warp.registers + i.to[0] + lane * sizeof result, result, sizeof result);
  });
}

template <auto F, int sources>
void operation(Binding& b, Type type) {
  const bool plain = modes(b);
  const int bytes = bytes_of(type);
  Handler handler = nullptr;
  switch (type) {
    case Type::f32:
      if (!plain) {
        handler = float_with_modes<[](double x, double y, double z) { return F(x, y, z); }, sources>;
      } else if constexpr (sources == 2) {
        handler = lanes<[](float x, float y) { return F(x, y, 0.0f); }, float, float, float>;
      } else {
        handler = lanes<[](float x, float y, float z) { return F(x, y, z); }, float, float, float,
                        float>;
      }
      break;
    case Type::f64:
      if (!plain) {
        throw Fault("only .rn is supported for .f64");
      }
      if constexpr (sources == 2) {
        handler = lanes<[](double x, double y) { return F(x, y, 0.0); }, double, double, double>;
      } else {
        handler = lanes<[](double x, double y, double z) { return F(x, y, z); }, double, double,
                        double, double>;
      }
      break;
    case Type::f16:
      handler = half_by_half<false, 1, F, sources>;
      break;
    case Type::f16x2:
      handler = half_by_half<false, 2, F, sources>;
      break;
    case Type::bf16:
      handler = half_by_half<true, 1, F, sources>;
      break;
    case Type::bf16x2:
      handler = half_by_half<true, 2, F, sources>;
      break;
    default:
      throw Fault("there is none of this type");
  }
  if (type != Type::f32 && type != Type::f64 && (b.instruction.option || b.instruction.option2 & kFlush)) {
    throw Fault("only .rn without .ftz is supported for halves");
  }
  if (sources == 2) {
    b.registers(handler, bytes, {bytes, bytes});
  } else {
    b.registers(handler, bytes, {bytes, bytes, bytes});
  }
}

// The lesser, a number rather than a NaN, and -0 rather than +0.
template <typename T>
T lesser(T a, T b) {
  return std::isnan(a) ? b : std::isnan(b) ? a : a < b || (a == b && std::signbit(a)) ? a : b;
}
template <typename T>
T greater(T a, T b) {
  return std::isnan(a) ? b : std::isnan(b) ? a : a > b || (a == b && !std::signbit(a)) ? a : b;
}

template <bool least>
void extreme(Binding& b, Type type) {
  if (b.flag("NaN")) {  // a NaN wins
    return operation<[]<typename T>(T x, T y, T) {
      return std::isnan(x) || std::isnan(y) ? std::numeric_limits<T>::quiet_NaN()
             : least                        ? lesser(x, y)
                                            : greater(x, y);
    }, 2>(b, type);
  }
  operation<[]<typename T>(T x, T y, T) { return least ? lesser(x, y) : greater(x, y); }, 2>(b,
                                                                                             type);
}

// Changes of the sign bits alone: also of NaNs.
template <bool negative, uint64_t signs, typename T>
T signs_changed(T bits) {
  return T(negative ? bits ^ signs : bits & ~signs);
}
template <bool negative, uint64_t signs, typename T>
constexpr Handler kSignsChanged = lanes<signs_changed<negative, signs, T>, T, T>;
template <bool negative>
void change_sign(Binding& b, Type type) {
  b.flag("ftz");
  Handler handler = nullptr;
  switch (type) {
    case Type::f32:
      handler = kSignsChanged<negative, 0x80000000, uint32_t>;
      break;
    case Type::f64:
      handler = kSignsChanged<negative, 0x8000000000000000, uint64_t>;
      break;
    case Type::f16:
    case Type::bf16:
      handler = kSignsChanged<negative, 0x8000, uint16_t>;
      break;
    default:
      handler = kSignsChanged<negative, 0x80008000, uint32_t>;
  }
  b.registers(handler, bytes_of(type), {bytes_of(type)});
}

// A function of one number, of float or double.
template <auto F>
void function(Binding& b) {
  const Type type = b.type();
  b.flag("approx");
  b.flag("full");
  const bool plain = modes(b);
  if (type == Type::f32) {
    return b.registers(plain ? lanes<[](float x) { return F(x); }, float, float>
                             : float_with_modes<[](double x, double, double) { return F(x); }, 1>,
                       4, {4});
  }
  if (type != Type::f64 || !plain) {
    throw Fault("this type or rounding is not supported");
  }
  b.registers(lanes<[](double x) { return F(x); }, double, double>, 8, {8});
}

template <bool bfloat>
void compare_halves(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint16_t *a = warp.lanes<uint16_t>(i.from[0]), *b = warp.lanes<uint16_t>(i.from[1]);
  uint32_t is = 0;
  each(mask, [&](int lane) {
    const double x = half_value<bfloat>(a[lane]), y = half_value<bfloat>(b[lane]);
    const bool nan = std::isnan(x) || std::isnan(y);
    bool result = false;
    switch (i.immediate) {
      case 0: result = x == y; break;
      case 1: result = !nan && x != y; break;
      case 2: result = x < y; break;
      case 3: result = x <= y; break;
      case 4: result = x > y; break;
      case 5: result = x >= y; break;
      case 10: result = nan || x == y; break;
      case 11: result = x != y; break;
      case 12: result = nan || x < y; break;
      case 13: result = nan || x <= y; break;
      case 14: result = nan || x > y; break;
      case 15: result = nan || x >= y; break;
      case 16: result = !nan; break;
      default: result = nan;
    }
    is |= uint32_t(result) << lane;
  });
  warp.set_predicate(i.to[0], is, mask);
}

const bool kAdded = add_opcodes({
    {"fma", [](Binding& b) { float_fma(b, b.type()); }},
    {"rcp", function<[](auto x) { return 1 / x; }>},
    {"sqrt", function<[](auto x) { return std::sqrt(x); }>},
    {"rsqrt", function<[](auto x) { return decltype(x)(1 / std::sqrt(double(x))); }>},
    {"ex2", function<[](auto x) { return std::exp2(x); }>},
    {"lg2", function<[](auto x) { return std::log2(x); }>},
    {"sin", function<[](auto x) { return std::sin(x); }>},
    {"cos", function<[](auto x) { return std::cos(x); }>},
    {"tanh", function<[](auto x) { return std::tanh(x); }>},
    {"copysign",
     [](Binding& b) {
       if (b.type() != Type::f32) {
         throw Fault("only of .f32");
       }
       b.registers(lanes<[](uint32_t sign, uint32_t x) {
                     return (x & 0x7FFFFFFFu) | (sign & 0x80000000u);
                   }, uint32_t, uint32_t, uint32_t>,
                   4, {4, 4});
     }},
});

}  // namespace

void float_add(Binding& b, Type type) {
  operation<[]<typename T>(T x, T y, T) { return x + y; }, 2>(b, type);
}
void float_subtract(Binding& b, Type type) {
  operation<[]<typename T>(T x, T y, T) { return x - y; }, 2>(b, type);
}
void float_multiply(Binding& b, Type type) {
  operation<[]<typename T>(T x, T y, T) { return x * y; }, 2>(b, type);
}
void float_fma(Binding& b, Type type) {
  operation<[]<typename T>(T x, T y, T z) { return std::fma(x, y, z); }, 3>(b, type);
}
void float_divide(Binding& b, Type type) {
  b.flag("approx");
  b.flag("full");
  operation<[]<typename T>(T x, T y, T) { return x / y; }, 2>(b, type);
}
void float_minimum(Binding& b, Type type) { extreme<true>(b, type); }
void float_maximum(Binding& b, Type type) { extreme<false>(b, type); }
void float_negate(Binding& b, Type type) { change_sign<true>(b, type); }
void float_absolute(Binding& b, Type type) { change_sign<false>(b, type); }

void half_comparison(Binding& b, Type type, int which) {
  Instruction& i = b.instruction;
  if ((type != Type::f16 && type != Type::bf16) || i.option || (which > 5 && which < 10) ||
      b.operands[0].kind != Operand::name) {
    throw Fault("this comparison of halves is not supported");
  }
  i.run = type == Type::f16 ? compare_halves<false> : compare_halves<true>;
  i.immediate = which;
  i.to[i.outputs++] = b.predicate(b.operands[0]);
  b.add_source(b.operands[1], 2);
  b.add_source(b.operands[2], 2);
}

}  // namespace ptx
