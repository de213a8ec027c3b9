// PTX as text: statements, operands, numbers.

#pragma once

#include <string_view>

#include "machine.h"

namespace ptx {

struct Operand {
  enum Kind { name, integer, real, vector, address, sink } kind = name;
  std::string text;            // of a name: a register or a symbol
  bool negated = false;        // !%p1
  uint64_t bits = 0;           // of a real number: those of a double
  int64_t offset = 0;          // name + offset, [name + offset]
  std::vector<Operand> parts;  // of a vector {a, b} or a pair a|b; of [a, {b, c}], a and the vector
};

using Words = std::vector<std::string_view>;

std::string_view trimmed(std::string_view text);
// At `separator`s outside of brackets.
Words split(std::string_view text, char separator);
Words words(std::string_view text);
int64_t integer_of(std::string_view text);
Operand parse_operand(std::string_view text);
// Of a constant, as a register of `bytes` bytes holds it.
uint64_t bits_of(const Operand& operand, int bytes);

Space space_named(std::string_view word);  // "shared::cta"; Space::generic if there is none
Type type_named(std::string_view word);    // "f32"; Type::none if there is none of this name

// `.shared .align 16 .b8 name[64]`.
Variable parse_variable(std::string_view text);

template <typename Integer>
Integer aligned(Integer at, uint64_t alignment) {
  return Integer((at + alignment - 1) / alignment * alignment);
}

}  // namespace ptx
