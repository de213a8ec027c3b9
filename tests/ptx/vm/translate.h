// From an instruction's text to its handler and the places of its operands.

#pragma once

#include <initializer_list>
#include <utility>

#include "syntax.h"

namespace ptx {

class Translator;

// One instruction while it is translated. Whatever of its modifiers nobody asks for is an error.
class Binding {
 public:
  Binding(Translator& translator, Instruction& instruction, std::vector<std::string_view> modifiers,
          std::vector<Operand> operands)
      : instruction(instruction),
        operands(std::move(operands)),
        translator_(translator),
        modifiers_(std::move(modifiers)) {}

  Instruction& instruction;
  std::vector<Operand> operands;

  bool flag(std::string_view word);  // whether it is there; each word is asked for once
  // The position of the word that is there in a list, -1 where none is.
  int choice(std::initializer_list<std::string_view> list);
  int required(std::initializer_list<std::string_view> list);
  Type type();                        // the last type among the modifiers
  std::string_view next();            // the first modifier that nobody has asked for yet
  Space space();                      // .global, .shared::cta and so on, generic where none is
  void expect(size_t operands) const;
  void expect(size_t least, size_t most) const;
  void finish() const;                // fails where a modifier is left

  // Registers. Of `bytes` bytes; constants and symbols become registers that hold them.
  uint32_t source(const Operand& operand, int bytes);
  uint32_t target(const Operand& operand, int bytes);
  // A register that may be wider than what is moved: its width goes into `bytes`.
  uint32_t wide_source(const Operand& operand, int& bytes);
  uint32_t wide_target(const Operand& operand, int& bytes);
  uint32_t predicate(const Operand& operand);
  Address address(const Operand& operand, Space space);
  int64_t constant(const Operand& operand) const;

  void add_source(const Operand& operand, int bytes);
  void add_target(const Operand& operand, int bytes);
  // handler(d, a, b, ...): the operands are registers of these sizes, the first one is written.
  void registers(Handler handler, int target, const std::vector<int>& sources);
  void registers(Handler handler, int target, int count, int source) {
    registers(handler, target, std::vector<int>(size_t(count), source));
  }

 private:
  Translator& translator_;
  std::vector<std::string_view> modifiers_;
};

using Binder = void (*)(Binding&);
// Opcodes without their modifiers. Each file of instructions adds its own.
std::map<std::string_view, Binder>& opcodes();
bool add_opcodes(std::initializer_list<std::pair<const std::string_view, Binder>> list);

// What the handlers of plain arithmetic are made from: F of the sources' values, lane by lane.
template <auto F, typename D, typename... S, size_t... I>
void lane_by_lane(Warp& warp, const Instruction& instruction, uint32_t mask,
                  std::index_sequence<I...>) {
  D* to = warp.lanes<D>(instruction.to[0]);
  const std::tuple<const S*...> from(warp.lanes<S>(instruction.from[I])...);
  each(mask, [&](int lane) { to[lane] = F(std::get<I>(from)[lane]...); });
}
template <auto F, typename D, typename... S>
void lanes(Warp& warp, const Instruction& instruction, uint32_t mask) {
  lane_by_lane<F, D, S...>(warp, instruction, mask, std::index_sequence_for<S...>());
}

// The handler that `pick` has for a type: pick(T()) with T the type of C++.
template <typename Pick>
Handler for_integers(Type type, Pick pick) {
  switch (type) {
    case Type::u16:
    case Type::b16:
      return pick(uint16_t());
    case Type::s16:
      return pick(int16_t());
    case Type::u32:
    case Type::b32:
      return pick(uint32_t());
    case Type::s32:
      return pick(int32_t());
    case Type::u64:
    case Type::b64:
      return pick(uint64_t());
    case Type::s64:
      return pick(int64_t());
    default:
      throw Fault("this type is not supported here");
  }
}

}  // namespace ptx
