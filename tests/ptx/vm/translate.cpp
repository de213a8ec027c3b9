#include "translate.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <set>

#include "memory.h"
#include "numbers.h"

namespace ptx {

std::map<std::string_view, Binder>& opcodes() {
  static std::map<std::string_view, Binder> all;
  return all;
}

bool add_opcodes(std::initializer_list<std::pair<const std::string_view, Binder>> list) {
  opcodes().insert(list);
  return true;
}

namespace {

// PTX ISA, "Special Registers"; the order is that of fill_specials in schedule.cpp.
constexpr std::string_view kSpecials[] = {
    "%tid.x",    "%tid.y",    "%tid.z",    "%ntid.x",  "%ntid.y",          "%ntid.z",
    "%ctaid.x",  "%ctaid.y",  "%ctaid.z",  "%nctaid.x", "%nctaid.y",       "%nctaid.z",
    "%laneid",   "%warpid",   "%nwarpid",  "%lanemask_eq", "%lanemask_lt", "%lanemask_le",
    "%lanemask_gt", "%lanemask_ge", "%dynamic_smem_size", "%total_smem_size", "%smid", "%nsmid",
};

struct Register {
  Type type = Type::none;
  uint32_t offset = 0;
  int bytes = 0;
};

struct Scope {
  std::map<std::string, Register> registers;
  std::map<std::string, std::pair<Type, int>> families;  // %r<70>
};

uint32_t aligned(uint64_t at, uint32_t alignment) {
  return uint32_t((at + alignment - 1) / alignment * alignment);
}

}  // namespace

class Translator {
 public:
  explicit Translator(Kernel& kernel) : kernel_(kernel), scopes_(1) {
    for (const Parameter& parameter : kernel.parameters) {
      symbols_[parameter.name] = {Space::param, parameter.offset};
    }
    for (const auto& [name, variable] : kernel.module->variables) {
      if (variable.space != Space::shared) {
        symbols_[name] = {variable.space, variable.address};
      } else if (kernel.body.find(name) != std::string::npos) {
        shared_variable(name, variable);
      }
    }
  }

  void run() {
    const std::string& body = kernel_.body;
    size_t at = 0, counted = 0;
    int line = kernel_.first_line;
    try {
      while ((at = body.find_first_not_of(" \t\r\n;", at)) != body.npos) {
        line += int(std::count(body.begin() + counted, body.begin() + at, '\n'));
        counted = at;
        at = statement(at, line);
      }
    } catch (const Fault& error) {
      syntax_error(kernel_.module->file, line, error.what());
    }
    Instruction end;
    end.flow = Flow::exit;
    end.opcode = end.text = "(end of the kernel)";
    end.line = line;
    kernel_.code.push_back(end);
    for (const auto& [index, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) {
        syntax_error(kernel_.module->file, kernel_.code[index].line, "no label " + label);
      }
      kernel_.code[index].target = found->second;
    }
    finish();
  }

  uint32_t allocate(int bytes) {
    const uint32_t at = register_bytes_;
    register_bytes_ += std::max(64, kLanes * bytes);
    return at;
  }

  // A register that always holds `value`; predicates are masks.
  uint32_t constant(int bytes, uint64_t value) {
    if (bytes < 8) {
      value &= (uint64_t(1) << (8 * bytes)) - 1;
    }
    const auto [found, added] = constants_.try_emplace({bytes, value}, register_bytes_);
    return added ? allocate(bytes) : found->second;
  }
  uint32_t predicate_constant(bool value) {
    const auto [found, added] = predicate_constants_.try_emplace(value, register_bytes_);
    return added ? allocate(2) : found->second;
  }

  const Register* find(const std::string& name) {
    for (size_t i = 0; i < std::size(kSpecials); ++i) {
      if (name == kSpecials[i]) {
        const auto [found, added] = specials_.try_emplace(name);
        if (added) {
          found->second = {Type::b32, allocate(4), 4};
          kernel_.specials.emplace_back(found->second.offset, int(i));
        }
        return &found->second;
      }
    }
    for (size_t i = scopes_.size(); i-- > 0;) {
      Scope& scope = scopes_[i];
      if (const auto found = scope.registers.find(name); found != scope.registers.end()) {
        return &found->second;
      }
      size_t digits = name.size();
      while (digits > 0 && std::isdigit(static_cast<unsigned char>(name[digits - 1]))) {
        --digits;
      }
      const auto family = scope.families.find(name.substr(0, digits));
      if (digits < name.size() && family != scope.families.end() &&
          std::atoi(name.c_str() + digits) < family->second.second) {
        return &declare(scope, name, family->second.first);
      }
    }
    return nullptr;
  }

  uint64_t symbol(const Operand& operand) const {
    const auto found = symbols_.find(operand.text);
    if (found == symbols_.end()) {
      throw Fault("unknown name " + operand.text);
    }
    return found->second.second + uint64_t(operand.offset);
  }

 private:
  Register& declare(Scope& scope, const std::string& name, Type type) {
    // A predicate of a warp is a mask.
    const int bytes = type == Type::pred ? 4 : bytes_of(type);
    return scope.registers[name] = {type, allocate(type == Type::pred ? 2 : bytes), bytes};
  }

  void shared_variable(const std::string& name, const Variable& variable) {
    if (variable.sized_by_launch) {
      by_launch_.emplace_back(name, variable.alignment);
      return;
    }
    shared_bytes_ = aligned(shared_bytes_, variable.alignment);
    symbols_[name] = {Space::shared, shared_bytes_};
    shared_bytes_ += uint32_t(variable.bytes);
  }

  // What the launch sizes lies behind all others.
  void place_shared() {
    for (const auto& [name, alignment] : by_launch_) {
      shared_bytes_ = aligned(shared_bytes_, alignment);
    }
    for (const auto& [name, alignment] : by_launch_) {
      symbols_[name] = {Space::shared, shared_bytes_};
    }
    by_launch_.clear();
  }

  size_t statement(size_t at, int line) {
    const std::string& body = kernel_.body;
    if (body[at] == '{') {
      scopes_.emplace_back();
      return at + 1;
    }
    if (body[at] == '}') {
      if (scopes_.size() == 1) {
        throw Fault("} without {");
      }
      scopes_.pop_back();
      return at + 1;
    }
    size_t word = at;
    while (word < body.size() && (std::isalnum(static_cast<unsigned char>(body[word])) ||
                                  body[word] == '_' || body[word] == '$' || body[word] == '%')) {
      ++word;
    }
    if (word < body.size() && body[word] == ':') {
      labels_[body.substr(at, word - at)] = uint32_t(kernel_.code.size());
      return word + 1;
    }
    if (body.compare(at, 4, ".loc") == 0) {
      const size_t end = std::min(body.find('\n', at), body.size());
      location(std::string_view(body).substr(at, end - at));
      return end;
    }
    const size_t end = body.find(';', at);
    if (end == body.npos) {
      throw Fault("no ; after " + body.substr(at, 60));
    }
    const std::string_view text = trimmed(std::string_view(body).substr(at, end - at));
    if (text[0] == '.') {
      directive(text);
    } else {
      place_shared();
      try {
        translate(text, line);
      } catch (const Fault& error) {
        throw Fault(std::string(error.what()) + " in \"" + std::string(text) + "\"");
      }
    }
    return end + 1;
  }

  // .loc 2 183 3, function_name $L__info_string0, inlined_at 1 31 5
  void location(std::string_view text) {
    const std::vector<std::string_view> found = words(text);
    source_line_ = found.size() > 2 ? std::atoi(std::string(found[2]).c_str()) : 0;
    region_.clear();
    for (size_t i = 3; i + 1 < found.size(); ++i) {
      if (found[i] == "function_name") {
        std::string label(found[i + 1]);
        label.resize(std::min(label.find_first_of(",+"), label.size()));
        const auto name = kernel_.module->strings.find(label);
        region_ = name == kernel_.module->strings.end() ? label : name->second;
      }
    }
  }

  void directive(std::string_view text) {
    const std::string_view first = words(text)[0];
    if (first == ".reg") {
      const std::string_view rest = trimmed(text.substr(4));
      const size_t space = rest.find_first_of(" \t");
      const Type type = type_named(rest.substr(1, space - 1));
      if (type == Type::none) {
        throw Fault("unknown type of registers in " + std::string(text));
      }
      for (std::string_view part : split(rest.substr(space), ',')) {
        const std::string name(part);
        const size_t count = name.find('<');
        if (count == name.npos) {
          declare(scopes_.back(), name, type);
        } else {
          scopes_.back().families[name.substr(0, count)] = {type,
                                                            std::atoi(name.c_str() + count + 1)};
        }
      }
    } else if (first == ".shared" || first == ".local") {
      std::string name, initial;
      Type element = Type::none;
      const Variable variable = parse_variable(text, name, initial, element);
      if (variable.space == Space::shared) {
        shared_variable(name, variable);
      } else {
        kernel_.local_bytes = aligned(kernel_.local_bytes, variable.alignment);
        symbols_[name] = {Space::local, kernel_.local_bytes};
        kernel_.local_bytes += uint32_t(variable.bytes);
      }
    } else if (first != ".pragma") {
      throw Fault("unknown directive " + std::string(first));
    }
  }

  void translate(std::string_view text, int line) {
    Instruction instruction;
    instruction.line = line;
    instruction.text = std::string(text);
    instruction.region = region_;
    instruction.source_line = source_line_;
    std::string_view rest = text;
    if (rest[0] == '@') {
      const size_t space = std::min(rest.find_first_of(" \t"), rest.size());
      std::string_view name = rest.substr(1, space - 1);
      instruction.guarded = true;
      instruction.guard_negated = !name.empty() && name[0] == '!';
      name.remove_prefix(instruction.guard_negated);
      const Register* found = find(std::string(name));
      if (!found || found->type != Type::pred) {
        throw Fault(std::string(name) + " is no predicate");
      }
      instruction.guard = found->offset;
      rest = trimmed(rest.substr(space));
    }
    const size_t space = std::min(rest.find_first_of(" \t\n"), rest.size());
    instruction.opcode = std::string(rest.substr(0, space));
    rest = trimmed(rest.substr(space));
    std::vector<std::string_view> modifiers = split(instruction.opcode, '.');
    const std::string_view name = modifiers[0];
    modifiers.erase(modifiers.begin());
    if (name == "bra") {
      instruction.flow = Flow::branch;
      jumps_.emplace_back(kernel_.code.size(), std::string(rest));
    } else {
      const auto found = opcodes().find(name);
      if (found == opcodes().end()) {
        throw Fault("unknown instruction " + std::string(name));
      }
      std::vector<Operand> operands;
      for (std::string_view part : split(rest, ',')) {
        operands.push_back(parse_operand(part));
      }
      Binding binding(*this, instruction, std::move(modifiers), std::move(operands));
      found->second(binding);
      binding.finish();
    }
    kernel_.starts_dependents |= instruction.flow == Flow::dependents;
    kernel_.awaits_previous |= instruction.flow == Flow::previous;
    kernel_.code.push_back(std::move(instruction));
  }

  void finish() {
    place_shared();
    kernel_.shared_bytes = shared_bytes_;
    // What is read before it is written is odd: a NaN in most types.
    kernel_.registers.assign(register_bytes_ + 64, 0xFF);
    const auto fill = [&](uint32_t offset, const void* value, size_t bytes, int lanes) {
      for (int lane = 0; lane < lanes; ++lane) {
        std::memcpy(&kernel_.registers[offset + size_t(lane) * bytes], value, bytes);
      }
    };
    for (const auto& [key, offset] : constants_) {
      fill(offset, &key.second, size_t(key.first), kLanes);
    }
    for (const auto& [value, offset] : predicate_constants_) {
      const uint32_t mask = value ? kAllLanes : 0;
      fill(offset, &mask, sizeof mask, 1);
    }
    kernel_.body.clear();
    kernel_.body.shrink_to_fit();
    kernel_.translated = true;
  }

  Kernel& kernel_;
  std::vector<Scope> scopes_;
  std::map<std::string, Register> specials_;
  std::map<std::string, std::pair<Space, uint64_t>> symbols_;
  std::map<std::pair<int, uint64_t>, uint32_t> constants_;
  std::map<bool, uint32_t> predicate_constants_;
  std::map<std::string, uint32_t> labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
  std::vector<std::pair<std::string, uint32_t>> by_launch_;
  uint32_t register_bytes_ = 0, shared_bytes_ = 0;
  std::string region_;
  int source_line_ = 0;
};

void translate(Kernel& kernel) {
  if (!kernel.translated) {
    Translator(kernel).run();
  }
}

bool Binding::flag(std::string_view word) {
  const auto found = std::find(modifiers_.begin(), modifiers_.end(), word);
  if (found == modifiers_.end()) {
    return false;
  }
  modifiers_.erase(found);
  return true;
}

int Binding::choice(std::initializer_list<std::string_view> list) {
  int index = 0;
  for (std::string_view word : list) {
    if (flag(word)) {
      return index;
    }
    ++index;
  }
  return -1;
}

int Binding::required(std::initializer_list<std::string_view> list) {
  const int found = choice(list);
  if (found < 0) {
    std::string known;
    for (std::string_view word : list) {
      known += " ." + std::string(word);
    }
    throw Fault("one of" + known + " is missing");
  }
  return found;
}

Type Binding::type() {
  for (size_t i = modifiers_.size(); i-- > 0;) {
    const Type found = type_named(modifiers_[i]);
    if (found != Type::none) {
      modifiers_.erase(modifiers_.begin() + long(i));
      return found;
    }
  }
  throw Fault("a type is missing");
}

std::string_view Binding::next() {
  if (modifiers_.empty()) {
    throw Fault("a modifier is missing");
  }
  const std::string_view word = modifiers_.front();
  modifiers_.erase(modifiers_.begin());
  return word;
}

Space Binding::space() {
  switch (choice({"global", "shared", "shared::cta", "shared::cluster", "local", "param",
                  "param::entry", "const"})) {
    case 0:
      return Space::global;
    case 1:
    case 2:
    case 3:
      return Space::shared;
    case 4:
      return Space::local;
    case 5:
    case 6:
      return Space::param;
    case 7:
      return Space::constant;
    default:
      return Space::generic;
  }
}

void Binding::expect(size_t count) const { expect(count, count); }

void Binding::expect(size_t least, size_t most) const {
  if (operands.size() < least || operands.size() > most) {
    throw Fault(std::to_string(operands.size()) + " operands; expected are " +
                std::to_string(least) +
                (most > least ? " to " + std::to_string(most) : std::string()));
  }
}

void Binding::finish() const {
  if (!modifiers_.empty()) {
    throw Fault("unknown modifier ." + std::string(modifiers_.front()));
  }
}

uint32_t Binding::wide_source(const Operand& operand, int& bytes) {
  switch (operand.kind) {
    case Operand::integer:
      return translator_.constant(bytes, operand.bits);
    case Operand::float32:
      return translator_.constant(
          bytes, bytes == 8 ? bits_as<uint64_t>(double(bits_as<float>(uint32_t(operand.bits))))
                            : operand.bits);
    case Operand::float64:
      return translator_.constant(
          bytes, bytes == 4 ? bits_as<uint32_t>(float(bits_as<double>(operand.bits)))
                            : operand.bits);
    case Operand::name:
      if (const Register* found = translator_.find(operand.text)) {
        if (found->type == Type::pred) {
          throw Fault(operand.text + " is a predicate");
        }
        bytes = found->bytes;
        return found->offset;
      }
      return translator_.constant(bytes, translator_.symbol(operand));
    default:
      throw Fault("a register or a constant is expected");
  }
}

uint32_t Binding::wide_target(const Operand& operand, int& bytes) {
  if (operand.kind == Operand::sink) {
    return translator_.allocate(8);
  }
  const Register* found =
      operand.kind == Operand::name ? translator_.find(operand.text) : nullptr;
  if (!found || found->type == Type::pred) {
    throw Fault("a register is expected, not " + operand.text);
  }
  bytes = found->bytes;
  return found->offset;
}

uint32_t Binding::source(const Operand& operand, int bytes) {
  int got = bytes;
  const uint32_t at = wide_source(operand, got);
  if (got != bytes) {
    throw Fault(operand.text + " has " + std::to_string(8 * got) + " bits, not " +
                std::to_string(8 * bytes));
  }
  return at;
}

uint32_t Binding::target(const Operand& operand, int bytes) {
  int got = bytes;
  const uint32_t at = wide_target(operand, got);
  if (got != bytes) {
    throw Fault(operand.text + " has " + std::to_string(8 * got) + " bits, not " +
                std::to_string(8 * bytes));
  }
  return at;
}

uint32_t Binding::predicate(const Operand& operand) {
  if (operand.kind == Operand::integer) {
    return translator_.predicate_constant(operand.bits != 0);
  }
  if (operand.kind == Operand::sink) {
    return translator_.allocate(2);
  }
  const Register* found =
      operand.kind == Operand::name ? translator_.find(operand.text) : nullptr;
  if (!found || found->type != Type::pred) {
    throw Fault("a predicate is expected, not " + operand.text);
  }
  return found->offset;
}

Address Binding::address(const Operand& operand, Space space) {
  if (operand.kind != Operand::address) {
    throw Fault("an address is expected");
  }
  Address address;
  address.space = space;
  const Operand& base = operand.parts[0];
  address.offset = base.offset;
  if (base.kind == Operand::integer) {
    address.offset += int64_t(base.bits);
  } else if (const Register* found = translator_.find(base.text)) {
    address.based = true;
    address.wide = found->bytes == 8;
    address.base = found->offset;
  } else {
    address.offset = int64_t(translator_.symbol(base));
  }
  return address;
}

int64_t Binding::constant(const Operand& operand) const {
  if (operand.kind != Operand::integer) {
    throw Fault("a constant is expected");
  }
  return int64_t(operand.bits);
}

void Binding::add_source(const Operand& operand, int bytes) {
  instruction.from[instruction.inputs++] = source(operand, bytes);
}

void Binding::add_target(const Operand& operand, int bytes) {
  instruction.to[instruction.outputs++] = target(operand, bytes);
}

void Binding::registers(Handler handler, int target_bytes, const std::vector<int>& sources) {
  expect(1 + sources.size());
  instruction.run = handler;
  add_target(operands[0], target_bytes);
  size_t i = 0;
  for (const int bytes : sources) {
    add_source(operands[++i], bytes);
  }
}

}  // namespace ptx
