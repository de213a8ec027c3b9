// PTX as text: statements, operands, numbers.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "machine.h"

namespace ptx {

struct Operand {
  enum Kind { name, integer, float32, float64, vector, address, sink } kind = name;
  std::string text;     // of a name: a register or a symbol
  bool negated = false;  // !%p1
  uint64_t bits = 0;
  int64_t offset = 0;          // name + offset, [name + offset]
  std::vector<Operand> parts;  // of a vector {a, b} or a pair a|b; of [a, {b, c}], a and the vector
};

Type type_named(std::string_view word);  // "f32"; Type::none if there is none of this name

std::string_view trimmed(std::string_view text);
// At `separator`s outside of brackets.
std::vector<std::string_view> split(std::string_view text, char separator);
std::vector<std::string_view> words(std::string_view text);
Operand parse_operand(std::string_view text);
bool parse_number(std::string_view text, Operand& into);

// `.shared .align 16 .b8 name[64]`, with or without an initial value.
Variable parse_variable(std::string_view text, std::string& name, std::string& initial,
                        Type& element);

[[noreturn]] void syntax_error(const std::string& file, int line, const std::string& what);

}  // namespace ptx
