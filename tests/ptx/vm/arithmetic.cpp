// Arithmetic of single lanes, integers and floating point alike; logic, comparisons, moves.
// (PTX ISA, "Integer Arithmetic Instructions", "Floating-Point Instructions", "Half Precision
// Floating-Point Instructions", "Logic and Shift Instructions", "Comparison and Selection
// Instructions".) Approximations are exact: what an .approx leaves open cannot be seen here.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "numbers.h"
#include "translate.h"

namespace ptx {
namespace {

// Integers wrap: this is compiled with -fwrapv.
template <auto F>
Handler of_integers(Type type) {
  const auto pick = [&]<typename T>(T) -> Handler {
    if constexpr (std::is_invocable_v<decltype(F), T>) {
      return lanes<[](T x) { return T(F(x)); }, T, T>;
    } else if constexpr (std::is_invocable_v<decltype(F), T, T>) {
      return lanes<[](T x, T y) { return T(F(x, y)); }, T, T, T>;
    } else {
      return lanes<[](T x, T y, T z) { return T(F(x, y, z)); }, T, T, T, T>;
    }
  };
  return for_integers(type, pick);
}

constexpr uint8_t kFlush = 1, kSaturate = 2, kRelu = 4;

double limited(double value, uint8_t options) {
  if (options & kSaturate) {
    return std::isnan(value) ? 0.0 : std::fmin(std::fmax(value, 0.0), 1.0);
  }
  return options & kRelu && value < 0 ? 0.0 : value;
}

template <auto F, int sources>
double applied(const double (&x)[3]) {
  if constexpr (sources == 1) {
    return F(x[0]);
  } else if constexpr (sources == 2) {
    return F(x[0], x[1]);
  } else {
    return F(x[0], x[1], x[2]);
  }
}

// Floats of whatever rounding and limits, and halves, of which a register may hold two: computed
// in double and rounded once. (A sum of two floats whose exponents lie 29 apart is not exact in
// double; rounding twice then errs by a unit at most.)
template <auto F, int sources>
void by_double(Warp& warp, const Instruction& i, uint32_t mask) {
  const bool single = i.type == Type::f32;
  const bool bfloat = i.type == Type::bf16 || i.type == Type::bf16x2;
  const Format format = single ? kFloat : bfloat ? kBfloat16 : kHalf;
  const size_t bytes = size_t(bytes_of(i.type)), piece = single ? 4 : 2;
  each(mask, [&](int lane) {
    for (size_t at = 0; at < bytes; at += piece) {
      double values[3] = {};
      for (int k = 0; k < sources; ++k) {
        uint32_t bits = 0;
        std::memcpy(&bits, warp.registers + i.from[k] + bytes * lane + at, piece);
        values[k] = decode(bits, format);
        values[k] = i.option2 & kFlush ? flushed(float(values[k])) : values[k];
      }
      uint32_t result =
          encode(limited(applied<F, sources>(values), i.option2), format, Rounding(i.option));
      if (i.option2 & kFlush) {
        result = bits_as<uint32_t>(flushed(bits_as<float>(result)));
      }
      std::memcpy(warp.registers + i.to[0] + bytes * lane + at, &result, piece);
    }
  });
}

template <auto F, typename T, int sources>
Handler plain() {
  if constexpr (sources == 1) {
    return lanes<[](T x) { return F(x); }, T, T>;
  } else if constexpr (sources == 2) {
    return lanes<[](T x, T y) { return F(x, y); }, T, T, T>;
  } else {
    return lanes<[](T x, T y, T z) { return F(x, y, z); }, T, T, T, T>;
  }
}

template <auto F, int sources>
void floats(Binding& b, Type type) {
  Instruction& i = b.instruction;
  const int rounding = b.choice({"rn", "rz", "rm", "rp"});
  i.type = type;
  i.option = uint8_t(std::max(0, rounding));
  i.option2 = uint8_t((b.flag("ftz") ? kFlush : 0) | (b.flag("sat") ? kSaturate : 0) |
                      (b.flag("relu") ? kRelu : 0));
  b.choice({"approx", "full"});
  const bool exact = i.option == 0 && i.option2 == 0;
  if (type == Type::tf32 || type == Type::pred || (type == Type::f64 && !exact) ||
      (type != Type::f32 && i.option2 & kFlush)) {
    throw Fault("this type or rounding is not supported");
  }
  const Handler handler = exact && type == Type::f32   ? plain<F, float, sources>()
                          : exact && type == Type::f64 ? plain<F, double, sources>()
                                                       : by_double<F, sources>;
  b.registers(handler, bytes_of(type), sources, bytes_of(type));
}

// An instruction of integers and of floating point.
template <auto F, int sources>
void arithmetic(Binding& b) {
  const Type type = b.type();
  if (is_integer(type)) {
    b.registers(of_integers<F>(type), bytes_of(type), sources, bytes_of(type));
  } else {
    floats<F, sources>(b, type);
  }
}

template <auto F, int sources = 1>
void only_floats(Binding& b) {
  floats<F, sources>(b, b.type());
}

template <typename T>
T lesser(T x, T y) {
  if constexpr (std::is_integral_v<T>) {
    return std::min(x, y);
  } else {  // a number rather than a NaN, and -0 rather than +0
    return std::isnan(x) ? y : std::isnan(y) ? x : x < y || (x == y && std::signbit(x)) ? x : y;
  }
}
template <typename T>
T greater(T x, T y) {
  if constexpr (std::is_integral_v<T>) {
    return std::max(x, y);
  } else {
    return std::isnan(x) ? y : std::isnan(y) ? x : x > y || (x == y && !std::signbit(x)) ? x : y;
  }
}

template <auto F>
void extreme(Binding& b) {
  if (b.flag("NaN")) {
    arithmetic<[]<typename T>(T x, T y) { return x != x ? x : y != y ? y : F(x, y); }, 2>(b);
  } else {
    arithmetic<F, 2>(b);
  }
}

template <typename T>
using Wide = std::conditional_t<sizeof(T) == 2,
                                std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                                std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
template <typename T>
using Twice = std::conditional_t<sizeof(T) != 8, Wide<T>,
                                 std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>;

constexpr auto kProduct = []<typename T>(T x, T y) { return T(Twice<T>(x) * Twice<T>(y)); };
constexpr auto kHighProduct = []<typename T>(T x, T y) {
  return T((Twice<T>(x) * Twice<T>(y)) >> (8 * sizeof(T)));
};

// mul and mad: the lower half, the upper half, or all of the product.
template <int sources>
void product(Binding& b) {
  const Type type = b.type();
  if (!is_integer(type)) {
    if constexpr (sources == 2) {
      return floats<[](auto x, auto y) { return x * y; }, 2>(b, type);
    } else {
      return floats<[](auto x, auto y, auto z) { return std::fma(x, y, z); }, 3>(b, type);
    }
  }
  const int bytes = bytes_of(type), half = b.required({"lo", "hi", "wide"});
  if (half == 2) {
    if (bytes == 8) {
      throw Fault("a product of 128 bits");
    }
    const Handler handler = for_integers(type, []<typename T>(T) -> Handler {
      using W = Wide<T>;
      if constexpr (sources == 2) {
        return lanes<[](T x, T y) { return W(W(x) * W(y)); }, W, T, T>;
      } else {
        return lanes<[](T x, T y, W z) { return W(W(x) * W(y) + z); }, W, T, T, W>;
      }
    });
    return sources == 2 ? b.registers(handler, 2 * bytes, {bytes, bytes})
                        : b.registers(handler, 2 * bytes, {bytes, bytes, 2 * bytes});
  }
  Handler handler = nullptr;
  if constexpr (sources == 2) {
    handler = half ? of_integers<kHighProduct>(type) : of_integers<kProduct>(type);
  } else {
    constexpr auto low = []<typename T>(T x, T y, T z) { return kProduct(x, y) + z; };
    constexpr auto high = []<typename T>(T x, T y, T z) { return kHighProduct(x, y) + z; };
    handler = half ? of_integers<high>(type) : of_integers<low>(type);
  }
  b.registers(handler, bytes, sources, bytes);
}

// A division by zero gives an unspecified value (PTX ISA, "div"); all ones, as GPUs do.
template <typename T>
T quotient(T x, T y) {
  if constexpr (std::is_integral_v<T>) {
    return y == 0 ? T(-1) : std::is_signed_v<T> && y == T(-1) ? T(-x) : T(x / y);
  } else {
    return x / y;
  }
}
template <typename T>
T remainder(T x, T y) {
  return y == 0 ? x : std::is_signed_v<T> && y == T(-1) ? T(0) : T(x % y);
}

// Shift amounts are of 32 bits, unsigned; those beyond the width count as the width.
template <bool left>
void shift(Binding& b) {
  const Type type = b.type();
  b.registers(for_integers(type, []<typename T>(T) -> Handler {
                return lanes<[](T x, uint32_t n) {
                  const uint32_t bits = 8 * sizeof(T);
                  if (left) {
                    return n >= bits ? T(0) : T(std::make_unsigned_t<T>(x) << n);
                  }
                  return n >= bits ? T(x < T(0) ? -1 : 0) : T(x >> n);
                }, T, T, uint32_t>;
              }),
              bytes_of(type), {bytes_of(type), 4});
}

// The upper half of {b, a} shifted left, or the lower half of it shifted right.
void funnel_shift(Binding& b) {
  b.instruction.option = uint8_t(b.required({"l", "r"}));
  b.instruction.option2 = uint8_t(b.required({"wrap", "clamp"}));
  b.type();
  b.registers(
      [](Warp& warp, const Instruction& i, uint32_t mask) {
        each(mask, [&](int lane) {
          const auto from = [&](int k) { return warp.lanes<uint32_t>(i.from[k])[lane]; };
          const uint64_t both = uint64_t(from(1)) << 32 | from(0);
          const uint32_t n = i.option2 ? std::min(from(2), 32u) : from(2) & 31;
          warp.lanes<uint32_t>(i.to[0])[lane] = uint32_t(i.option ? both >> n : (both << n) >> 32);
        });
      },
      4, {4, 4, 4});
}

template <char op>
void logic(Binding& b) {
  static constexpr bool single = op == '~';
  static constexpr auto of_two = [](auto x, auto y) { return op == '&' ? x & y : op == '|' ? x | y : x ^ y; };
  const Type type = b.type();
  if (type != Type::pred) {
    const Handler handler = single ? of_integers<[](auto x) { return ~x; }>(type)
                                   : of_integers<of_two>(type);
    return b.registers(handler, bytes_of(type), single ? 1 : 2, bytes_of(type));
  }
  Instruction& i = b.instruction;
  b.expect(single ? 2 : 3);
  i.to[i.outputs++] = b.predicate(b.operands[0]);
  for (size_t k = 1; k < b.operands.size(); ++k) {
    i.option |= uint8_t(b.operands[k].negated << i.inputs);
    i.from[i.inputs++] = b.predicate(b.operands[k]);
  }
  i.run = [](Warp& warp, const Instruction& i, uint32_t mask) {
    const auto value = [&](int k) {
      return warp.predicate(i.from[k]) ^ (i.option >> k & 1 ? kAllLanes : 0);
    };
    warp.set_predicate(i.to[0], single ? ~value(0) : of_two(value(0), value(single ? 0 : 1)), mask);
  };
}

// Any function of three bits, by its table.
void logic3(Binding& b) {
  b.type();
  b.expect(5);
  b.instruction.immediate = b.constant(b.operands[4]);
  b.operands.pop_back();
  b.registers(
      [](Warp& warp, const Instruction& i, uint32_t mask) {
        each(mask, [&](int lane) {
          const auto bits = [&](int k, bool ones) {
            const uint32_t x = warp.lanes<uint32_t>(i.from[k])[lane];
            return ones ? x : ~x;
          };
          uint32_t result = 0;
          for (int row = 0; row < 8; ++row) {
            if (i.immediate >> row & 1) {
              result |= bits(0, row & 4) & bits(1, row & 2) & bits(2, row & 1);
            }
          }
          warp.lanes<uint32_t>(i.to[0])[lane] = result;
        });
      },
      4, {4, 4, 4});
}

// Bytes of {b, a} by number; a number with bit 3 set asks for copies of that byte's sign.
uint32_t permuted(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = uint64_t(high) << 32 | low;
  uint32_t result = 0;
  for (int k = 0; k < 4; ++k) {
    const uint32_t which = selector >> (4 * k) & 15;
    const uint32_t byte = uint32_t(both >> (8 * (which & 7))) & 255;
    result |= (which & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * k);
  }
  return result;
}

uint32_t with_bits(uint32_t bits, uint32_t into, uint32_t position, uint32_t length) {
  const uint32_t begin = std::min(position & 255, 32u), count = std::min(length & 255, 32u);
  const uint32_t mask = uint32_t(((uint64_t(1) << count) - 1) << begin);
  return (into & ~mask) | (uint32_t(uint64_t(bits) << begin) & mask);
}

template <typename T>
T extracted(T value, uint32_t position, uint32_t length) {
  using U = std::make_unsigned_t<T>;
  constexpr int width = 8 * sizeof(T);
  const int begin = position & 255, count = length & 255;
  const bool sign = std::is_signed_v<T> && count > 0 &&
                    (U(value) >> std::min(begin + count - 1, width - 1) & 1);
  U result = 0;
  for (int k = 0; k < width; ++k) {
    const bool bit = k < count && begin + k < width ? U(value) >> (begin + k) & 1 : sign;
    result |= U(bit) << k;
  }
  return T(result);
}

void extract(Binding& b) {
  const Type type = b.type();
  b.registers(for_integers(type, []<typename T>(T) -> Handler {
                return lanes<extracted<T>, T, T, uint32_t, uint32_t>;
              }),
              bytes_of(type), {bytes_of(type), 4, 4});
}

// A count of bits, 32 bits wide, of 32 or 64; of a b32, zeros are put in front.
template <auto F>
void bit_count(Binding& b) {
  const int bytes = bytes_of(b.type());
  b.registers(bytes == 8 ? lanes<[](uint64_t x) { return F(x, 64); }, uint32_t, uint64_t>
                         : lanes<[](uint32_t x) { return F(uint64_t(x), 32); }, uint32_t, uint32_t>,
              4, {bytes});
}

constexpr auto kLeadingZeros = [](uint64_t x, int width) {
  return uint32_t(x ? __builtin_clzll(x) - (64 - width) : width);
};

// setp.lt.and.s32 p|q, a, b, !c: p is (a < b) and c, q is (not a < b) and c.
enum Combine : uint8_t { alone, with_and, with_or, with_xor };

template <auto F, typename T>
void compare(Warp& warp, const Instruction& i, uint32_t mask) {
  const T *a = warp.lanes<T>(i.from[0]), *b = warp.lanes<T>(i.from[1]);
  uint32_t is = 0;
  each(mask, [&](int lane) { is |= uint32_t(F(a[lane], b[lane])) << lane; });
  uint32_t not_is = ~is;
  if (i.option) {
    const uint32_t c = warp.predicate(i.from[2]) ^ (i.option2 ? kAllLanes : 0);
    const auto combined = [&](uint32_t x) {
      return i.option == with_and ? x & c : i.option == with_or ? x | c : x ^ c;
    };
    is = combined(is);
    not_is = combined(not_is);
  }
  warp.set_predicate(i.to[0], is, mask);
  if (i.outputs > 1) {
    warp.set_predicate(i.to[1], not_is, mask);
  }
}

// Ordered comparisons of a NaN are false, unordered ones (equ, ...) true.
template <typename T>
Handler comparison(int which) {
  static constexpr Handler kHandlers[] = {
      compare<[](T a, T b) { return (a == b); }, T>,
      compare<[](T a, T b) { return (a < b || a > b); }, T>,
      compare<[](T a, T b) { return (a < b); }, T>,
      compare<[](T a, T b) { return (a <= b); }, T>,
      compare<[](T a, T b) { return (a > b); }, T>,
      compare<[](T a, T b) { return (a >= b); }, T>,
      compare<[](T a, T b) { return (!(a < b || a > b)); }, T>,
      compare<[](T a, T b) { return (!(a == b)); }, T>,
      compare<[](T a, T b) { return (!(a >= b)); }, T>,
      compare<[](T a, T b) { return (!(a > b)); }, T>,
      compare<[](T a, T b) { return (!(a <= b)); }, T>,
      compare<[](T a, T b) { return (!(a < b)); }, T>,
      compare<[](T a, T b) { return (a == a && b == b); }, T>,
      compare<[](T a, T b) { return (a != a || b != b); }, T>,
  };
  return kHandlers[which];
}

void set_predicate(Binding& b) {
  Instruction& i = b.instruction;
  const Type type = b.type();
  // lo, ls, hi and hs are lt, le, gt and ge of unsigned numbers.
  const int of_unsigned = b.choice({"lo", "ls", "hi", "hs"});
  const int which = of_unsigned >= 0
                        ? 2 + of_unsigned
                        : b.required({"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu",
                                      "leu", "gtu", "geu", "num", "nan"});
  i.option = uint8_t(b.choice({"and", "or", "xor"}) + 1);
  b.flag("ftz");  // subnormal numbers are compared as they are: no kernel here asks otherwise
  b.expect(i.option ? 4 : 3);
  if (type == Type::f32) {
    i.run = comparison<float>(which);
  } else if (type == Type::f64) {
    i.run = comparison<double>(which);
  } else if (type == Type::f16) {
    i.run = comparison<_Float16>(which);
  } else if (is_integer(type) && which < 6) {
    i.run = for_integers(type, [&]<typename T>(T) { return comparison<T>(which); });
  } else {
    throw Fault("this comparison is not supported");
  }
  const Operand& to = b.operands[0];
  const std::vector<Operand> targets =
      to.kind == Operand::vector ? to.parts : std::vector<Operand>{to};
  for (const Operand& target : targets) {
    i.to[i.outputs++] = b.predicate(target);
  }
  b.add_source(b.operands[1], bytes_of(type));
  b.add_source(b.operands[2], bytes_of(type));
  if (i.option) {
    i.option2 = b.operands[3].negated;
    i.from[i.inputs++] = b.predicate(b.operands[3]);
  }
}

void select(Binding& b) {
  Instruction& i = b.instruction;
  const int bytes = bytes_of(b.type());
  b.expect(4);
  b.add_target(b.operands[0], bytes);
  b.add_source(b.operands[1], bytes);
  b.add_source(b.operands[2], bytes);
  i.option = b.operands[3].negated;
  i.option2 = uint8_t(bytes);
  i.from[i.inputs++] = b.predicate(b.operands[3]);
  i.run = [](Warp& warp, const Instruction& i, uint32_t mask) {
    const size_t bytes = i.option2;
    const uint32_t p = warp.predicate(i.from[2]) ^ (i.option ? kAllLanes : 0);
    each(mask, [&](int lane) {
      const uint32_t from = p >> lane & 1 ? i.from[0] : i.from[1];
      std::memcpy(warp.registers + i.to[0] + bytes * lane, warp.registers + from + bytes * lane,
                  bytes);
    });
  };
}

// Pieces of one value to pieces of another size: mov.b32 {a, b}, c.
void move_pieces(Warp& warp, const Instruction& i, uint32_t mask) {
  const size_t from = i.option, to = i.option2;
  each(mask, [&](int lane) {
    uint8_t whole[16];
    for (int k = 0; k < i.inputs; ++k) {
      std::memcpy(whole + from * k, warp.registers + i.from[k] + from * lane, from);
    }
    for (int k = 0; k < i.outputs; ++k) {
      std::memcpy(warp.registers + i.to[k] + to * lane, whole + to * k, to);
    }
  });
}

void move(Binding& b) {
  Instruction& i = b.instruction;
  const Type type = b.type();
  b.expect(2);
  if (type == Type::pred) {
    i.run = [](Warp& warp, const Instruction& i, uint32_t mask) {
      warp.set_predicate(i.to[0], warp.predicate(i.from[0]), mask);
    };
    i.to[i.outputs++] = b.predicate(b.operands[0]);
    i.from[i.inputs++] = b.predicate(b.operands[1]);
    return;
  }
  const int bytes = bytes_of(type);
  const auto pieces = [&](const Operand& operand) {
    return operand.kind == Operand::vector ? operand.parts : std::vector<Operand>{operand};
  };
  const std::vector<Operand> to = pieces(b.operands[0]), from = pieces(b.operands[1]);
  i.run = bytes == 4 && to.size() == 1 && from.size() == 1
              ? lanes<[](uint32_t x) { return x; }, uint32_t, uint32_t>
              : move_pieces;
  i.option = uint8_t(bytes / int(from.size()));
  i.option2 = uint8_t(bytes / int(to.size()));
  for (const Operand& operand : to) {
    b.add_target(operand, i.option2);
  }
  for (const Operand& operand : from) {
    b.add_source(operand, i.option);
  }
}

template <auto F, typename... S>
void of_32_bits(Binding& b) {
  b.type();
  b.registers(lanes<F, uint32_t, S...>, 4, int(sizeof...(S)), 4);
}

constexpr auto kAbsolute = []<typename T>(T x) {
  if constexpr (std::is_integral_v<T>) {
    return T(x < T(0) ? -x : x);
  } else {
    return std::fabs(x);
  }
};

using U = uint32_t;

// Of numbers of 16 bits a register may hold two.
void add(Binding& b) {
  if (b.choice({"u16x2", "s16x2"}) < 0) {
    return arithmetic<[](auto x, auto y) { return x + y; }, 2>(b);
  }
  constexpr auto both = [](U x, U y) {
    return (x & 0xFFFF0000) + (y & 0xFFFF0000) + uint16_t(x + y);
  };
  b.registers(lanes<both, U, U, U>, 4, 2, 4);
}

const bool kAdded = add_opcodes({
    {"add", add},
    {"sub", arithmetic<[](auto x, auto y) { return x - y; }, 2>},
    {"mul", product<2>},
    {"mad", product<3>},
    {"fma", product<3>},
    {"div", arithmetic<[](auto x, auto y) { return quotient(x, y); }, 2>},
    {"rem",
     [](Binding& b) {
       const Type type = b.type();
       b.registers(of_integers<[](auto x, auto y) { return remainder(x, y); }>(type),
                   bytes_of(type), 2, bytes_of(type));
     }},
    {"min", extreme<[](auto x, auto y) { return lesser(x, y); }>},
    {"max", extreme<[](auto x, auto y) { return greater(x, y); }>},
    {"neg", arithmetic<[](auto x) { return -x; }, 1>},
    {"abs", arithmetic<kAbsolute, 1>},
    {"rcp", only_floats<[](auto x) { return 1 / x; }>},
    {"sqrt", only_floats<[](auto x) { return std::sqrt(x); }>},
    {"rsqrt", only_floats<[](auto x) { return decltype(x)(1 / std::sqrt(double(x))); }>},
    {"ex2", only_floats<[](auto x) { return std::exp2(x); }>},
    {"lg2", only_floats<[](auto x) { return std::log2(x); }>},
    {"shl", shift<true>},
    {"shr", shift<false>},
    {"shf", funnel_shift},
    {"and", logic<'&'>},
    {"or", logic<'|'>},
    {"xor", logic<'^'>},
    {"not", logic<'~'>},
    {"lop3", logic3},
    {"prmt", of_32_bits<permuted, U, U, U>},
    {"bfi", of_32_bits<with_bits, U, U, U, U>},
    {"bfe", extract},
    {"clz", bit_count<kLeadingZeros>},
    {"bfind", bit_count<[](uint64_t x, int) { return 63 - kLeadingZeros(x, 64); }>},
    {"popc", bit_count<[](uint64_t x, int) { return uint32_t(__builtin_popcountll(x)); }>},
    {"brev", bit_count<[](uint64_t x, int width) {
       uint32_t reversed = 0;
       for (int k = 0; k < width && k < 32; ++k) {
         reversed |= uint32_t(x >> k & 1) << (31 - k);
       }
       return reversed;
     }>},
    {"setp", set_predicate},
    {"selp", select},
    {"mov", move},
});

}  // namespace
}  // namespace ptx
