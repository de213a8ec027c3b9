// From an instruction's text to its handler and the places of its operands.

#pragma once

#include <initializer_list>
#include <utility>
#include <variant>

#include "numbers.h"
#include "syntax.h"

namespace ptx {

// A form that an instruction may have. An opcode may have several: that one holds whose words and
// operands fit, else the error is that of the one that fits furthest.
//
// `modifiers`, between blanks, in any order:
//   word         has to be there; what is left over is an error
//   a|b          one of them has to be there: its index is the next of `choices`
//   [a|b]        may be there: the next of `choices` is 0 without, 1 for a, 2 for b
//   (a|b)        may be there, and changes nothing that this machine could show
//   T, I, F      a type, of any kind, of integers or bits, of floating point: `type`, then `type2`
//   S            the state space of `m`: generic where it is left out
//   H            hints of caches, scopes and orders: memory is consistent once it is written
//   N            the shape m64nNkK of wgmma, K being 32 bytes of the type: N, in `immediate`
//   *            whatever is left over
// `operands`, in their order, `=` in front of what is written, `?` behind what may be missing:
//   1, 2, 4, 8   a register of so many bytes, or a constant
//   t            of as many bytes as the type
//   r            of the type, or wider: `to_bytes`, `from_bytes`
//   x            a register of the type or several, {a, b}, that make one up
//   p            a predicate; a source may be negated
//   4*2, r*      {a, b, ...}, of that many, or of 1, 2 or 4 by the first of `choices`
//   4|p          a register, and perhaps a predicate
//   +            any number of registers of 4 bytes that are read and written: `sums`
//   m, s, g      an address, in S's space, in shared, in global memory
//   M            the address of a tensor map and coordinates, [map, {x, y}]: `immediate` of them
//   i            a constant: `immediate`
//   l            a label
//   *            whatever is left over
struct Form {
  using Pick = Handler (*)(Instruction&);  // finds the handler, for what was found

  std::string_view opcode, modifiers, operands;
  std::variant<Handler, Pick> handler;
  Flow flow = Flow::next;
};

// How floats are rounded and limited, as the first of `choices`.
#define FASSD_PTX_ROUNDING "[rn|rz|rm|rp|rna|rni|rzi|rmi|rpi] [ftz] [sat] [relu] [satfinite] "
enum { kRounding, kFlush, kSaturate, kRelu, kFinite };
inline Rounding rounding_of(const Instruction& i) {
  return Rounding(i.choices[kRounding] == 0 ? 0 : (i.choices[kRounding] - 1) % 5);
}
// Whether nothing but a rounding, of the float, is asked for.
inline bool is_plain(const Instruction& i, Rounding rounding = Rounding::nearest) {
  return i.choices[kRounding] < 6 && rounding_of(i) == rounding &&
         std::count(i.choices + kFlush, i.choices + kFinite + 1, 0) == 4;
}
template <typename Real>
uint64_t rounded(Real value, const Instruction& i) {
  const bool is_integral = i.choices[kRounding] > 5;
  value = is_integral ? integral(value, rounding_of(i)) : value;
  if (i.choices[kSaturate]) {
    value = std::isnan(value) ? 0 : std::clamp<Real>(value, 0, 1);
  }
  value = i.choices[kRelu] && value < 0 ? 0 : value;
  const Rounding rounding = is_integral ? Rounding::nearest : rounding_of(i);
  const uint64_t bits = encode(value, i.type, rounding, i.choices[kFinite] != 0);
  return i.choices[kFlush] && i.type == Type::f32
             ? bits_as<uint32_t>(flushed(bits_as<float>(uint32_t(bits))))
             : bits;
}

// Each file of instructions adds its own.
bool add_forms(std::initializer_list<Form> list);

inline void nothing(Warp&, const Instruction&, uint32_t) {}

// F of the sources' values, lane by lane.
template <auto F, typename D, typename... S>
void lanes(Warp& warp, const Instruction& i, uint32_t mask) {
  [&]<size_t... I>(std::index_sequence<I...>) {
    D* to = warp.lanes<D>(i.to[0]);
    const std::tuple<const S*...> from(warp.lanes<S>(i.from[I])...);
    each(mask, [&](int lane) { to[lane] = F(std::get<I>(from)[lane]...); });
  }(std::index_sequence_for<S...>());
}

// The handler that `pick` has for a type: pick(T()) with T an integer of C++.
template <typename Pick>
Handler for_integers(Type type, Pick pick) {
  return with_type(type, [&]<typename T>(T x) -> Handler {
    if constexpr (std::is_integral_v<T>) {
      return pick(x);
    }
    throw Fault("this type is not supported here");
  });
}
// The same for bits of a width of 2, 4 or 8 bytes.
template <typename Pick>
Handler for_bits(int bytes, Pick pick) {
  return bytes == 2 ? pick(uint16_t()) : bytes == 4 ? pick(uint32_t()) : pick(uint64_t());
}

}  // namespace ptx
