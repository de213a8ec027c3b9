// Integer arithmetic, logic and shifts, predicates, moves within registers.
// (PTX ISA, "Integer Arithmetic Instructions", "Logic and Shift Instructions", "Comparison and
// Selection Instructions", "Data Movement and Conversion Instructions".)

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "arithmetic.h"

namespace ptx {
namespace {

template <typename T>
using Wide = std::conditional_t<sizeof(T) == 2,
                                std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                                std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

// Products and sums wrap; those of narrow types would be of int, where overflow is undefined.
template <typename T>
constexpr T wrapped_sum(T a, T b) {
  using U = std::make_unsigned_t<T>;
  return T(U(a) + U(b));
}
template <typename T>
constexpr T wrapped_product(T a, T b) {
  return T(uint64_t(a) * uint64_t(b));
}
template <typename T>
constexpr T high_product(T a, T b) {
  if constexpr (sizeof(T) == 8) {
    using Twice = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return T((Twice(a) * Twice(b)) >> 64);
  } else {
    return T((Wide<T>(a) * Wide<T>(b)) >> (8 * sizeof(T)));
  }
}

enum class Half { low, high, wide };

void multiply(Binding& b) {
  const Type type = b.type();
  if (!is_integer(type)) {
    return float_multiply(b, type);
  }
  const int bytes = bytes_of(type);
  switch (Half(b.required({"lo", "hi", "wide"}))) {
    case Half::low:
      return b.registers(for_integers(type, []<typename T>(T) -> Handler {
                           return lanes<[](T x, T y) { return wrapped_product(x, y); }, T, T, T>;
                         }),
                         bytes, {bytes, bytes});
    case Half::high:
      return b.registers(for_integers(type, []<typename T>(T) -> Handler {
                           return lanes<[](T x, T y) { return high_product(x, y); }, T, T, T>;
                         }),
                         bytes, {bytes, bytes});
    case Half::wide:
      if (bytes == 8) {
        throw Fault("mul.wide of 64 bits");
      }
      return b.registers(for_integers(type, []<typename T>(T) -> Handler {
                           using W = Wide<T>;
                           return lanes<[](T x, T y) { return wrapped_product(W(x), W(y)); }, W, T,
                                        T>;
                         }),
                         2 * bytes, {bytes, bytes});
  }
}

void multiply_add(Binding& b) {
  const Type type = b.type();
  if (!is_integer(type)) {
    return float_fma(b, type);
  }
  const int bytes = bytes_of(type);
  switch (Half(b.required({"lo", "hi", "wide"}))) {
    case Half::low:
      return b.registers(
          for_integers(type, []<typename T>(T) -> Handler {
            return lanes<[](T x, T y, T z) { return wrapped_sum(wrapped_product(x, y), z); }, T, T,
                         T, T>;
          }),
          bytes, {bytes, bytes, bytes});
    case Half::high:
      return b.registers(
          for_integers(type, []<typename T>(T) -> Handler {
            return lanes<[](T x, T y, T z) { return wrapped_sum(high_product(x, y), z); }, T, T, T,
                         T>;
          }),
          bytes, {bytes, bytes, bytes});
    case Half::wide:
      if (bytes == 8) {
        throw Fault("mad.wide of 64 bits");
      }
      return b.registers(
          for_integers(type, []<typename T>(T) -> Handler {
            using W = Wide<T>;
            return lanes<[](T x, T y, W z) { return wrapped_sum(wrapped_product(W(x), W(y)), z); },
                         W, T, T, W>;
          }),
          2 * bytes, {bytes, bytes, 2 * bytes});
  }
}

// Two sources of a type; floats go elsewhere.
template <typename Pick>
void binary(Binding& b, void (*floats)(Binding&, Type), Pick pick) {
  const Type type = b.type();
  if (!is_integer(type)) {
    return floats(b, type);
  }
  const int bytes = bytes_of(type);
  b.registers(for_integers(type, pick), bytes, {bytes, bytes});
}

template <typename Pick>
void unary(Binding& b, void (*floats)(Binding&, Type), Pick pick) {
  const Type type = b.type();
  if (!is_integer(type)) {
    return floats(b, type);
  }
  b.registers(for_integers(type, pick), bytes_of(type), {bytes_of(type)});
}

void no_floats(Binding&, Type) { throw Fault("there is none of this type"); }

void add(Binding& b) {
  binary(b, float_add, []<typename T>(T) -> Handler {
    return lanes<[](T x, T y) { return wrapped_sum(x, y); }, T, T, T>;
  });
}

void subtract(Binding& b) {
  binary(b, float_subtract, []<typename T>(T) -> Handler {
    return lanes<[](T x, T y) { return wrapped_sum(x, wrapped_product(y, T(-1))); }, T, T, T>;
  });
}

void divide(Binding& b) {
  binary(b, float_divide, []<typename T>(T) -> Handler {
    // A division by zero gives an unspecified value (PTX ISA, "div"); all ones, as GPUs do.
    return lanes<[](T x, T y) {
      if (y == 0) {
        return T(-1);
      }
      if constexpr (std::is_signed_v<T>) {
        if (y == T(-1)) {
          return wrapped_product(x, y);
        }
      }
      return T(x / y);
    }, T, T, T>;
  });
}

void remainder(Binding& b) {
  binary(b, no_floats, []<typename T>(T) -> Handler {
    return lanes<[](T x, T y) {
      if constexpr (std::is_signed_v<T>) {
        if (y == T(-1)) {
          return T(0);
        }
      }
      return y == 0 ? x : T(x % y);
    }, T, T, T>;
  });
}

void minimum(Binding& b) {
  binary(b, float_minimum, []<typename T>(T) -> Handler {
    return lanes<[](T x, T y) { return std::min(x, y); }, T, T, T>;
  });
}

void maximum(Binding& b) {
  binary(b, float_maximum, []<typename T>(T) -> Handler {
    return lanes<[](T x, T y) { return std::max(x, y); }, T, T, T>;
  });
}

void negate(Binding& b) {
  unary(b, float_negate, []<typename T>(T) -> Handler {
    return lanes<[](T x) { return wrapped_product(x, T(-1)); }, T, T>;
  });
}

void absolute(Binding& b) {
  unary(b, float_absolute, []<typename T>(T) -> Handler {
    return lanes<[](T x) { return x < T(0) ? wrapped_product(x, T(-1)) : x; }, T, T>;
  });
}

// Shift amounts are of 32 bits, unsigned; those beyond the width count as the width.
void shift_left(Binding& b) {
  const Type type = b.type();
  const int bytes = bytes_of(type);
  b.registers(for_integers(type, []<typename T>(T) -> Handler {
                return lanes<[](T x, uint32_t n) {
                  return n >= 8 * sizeof(T) ? T(0) : T(std::make_unsigned_t<T>(x) << n);
                }, T, T, uint32_t>;
              }),
              bytes, {bytes, 4});
}

void shift_right(Binding& b) {
  const Type type = b.type();
  const int bytes = bytes_of(type);
  b.registers(for_integers(type, []<typename T>(T) -> Handler {
                return lanes<[](T x, uint32_t n) {
                  return n >= 8 * sizeof(T) ? T(x < T(0) ? -1 : 0) : T(x >> n);
                }, T, T, uint32_t>;
              }),
              bytes, {bytes, 4});
}

// The upper half of {b, a} shifted left, or the lower half of it shifted right.
template <bool left, bool wrap>
uint32_t funnel(uint32_t low, uint32_t high, uint32_t n) {
  n = wrap ? n & 31 : std::min(n, 32u);
  const uint64_t both = uint64_t(high) << 32 | low;
  return left ? uint32_t((both << n) >> 32) : uint32_t(both >> n);
}

void funnel_shift(Binding& b) {
  const bool left = b.required({"l", "r"}) == 0, wrap = b.required({"wrap", "clamp"}) == 0;
  b.type();
  using U = uint32_t;
  b.registers(left ? (wrap ? lanes<funnel<true, true>, U, U, U, U>
                           : lanes<funnel<true, false>, U, U, U, U>)
                   : (wrap ? lanes<funnel<false, true>, U, U, U, U>
                           : lanes<funnel<false, false>, U, U, U, U>),
              4, {4, 4, 4});
}

template <char op>
void logic_of_predicates(Warp& warp, const Instruction& instruction, uint32_t mask) {
  const auto value = [&](int i) {
    return warp.predicate(instruction.from[i]) ^ (instruction.option >> i & 1 ? kAllLanes : 0);
  };
  const uint32_t a = value(0), b = op == '~' ? 0 : value(1);
  warp.set_predicate(instruction.to[0], op == '&' ? a & b : op == '|' ? a | b : op == '^' ? a ^ b : ~a,
                     mask);
}

template <char op>
void logic(Binding& b) {
  constexpr bool single = op == '~';
  const Type type = b.type();
  if (type == Type::pred) {
    b.expect(single ? 2 : 3);
    Instruction& i = b.instruction;
    i.run = logic_of_predicates<op>;
    i.to[i.outputs++] = b.predicate(b.operands[0]);
    for (size_t k = 1; k < b.operands.size(); ++k) {
      i.option |= uint8_t(b.operands[k].negated << i.inputs);
      i.from[i.inputs++] = b.predicate(b.operands[k]);
    }
    return;
  }
  const int bytes = bytes_of(type);
  const auto pick = []<typename T>(T) -> Handler {
    if constexpr (single) {
      return lanes<[](T x) { return T(~x); }, T, T>;
    } else {
      return lanes<[](T x, T y) { return T(op == '&' ? x & y : op == '|' ? x | y : x ^ y); }, T, T,
                   T>;
    }
  };
  if (single) {
    b.registers(for_integers(type, pick), bytes, {bytes});
  } else {
    b.registers(for_integers(type, pick), bytes, {bytes, bytes});
  }
}

// Any function of three bits, by its table.
void logic3(Binding& b) {
  b.type();
  b.expect(5);
  b.instruction.immediate = b.constant(b.operands[4]);
  b.operands.pop_back();
  b.registers(
      [](Warp& warp, const Instruction& instruction, uint32_t mask) {
        const uint32_t* from[3];
        for (int i = 0; i < 3; ++i) {
          from[i] = warp.lanes<uint32_t>(instruction.from[i]);
        }
        uint32_t* to = warp.lanes<uint32_t>(instruction.to[0]);
        each(mask, [&](int lane) {
          uint32_t result = 0;
          for (int row = 0; row < 8; ++row) {
            if (instruction.immediate >> row & 1) {
              result |= (row & 4 ? from[0][lane] : ~from[0][lane]) &
                        (row & 2 ? from[1][lane] : ~from[1][lane]) &
                        (row & 1 ? from[2][lane] : ~from[2][lane]);
            }
          }
          to[lane] = result;
        });
      },
      4, {4, 4, 4});
}

// Bytes of {b, a} by number; a number with bit 3 set asks for copies of that byte's sign.
uint32_t permuted(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = uint64_t(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t which = selector >> (4 * i) & 15, byte = uint32_t(both >> (8 * (which & 7))) & 255;
    result |= (which & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return result;
}

uint32_t with_bits(uint32_t bits, uint32_t into, uint32_t position, uint32_t length) {
  position &= 255;
  length &= 255;
  const uint64_t field = ((uint64_t(1) << std::min(length, 32u)) - 1) << std::min(position, 32u);
  const uint32_t mask = uint32_t(field);
  return (into & ~mask) | (uint32_t(uint64_t(bits) << std::min(position, 32u)) & mask);
}

template <typename T>
T extracted(T value, uint32_t position, uint32_t length) {
  using U = std::make_unsigned_t<T>;
  constexpr int width = 8 * sizeof(T);
  const int begin = position & 255, count = length & 255;
  const bool sign = std::is_signed_v<T> && count > 0 &&
                    (U(value) >> std::min(begin + count - 1, width - 1) & 1);
  U result = 0;
  for (int i = 0; i < width; ++i) {
    const bool bit = i < count && begin + i < width ? U(value) >> (begin + i) & 1 : sign;
    result |= U(bit) << i;
  }
  return T(result);
}

void extract(Binding& b) {
  const Type type = b.type();
  const int bytes = bytes_of(type);
  b.registers(for_integers(type, []<typename T>(T) -> Handler {
                return lanes<extracted<T>, T, T, uint32_t, uint32_t>;
              }),
              bytes, {bytes, 4, 4});
}

template <typename T>
uint32_t leading_zeros(T x) {
  uint32_t count = 0;
  for (T bit = T(1) << (8 * sizeof(T) - 1); bit && !(x & bit); bit >>= 1) {
    ++count;
  }
  return count;
}

// A count of bits, 32 bits wide, of 32 or 64.
template <auto narrow, auto wide>
void bit_count(Binding& b) {
  const int bytes = bytes_of(b.type());
  b.registers(bytes == 8 ? lanes<wide, uint32_t, uint64_t> : lanes<narrow, uint32_t, uint32_t>, 4,
              {bytes});
}

// The highest bit that is set, of signed numbers that differs from the sign; all ones for none.
void find_highest(Binding& b) {
  const bool shift = b.flag("shiftamt");
  const Type type = b.type();
  const int bytes = bytes_of(type);
  b.instruction.option = shift;
  b.instruction.type = type;
  b.registers(
      [](Warp& warp, const Instruction& i, uint32_t mask) {
        const int width = 8 * bytes_of(i.type);
        each(mask, [&](int lane) {
          uint64_t x = width == 64 ? warp.lanes<uint64_t>(i.from[0])[lane]
                                   : warp.lanes<uint32_t>(i.from[0])[lane];
          if (is_signed(i.type) && x >> (width - 1) & 1) {
            x = ~x & (width == 64 ? ~0ull : 0xFFFFFFFFull);
          }
          const uint32_t at = x ? 63 - uint32_t(__builtin_clzll(x)) : ~0u;
          warp.lanes<uint32_t>(i.to[0])[lane] =
              x && i.option ? uint32_t(width) - 1 - at : at;
        });
      },
      4, {bytes});
}

// setp.lt.and.s32 p|q, a, b, !c: p is (a < b) and c, q is (not a < b) and c.
enum Combine : uint8_t { alone, with_and, with_or, with_xor };

template <auto F, typename T>
void compare(Warp& warp, const Instruction& instruction, uint32_t mask) {
  const T *a = warp.lanes<T>(instruction.from[0]), *b = warp.lanes<T>(instruction.from[1]);
  uint32_t is = 0;
  each(mask, [&](int lane) { is |= uint32_t(F(a[lane], b[lane])) << lane; });
  uint32_t not_is = ~is;
  if (instruction.option) {
    const uint32_t c =
        warp.predicate(instruction.from[2]) ^ (instruction.option2 ? kAllLanes : 0);
    const auto combined = [&](uint32_t x) {
      return instruction.option == with_and ? x & c : instruction.option == with_or ? x | c : x ^ c;
    };
    is = combined(is);
    not_is = combined(not_is);
  }
  warp.set_predicate(instruction.to[0], is, mask);
  if (instruction.outputs > 1) {
    warp.set_predicate(instruction.to[1], not_is, mask);
  }
}

// Ordered comparisons of a NaN are false, unordered ones (equ, ...) true.
template <typename T>
Handler comparison(int which) {
  switch (which) {
    case 0:
      return compare<[](T a, T b) { return (a == b); }, T>;
    case 1:
      return compare<[](T a, T b) { return (a < b || a > b); }, T>;
    case 2:
    case 6:
      return compare<[](T a, T b) { return (a < b); }, T>;
    case 3:
    case 7:
      return compare<[](T a, T b) { return (a <= b); }, T>;
    case 4:
    case 8:
      return compare<[](T a, T b) { return (a > b); }, T>;
    case 5:
    case 9:
      return compare<[](T a, T b) { return (a >= b); }, T>;
    case 10:
      return compare<[](T a, T b) { return (!(a < b || a > b)); }, T>;
    case 11:
      return compare<[](T a, T b) { return (!(a == b)); }, T>;
    case 12:
      return compare<[](T a, T b) { return (!(a >= b)); }, T>;
    case 13:
      return compare<[](T a, T b) { return (!(a > b)); }, T>;
    case 14:
      return compare<[](T a, T b) { return (!(a <= b)); }, T>;
    case 15:
      return compare<[](T a, T b) { return (!(a < b)); }, T>;
    case 16:
      return compare<[](T a, T b) { return (a == a && b == b); }, T>;
    default:
      return compare<[](T a, T b) { return (a != a || b != b); }, T>;
  }
}

void set_predicate(Binding& b) {
  Instruction& i = b.instruction;
  const Type type = b.type();
  const int which = b.required({"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "lo",  "ls",  "hi", "hs",
                                "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"});
  i.option = uint8_t(b.choice({"and", "or", "xor"}) + 1);
  b.flag("ftz");  // subnormal numbers are compared as they are: no kernel here asks otherwise
  b.expect(i.option ? 4 : 3);
  if (type == Type::f32) {
    i.run = comparison<float>(which);
  } else if (type == Type::f64) {
    i.run = comparison<double>(which);
  } else if (is_integer(type)) {
    if (which >= 10) {
      throw Fault("a comparison of floating-point numbers");
    }
    // lo, ls, hi and hs are those of unsigned numbers.
    i.run = for_integers(type, [&]<typename T>(T) -> Handler {
      return which >= 6 ? comparison<std::make_unsigned_t<T>>(which) : comparison<T>(which);
    });
  } else {
    return half_comparison(b, type, which);
  }
  const Operand& to = b.operands[0];
  if (to.kind == Operand::vector) {
    i.to[i.outputs++] = b.predicate(to.parts[0]);
    i.to[i.outputs++] = b.predicate(to.parts[1]);
  } else {
    i.to[i.outputs++] = b.predicate(to);
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
  const auto pick = []<typename T>(T) -> Handler {
    return [](Warp& warp, const Instruction& instruction, uint32_t mask) {
      T* to = warp.lanes<T>(instruction.to[0]);
      const T *x = warp.lanes<T>(instruction.from[0]), *y = warp.lanes<T>(instruction.from[1]);
      const uint32_t p =
          warp.predicate(instruction.from[2]) ^ (instruction.option ? kAllLanes : 0);
      each(mask, [&](int lane) { to[lane] = p >> lane & 1 ? x[lane] : y[lane]; });
    };
  };
  i.run = for_integers(bytes == 2 ? Type::b16 : bytes == 4 ? Type::b32 : Type::b64, pick);
  b.add_target(b.operands[0], bytes);
  b.add_source(b.operands[1], bytes);
  b.add_source(b.operands[2], bytes);
  i.option = b.operands[3].negated;
  i.from[i.inputs++] = b.predicate(b.operands[3]);
}

// Pieces of one value to pieces of another size: mov.b32 {a, b}, c.
void move_pieces(Warp& warp, const Instruction& instruction, uint32_t mask) {
  const size_t from = instruction.option, to = instruction.option2;
  each(mask, [&](int lane) {
    uint8_t whole[16];
    for (int i = 0; i < instruction.inputs; ++i) {
      std::memcpy(whole + from * i, warp.registers + instruction.from[i] + from * lane, from);
    }
    for (int i = 0; i < instruction.outputs; ++i) {
      std::memcpy(warp.registers + instruction.to[i] + to * lane, whole + to * i, to);
    }
  });
}

void move(Binding& b) {
  Instruction& i = b.instruction;
  const Type type = b.type();
  b.expect(2);
  if (type == Type::pred) {
    i.run = [](Warp& warp, const Instruction& instruction, uint32_t mask) {
      warp.set_predicate(instruction.to[0], warp.predicate(instruction.from[0]), mask);
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
  if (to.size() == 1 && from.size() == 1 && bytes < 16) {
    const Type bits = bytes == 2 ? Type::b16 : bytes == 4 ? Type::b32 : Type::b64;
    return b.registers(for_integers(bits, []<typename T>(T) -> Handler {
                         return lanes<[](T x) { return x; }, T, T>;
                       }),
                       bytes, {bytes});
  }
  i.run = move_pieces;
  i.option = uint8_t(bytes / int(from.size()));
  i.option2 = uint8_t(bytes / int(to.size()));
  for (const Operand& operand : to) {
    b.add_target(operand, i.option2);
  }
  for (const Operand& operand : from) {
    b.add_source(operand, i.option);
  }
}

const bool kAdded = add_opcodes({
    {"add", add},
    {"sub", subtract},
    {"mul", multiply},
    {"mad", multiply_add},
    {"div", divide},
    {"rem", remainder},
    {"min", minimum},
    {"max", maximum},
    {"neg", negate},
    {"abs", absolute},
    {"shl", shift_left},
    {"shr", shift_right},
    {"shf", funnel_shift},
    {"and", logic<'&'>},
    {"or", logic<'|'>},
    {"xor", logic<'^'>},
    {"not", logic<'~'>},
    {"lop3", logic3},
    {"prmt",
     [](Binding& b) {
       b.type();
       b.registers(lanes<permuted, uint32_t, uint32_t, uint32_t, uint32_t>, 4, {4, 4, 4});
     }},
    {"bfi",
     [](Binding& b) {
       if (bytes_of(b.type()) != 4) {
         throw Fault("bfi of 64 bits");
       }
       b.registers(lanes<with_bits, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>, 4,
                   {4, 4, 4, 4});
     }},
    {"bfe", extract},
    {"bfind", find_highest},
    {"clz", bit_count<leading_zeros<uint32_t>, leading_zeros<uint64_t>>},
    {"popc", bit_count<[](uint32_t x) { return uint32_t(__builtin_popcount(x)); },
                       [](uint64_t x) { return uint32_t(__builtin_popcountll(x)); }>},
    {"brev",
     [](Binding& b) {
       if (bytes_of(b.type()) != 4) {
         throw Fault("brev of 64 bits");
       }
       b.registers(lanes<[](uint32_t x) {
                     uint32_t reversed = 0;
                     for (int i = 0; i < 32; ++i) {
                       reversed |= (x >> i & 1) << (31 - i);
                     }
                     return reversed;
                   }, uint32_t, uint32_t>,
                   4, {4});
     }},
    {"setp", set_predicate},
    {"selp", select},
    {"mov", move},
});

}  // namespace
}  // namespace ptx
