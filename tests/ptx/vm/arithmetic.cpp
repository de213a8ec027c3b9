// Arithmetic of single lanes, integers and floating point alike; logic, comparisons, moves.
// (PTX ISA, "Integer Arithmetic Instructions", "Floating-Point Instructions", "Half Precision
// Floating-Point Instructions", "Logic and Shift Instructions", "Comparison and Selection
// Instructions".) Approximations are exact: what an .approx leaves open cannot be seen here.

#include <bit>
#include <functional>
#include <type_traits>

#include "translate.h"

namespace ptx {
namespace {

template <auto F, typename T = double>
constexpr int kArity = std::is_invocable_v<decltype(F), T>      ? 1
                       : std::is_invocable_v<decltype(F), T, T> ? 2
                                                                : 3;
// F of as many values of a type as it takes.
template <auto F, typename T>
Handler plain() {
  constexpr auto made = [](auto... x) { return T(F(x...)); };
  if constexpr (kArity<F, T> == 1) {
    return lanes<made, T, T>;
  } else if constexpr (kArity<F, T> == 2) {
    return lanes<made, T, T, T>;
  } else {
    return lanes<made, T, T, T, T>;
  }
}

// Integers wrap: this is compiled with -fwrapv.
template <auto F>
Handler integers(Instruction& i) {
  return for_integers(i.type, []<typename T>(T) { return plain<F, T>(); });
}

constexpr const char* kFloats = FASSD_PTX_ROUNDING "(approx|full) F";
constexpr const char* kFloatsOrNan = FASSD_PTX_ROUNDING "NaN F";

// Floats of whatever rounding and limits, and halves, of which a register may hold two: computed
// in double and rounded once. (A sum of two floats whose exponents lie 29 apart is not exact in
// double; rounding twice then errs by a unit at most.)
template <auto F>
void by_double(Warp& warp, const Instruction& i, uint32_t mask) {
  const size_t bytes = i.to_bytes, piece = i.type == Type::f32 ? 4 : 2;
  each(mask, [&](int lane) {
    for (size_t at = bytes * lane; at < bytes * (lane + 1); at += piece) {
      std::array<double, kArity<F>> values;
      for (size_t k = 0; k < values.size(); ++k) {
        uint32_t bits = 0;
        std::memcpy(&bits, warp.registers + i.from[k] + at, piece);
        values[k] = decode(bits, i.type);
        values[k] = i.choices[kFlush] ? flushed(float(values[k])) : values[k];
      }
      const uint64_t result = rounded(double(std::apply(F, values)), i);
      std::memcpy(warp.registers + i.to[0] + at, &result, piece);
    }
  });
}

template <auto F>
Handler floats(Instruction& i) {
  const bool exact = is_plain(i);
  fault_if(i.type == Type::tf32 || (i.type == Type::f64 && !exact) ||
               (i.type != Type::f32 && i.choices[kFlush]) || i.choices[kRounding] > 4,
           "this type or rounding is not supported");
  return exact && i.type == Type::f32   ? plain<F, float>()
         : exact && i.type == Type::f64 ? plain<F, double>()
                                        : by_double<F>;
}

constexpr auto kFused = [](auto x, auto y, auto z) { return std::fma(x, y, z); };

// Of floats: a number rather than a NaN, and -0 as less than +0.
template <bool least>
constexpr auto kExtreme = []<typename T>(T x, T y) {
  if constexpr (std::is_integral_v<T>) {
    return least ? std::min(x, y) : std::max(x, y);
  } else {
    const bool is_first = x == y ? std::signbit(x) == least : (x < y) == least;
    return x != x ? y : y != y || is_first ? x : y;
  }
};
template <auto F>
constexpr auto kOrNan = []<typename T>(T x, T y) {
  return x != x ? x : y != y ? y : F(x, y);
};

constexpr auto kAbsolute = []<typename T>(T x) {
  if constexpr (std::is_integral_v<T>) {
    return T(x < T(0) ? -x : x);
  } else {
    return std::fabs(x);
  }
};

// A division by zero gives an unspecified value (PTX ISA, "div"); all ones, as GPUs do.
constexpr auto kQuotient = []<typename T>(T x, T y) {
  if constexpr (std::is_integral_v<T>) {
    return y == 0 ? T(-1) : std::is_signed_v<T> && y == T(-1) ? T(-x) : T(x / y);
  } else {
    return x / y;
  }
};
constexpr auto kRemainder = []<typename T>(T x, T y) {
  return y == 0 ? x : std::is_signed_v<T> && y == T(-1) ? T(0) : T(x % y);
};

constexpr auto kLow = []<typename T>(T x, T y) { return T(x * y); };
constexpr auto kHigh = []<typename T>(T x, T y) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return T((Wide(x) * Wide(y)) >> (8 * sizeof(T)));
};
template <auto F>
constexpr auto kPlus = []<typename T>(T x, T y, T z) { return T(F(x, y) + z); };
template <typename W, typename T>
constexpr Handler kWide = lanes<[](T x, T y) { return W(W(x) * W(y)); }, W, T, T>;
template <typename W, typename T>
constexpr Handler kWidePlus = lanes<[](T x, T y, W z) { return W(W(x) * W(y) + z); }, W, T, T, W>;

// Shift amounts are of 32 bits, unsigned; those beyond the width count as the width.
template <bool left>
Handler shift(Instruction& i) {
  return for_integers(i.type, []<typename T>(T) -> Handler {
    return lanes<[](T x, uint32_t n) {
      const uint32_t bits = 8 * sizeof(T), by = std::min(n, bits - 1);
      if (left) {
        return n >= bits ? T(0) : T(std::make_unsigned_t<T>(x) << by);
      }
      return n >= bits && !std::is_signed_v<T> ? T(0) : T(x >> by);
    },
                 T, T, uint32_t>;
  });
}

// The lower half of {b, a} shifted right.
uint32_t funnel_shifted(uint32_t low, uint32_t high, uint32_t by) {
  return uint32_t((uint64_t(high) << 32 | low) >> (by & 31));
}

// Any function of three bits, by its table.
uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int row = 0; row < 8; ++row) {
    const uint32_t here = (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
    result |= here & (0 - (table >> row & 1));
  }
  return result;
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

// `Wide` is T with zeros, or with its sign, in front.
template <typename T, typename Wide>
T extracted(T value, uint32_t position, uint32_t length) {
  const uint32_t count = std::min(length & 255, 64u);
  const Wide moved = Wide(value) >> std::min(position & 255, 63u);
  return count == 0 ? T(0) : T(Wide(moved << (64 - count)) >> (64 - count));
}

uint32_t leading_zeros(uint32_t x) {
  return uint32_t(std::countl_zero(x));
}

template <auto F>
void predicates(Warp& warp, const Instruction& i, uint32_t mask) {
  if constexpr (kArity<F, uint32_t> == 1) {
    warp.set_predicate(i.to[0], F(warp.predicate(i, 0)), mask);
  } else {
    warp.set_predicate(i.to[0], F(warp.predicate(i, 0), warp.predicate(i, 1)), mask);
  }
}

// Ordered comparisons of a NaN are false, unordered ones (equ, ...) true. Subnormal numbers are
// compared as they are, .ftz or not: no kernel here asks otherwise.
constexpr const char* kComparisons = "eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan (ftz) T";
// Those for which each of these holds, by bit: less, equal, greater, unordered.
constexpr uint32_t kOutcomes[] = {2, 5, 1, 3, 4, 6, 10, 13, 9, 11, 12, 14, 7, 8};

// `number` makes of the bits what is compared.
constexpr auto kAsItIs = [](auto x) { return x; };
template <typename T, auto number = kAsItIs>
void compare(Warp& warp, const Instruction& i, uint32_t mask) {
  const T *a = warp.lanes<T>(i.from[0]), *b = warp.lanes<T>(i.from[1]);
  const uint32_t outcomes = kOutcomes[i.choices[0]];
  uint32_t is = 0;
  each(mask, [&](int lane) {
    const auto x = number(a[lane]), y = number(b[lane]);
    const uint32_t outcome = x < y ? 1 : x == y ? 2 : x > y ? 4 : 8;
    is |= uint32_t((outcomes & outcome) != 0) << lane;
  });
  warp.set_predicate(i.to[0], is, mask);
}
Handler pick_comparison(Instruction& i) {
  if (i.type == Type::bf16) {
    return compare<uint16_t, bfloat16_to_float>;
  }
  return with_type(i.type, [&]<typename T>(T) -> Handler {
    if constexpr (requires(T x) { x < x; }) {
      if (i.choices[0] < 6 || !std::is_integral_v<T>) {
        return compare<T>;
      }
    }
    throw Fault("this comparison is not supported");
  });
}

// set.gt.u32.f16x2: all ones in the halves that are greater.
template <auto to_float>
uint32_t greater_halves(uint32_t x, uint32_t y) {
  const auto of = [&](int shift) {
    return to_float(uint16_t(x >> shift)) > to_float(uint16_t(y >> shift)) ? 0xFFFFu << shift : 0;
  };
  return of(0) | of(16);
}

template <typename T>
void select(Warp& warp, const Instruction& i, uint32_t mask) {
  const T *a = warp.lanes<T>(i.from[0]), *b = warp.lanes<T>(i.from[1]);
  T* to = warp.lanes<T>(i.to[0]);
  const uint32_t p = warp.predicate(i, 2);
  each(mask, [&](int lane) { to[lane] = p >> lane & 1 ? a[lane] : b[lane]; });
}

Handler pick_select(Instruction& i) {
  return for_bits(i.to_bytes, []<typename T>(T) -> Handler { return select<T>; });
}

// Pieces of one value to pieces of another size: mov.b32 {a, b}, c.
void move_pieces(Warp& warp, const Instruction& i, uint32_t mask) {
  const size_t from = i.from_bytes, to = i.to_bytes;
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
Handler pick_move(Instruction& i) {
  if (i.inputs > 1 || i.outputs > 1) {
    return move_pieces;
  }
  return for_bits(i.to_bytes,
                  []<typename T>(T) -> Handler { return lanes<[](T x) { return x; }, T, T>; });
}

using U = uint32_t;
U sum_of_pairs(U x, U y) {  // of 16 bits each
  return (x & 0xFFFF0000) + (y & 0xFFFF0000) + uint16_t(x + y);
}

const bool kAdded = add_forms({
    {"add", "I", "=t t t", integers<std::plus<>{}>},
    {"add", kFloats, "=t t t", floats<std::plus<>{}>},
    {"add", "u16x2|s16x2", "=4 4 4", lanes<sum_of_pairs, U, U, U>},
    {"sub", "I", "=t t t", integers<std::minus<>{}>},
    {"sub", kFloats, "=t t t", floats<std::minus<>{}>},
    {"mul", "lo I", "=t t t", integers<kLow>},
    {"mul", "hi I", "=t t t", integers<kHigh>},
    {"mul", "wide u16", "=4 2 2", kWide<uint32_t, uint16_t>},
    {"mul", "wide s16", "=4 2 2", kWide<int32_t, int16_t>},
    {"mul", "wide u32", "=8 4 4", kWide<uint64_t, uint32_t>},
    {"mul", "wide s32", "=8 4 4", kWide<int64_t, int32_t>},
    {"mul", kFloats, "=t t t", floats<std::multiplies<>{}>},
    {"mad", "lo I", "=t t t t", integers<kPlus<kLow>>},
    {"mad", "hi I", "=t t t t", integers<kPlus<kHigh>>},
    {"mad", "wide u32", "=8 4 4 8", kWidePlus<uint64_t, uint32_t>},
    {"mad", "wide s32", "=8 4 4 8", kWidePlus<int64_t, int32_t>},
    {"mad", kFloats, "=t t t t", floats<kFused>},
    {"fma", kFloats, "=t t t t", floats<kFused>},
    {"div", "I", "=t t t", integers<kQuotient>},
    {"div", kFloats, "=t t t", floats<kQuotient>},
    {"rem", "I", "=t t t", integers<kRemainder>},
    {"min", "I", "=t t t", integers<kExtreme<true>>},
    {"min", kFloats, "=t t t", floats<kExtreme<true>>},
    {"min", kFloatsOrNan, "=t t t", floats<kOrNan<kExtreme<true>>>},
    {"max", "I", "=t t t", integers<kExtreme<false>>},
    {"max", kFloats, "=t t t", floats<kExtreme<false>>},
    {"max", kFloatsOrNan, "=t t t", floats<kOrNan<kExtreme<false>>>},
    {"neg", "I", "=t t", integers<std::negate<>{}>},
    {"neg", kFloats, "=t t", floats<std::negate<>{}>},
    {"abs", "I", "=t t", integers<kAbsolute>},
    {"abs", kFloats, "=t t", floats<kAbsolute>},
    {"copysign", kFloats, "=t t t",
     floats<[](auto sign, auto x) { return std::copysign(x, sign); }>},
    {"rcp", kFloats, "=t t", floats<[](auto x) { return 1 / x; }>},
    {"sqrt", kFloats, "=t t", floats<[](auto x) { return std::sqrt(x); }>},
    {"rsqrt", kFloats, "=t t", floats<[](auto x) { return 1 / std::sqrt(double(x)); }>},
    {"ex2", kFloats, "=t t", floats<[](auto x) { return std::exp2(x); }>},
    {"lg2", kFloats, "=t t", floats<[](auto x) { return std::log2(x); }>},
    {"shl", "I", "=t t 4", shift<true>},
    {"shr", "I", "=t t 4", shift<false>},
    {"shf", "r wrap b32", "=4 4 4 4", lanes<funnel_shifted, U, U, U, U>},
    {"and", "pred", "=p p p", predicates<std::bit_and<>{}>},
    {"and", "I", "=t t t", integers<std::bit_and<>{}>},
    {"or", "pred", "=p p p", predicates<std::bit_or<>{}>},
    {"or", "I", "=t t t", integers<std::bit_or<>{}>},
    {"xor", "pred", "=p p p", predicates<std::bit_xor<>{}>},
    {"xor", "I", "=t t t", integers<std::bit_xor<>{}>},
    {"not", "pred", "=p p", predicates<std::bit_not<>{}>},
    {"not", "I", "=t t", integers<std::bit_not<>{}>},
    {"lop3", "b32", "=4 4 4 4 4", lanes<logic3, U, U, U, U, U>},
    {"prmt", "b32", "=4 4 4 4", lanes<permuted, U, U, U, U>},
    {"bfi", "b32", "=4 4 4 4 4", lanes<with_bits, U, U, U, U, U>},
    {"bfe", "u32", "=4 4 4 4", lanes<extracted<U, uint64_t>, U, U, U, U>},
    {"bfe", "s32", "=4 4 4 4", lanes<extracted<int32_t, int64_t>, int32_t, int32_t, U, U>},
    {"clz", "b32", "=4 4", lanes<leading_zeros, U, U>},
    {"setp", kComparisons, "=p t t", pick_comparison},
    {"set", "gt u32 f16x2", "=4 4 4", lanes<greater_halves<half_to_float>, U, U, U>},
    {"set", "gt u32 bf16x2", "=4 4 4", lanes<greater_halves<bfloat16_to_float>, U, U, U>},
    {"selp", "T", "=t t t p", pick_select},
    {"mov", "pred", "=p p", predicates<[](uint32_t x) { return x; }>},
    {"mov", "T", "=x x", pick_move},
});

}  // namespace
}  // namespace ptx
