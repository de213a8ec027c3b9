#include "translate.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "memory.h"

namespace ptx {
namespace {

std::multimap<std::string_view, Form>& forms() {
  static std::multimap<std::string_view, Form> all;
  return all;
}

const Words kIntegers = {FASSD_PTX_INTEGERS(FASSD_PTX_TEXT)};
const Words kFloats = {FASSD_PTX_FLOATS(FASSD_PTX_TEXT)};
const Words kTypes = {FASSD_PTX_INTEGERS(FASSD_PTX_TEXT), FASSD_PTX_FLOATS(FASSD_PTX_TEXT)};

// PTX ISA, "Special Registers"; the order is that of fill_specials in schedule.cpp.
const Words kSpecials = words(
    "%tid.x %tid.y %tid.z %ntid.x %ntid.y %ntid.z %ctaid.x %ctaid.y %ctaid.z %nctaid.x %nctaid.y "
    "%nctaid.z %laneid %warpid %nwarpid %lanemask_eq %lanemask_lt %lanemask_le %lanemask_gt "
    "%lanemask_ge %dynamic_smem_size %total_smem_size %smid %nsmid");
const Words kHints = words(
    "weak relaxed acquire release acq_rel volatile cta cluster gpu sys nc ca cg cs lu cv wb wt "
    "unified L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last "
    "L1::no_allocate L2::evict_first L2::evict_last L2::evict_normal L2::64B L2::128B L2::256B");

// The index of a word, -1 if it is not there.
int index_of(const Words& list, std::string_view word) {
  const auto found = std::find(list.begin(), list.end(), word);
  return found == list.end() ? -1 : int(found - list.begin());
}

// The words of a form's text, or the alternatives of one of them: [a|b], (a|b), a|b. Found once.
Words alternatives(std::string_view token) {
  const bool enclosed = token[0] == '[' || token[0] == '(';
  return split(enclosed ? token.substr(1, token.size() - 2) : token, '|');
}
template <auto split>
const Words& parts_of(std::string_view text) {
  static std::map<std::string_view, Words> known;
  const auto [found, added] = known.try_emplace(text);
  if (added) {
    found->second = split(text);
  }
  return found->second;
}

struct Register {
  Type type = Type::none;
  uint32_t offset = 0;
};

struct Scope {
  std::map<std::string, Register> registers;
  std::map<std::string, std::pair<Type, int>> families;  // %r<70>
};

class Translator {
 public:
  explicit Translator(Kernel& kernel)
      : kernel_(kernel), scopes_(1), always_(constant(4, kAllLanes)) {
    for (const Parameter& parameter : kernel.parameters) {
      symbols_[parameter.name] = parameter.offset;
    }
    for (const Variable& variable : kernel.module->variables) {
      if (variable.space != Space::shared) {
        symbols_[variable.name] = variable.address;
      } else if (kernel.body.find(variable.name) != std::string::npos) {
        this->variable(variable);
      }
    }
  }

  void run() {
    const std::string& body = kernel_.body;
    size_t at = 0, counted = 0;
    int line = kernel_.first_line;
    try {
      while ((at = body.find_first_not_of(" \t\r\n;", at)) != body.npos) {
        line += int(std::count(body.begin() + long(counted), body.begin() + long(at), '\n'));
        counted = at;
        at = statement(at, line);
      }
      Instruction end;
      end.flow = Flow::exit;
      end.guard = always_;
      end.opcode = end.text = "(end of the kernel)";
      end.line = line;
      kernel_.code.push_back(end);
      for (const auto& [index, label] : jumps_) {
        const auto found = labels_.find(label);
        if (found == labels_.end()) {
          line = kernel_.code[index].line;
          throw Fault("no label ", label);
        }
        kernel_.code[index].target = found->second;
      }
    } catch (const Fault& error) {
      throw Fault(kernel_.module->file, ':', line, ": ", error.what());
    }
    place_shared();
    // What is read before it is written is odd: a NaN in most types.
    kernel_.registers.assign(register_bytes_ + 64, 0xFF);
    for (const auto& [key, offset] : constants_) {
      for (int lane = 0; lane < kLanes; ++lane) {
        std::memcpy(&kernel_.registers[offset + size_t(lane * key.first)], &key.second,
                    size_t(key.first));
      }
    }
    kernel_.body.clear();
    kernel_.translated = true;
  }

 private:
  uint32_t allocate(int bytes) {
    const uint32_t at = register_bytes_;
    register_bytes_ += std::max(64, kLanes * bytes);
    return at;
  }

  // A register that always holds `value`.
  uint32_t constant(int bytes, uint64_t value) {
    const auto [found, added] = constants_.try_emplace({bytes, value}, register_bytes_);
    return added ? allocate(bytes) : found->second;
  }

  // A predicate of a warp is a mask, to which nobody gives more than one register's place.
  const Register& declare(Scope& scope, const std::string& name, Type type) {
    return scope.registers[name] = {type, allocate(type == Type::pred ? 2 : bytes_of(type))};
  }

  const Register* find(const std::string& name) {
    for (size_t i = scopes_.size(); i-- > 0;) {
      Scope& scope = scopes_[i];
      if (const auto found = scope.registers.find(name); found != scope.registers.end()) {
        return &found->second;
      }
      const size_t digits = name.find_last_not_of("0123456789") + 1;
      const auto family = scope.families.find(name.substr(0, digits));
      if (digits < name.size() && family != scope.families.end() &&
          std::atoi(name.c_str() + digits) < family->second.second) {
        return &declare(scope, name, family->second.first);
      }
    }
    const int special = index_of(kSpecials, name);
    if (special < 0) {
      return nullptr;
    }
    const Register& made = declare(scopes_[0], name, Type::b32);
    kernel_.specials.emplace_back(made.offset, special);
    return &made;
  }

  uint64_t symbol(const Operand& operand) const {
    const auto found = symbols_.find(operand.text);
    fault_if(found == symbols_.end(), "unknown name ", operand.text);
    return found->second + uint64_t(operand.offset);
  }

  void variable(const Variable& variable) {
    if (variable.sized_by_launch) {
      by_launch_.push_back(variable);
      return;
    }
    uint32_t& end = variable.space == Space::shared ? kernel_.shared_bytes : kernel_.local_bytes;
    end = aligned(end, variable.alignment);
    symbols_[variable.name] = end;
    end += uint32_t(variable.bytes);
  }

  // What the launch sizes lies behind all others.
  void place_shared() {
    for (const Variable& variable : by_launch_) {
      kernel_.shared_bytes = aligned(kernel_.shared_bytes, variable.alignment);
    }
    for (const Variable& variable : by_launch_) {
      symbols_[variable.name] = kernel_.shared_bytes;
    }
    by_launch_.clear();
  }

  // Returns where the next one begins.
  size_t statement(size_t at, int line) {
    const std::string_view body = kernel_.body;
    if (body[at] == '{' || body[at] == '}') {
      scopes_.resize(scopes_.size() + (body[at] == '{') - (body[at] == '}'));
      return at + 1;
    }
    const size_t word = body.find_first_of(" \t\r\n:;", at);
    if (word != body.npos && body[word] == ':' && body.compare(word, 2, "::") != 0) {
      labels_[std::string(body.substr(at, word - at))] = uint32_t(kernel_.code.size());
      return word + 1;
    }
    if (body.compare(at, 4, ".loc") == 0) {
      const size_t end = std::min(body.find('\n', at), body.size());
      location(body.substr(at, end - at));
      return end;
    }
    const size_t end = body.find(';', at);
    fault_if(end == body.npos, "no ; after ", body.substr(at, 60));
    const std::string_view text = trimmed(body.substr(at, end - at));
    if (text[0] == '.') {
      directive(text);
    } else {
      place_shared();
      try {
        instruction(text, line);
      } catch (const Fault& error) {
        throw Fault(error.what(), " in \"", text, '"');
      }
    }
    return end + 1;
  }

  // .loc 2 183 3, function_name $L__info_string0, inlined_at 1 31 5
  // Where a function was inlined has had its own .loc before. What is of no line belongs to what it
  // stands behind, and what lost its function to the one that was seen at that place.
  void location(std::string_view text) {
    const Words found = words(text);
    source_line_ = found.size() > 2 ? int(integer_of(found[2])) : 0;
    if (source_line_ == 0) {
      return;
    }
    std::string& region = regions_[place_of(text.substr(4))];
    if (found.size() > 5 && found[4] == "function_name") {
      region = found[5].substr(0, found[5].find_first_of(",+"));
      const auto name = kernel_.module->strings.find(region);
      region = name == kernel_.module->strings.end() ? region : name->second;
      if (const size_t at = text.find("inlined_at "); at != text.npos) {
        const std::string caller = regions_[place_of(text.substr(at + 11))];
        region += caller.empty() ? "" : "," + caller;
      }
    }
    region_ = region;
  }

  // File, line and column, of which commas may follow.
  static std::string place_of(std::string_view text) {
    const Words found = words(text.substr(0, text.find(',')));
    std::string place;
    for (size_t i = 0; i < 3 && i < found.size(); ++i) {
      place += joined(found[i], ' ');
    }
    return place;
  }

  void directive(std::string_view text) {
    const std::string_view first = words(text)[0];
    if (first == ".reg") {
      const std::string_view rest = trimmed(text.substr(4));
      const size_t space = std::min(rest.find_first_of(" \t"), rest.size());
      const Type type = type_named(rest.substr(1, space - 1));
      fault_if(type == Type::none, "unknown type of registers in ", text);
      for (std::string_view part : split(rest.substr(space), ',')) {
        const size_t count = part.find('<');
        const std::string name(part.substr(0, count));
        if (count == part.npos) {
          declare(scopes_.back(), name, type);
        } else {
          scopes_.back().families[name] = {type, std::atoi(part.data() + count + 1)};
        }
      }
    } else if (first == ".shared" || first == ".local") {
      variable(parse_variable(text));
    } else if (first != ".pragma") {
      throw Fault("unknown directive ", first);
    }
  }

  // @!%p1 opcode.modifiers operands
  void instruction(std::string_view text, int line) {
    Instruction plain;
    plain.line = line;
    plain.text = text;
    plain.region = region_;
    plain.source_line = source_line_;
    plain.guard = always_;
    if (text[0] == '@') {
      const size_t space = std::min(text.find_first_of(" \t"), text.size());
      const Operand guard = parse_operand(text.substr(1, space - 1));
      plain.guard = place(guard, kPredicate, 0, false).first;
      plain.guard_inverted = guard.negated ? kAllLanes : 0;
      text = trimmed(text.substr(space));
    }
    const size_t space = std::min(text.find_first_of(" \t\n"), text.size());
    plain.opcode = text.substr(0, space);
    Words modifiers = split(text.substr(0, space), '.');
    const std::string_view name = modifiers[0] == "barrier" ? "bar" : modifiers[0];
    modifiers.erase(modifiers.begin());
    std::vector<Operand> operands;
    for (std::string_view part : split(text.substr(space), ',')) {
      operands.push_back(parse_operand(part));
    }
    if (std::erase(modifiers, "L2::cache_hint")) {
      operands.pop_back();
    }
    const auto [first, last] = forms().equal_range(name);
    std::string error = joined("unknown instruction ", name);
    int furthest = -1;
    for (auto form = first; form != last; ++form) {
      Instruction made = plain;
      int steps = 0;
      try {
        bind_modifiers(made, form->second.modifiers, modifiers, steps);
        bind_operands(made, form->second.operands, operands, steps);
        made.flow = form->second.flow;
        const Form::Pick* pick = std::get_if<Form::Pick>(&form->second.handler);
        made.run = pick ? (*pick)(made) : std::get<Handler>(form->second.handler);
        if (made.flow == Flow::branch) {
          jumps_.emplace_back(kernel_.code.size(), operands[0].text);
        }
        kernel_.starts_dependents |= made.flow == Flow::dependents;
        kernel_.code.push_back(std::move(made));
        return;
      } catch (const Fault& fault) {
        if (steps > furthest) {
          furthest = steps;
          error = fault.what();
        }
      }
    }
    throw Fault(error);
  }

  static void bind_modifiers(Instruction& i, std::string_view wanted, Words found, int& steps) {
    // Takes a word that is in a list: its index there.
    const auto take = [&](const Words& list) {
      for (auto word = found.begin(); word != found.end(); ++word) {
        if (const int index = index_of(list, *word); index >= 0) {
          found.erase(word);
          ++steps;
          return index;
        }
      }
      return -1;
    };
    int choices = 0;
    for (std::string_view token : parts_of<words>(wanted)) {
      if (token == "T" || token == "I" || token == "F") {
        const int index = take(token == "T" ? kTypes : token == "I" ? kIntegers : kFloats);
        fault_if(index < 0, "a type is missing, or not supported");
        (i.type == Type::none ? i.type : i.type2) =
            Type(size_t(index) + (token == "F" ? kIntegers.size() : 0));
      } else if (token == "S") {
        const auto is_space = [](std::string_view x) { return space_named(x) != Space::generic; };
        if (const auto at = std::find_if(found.begin(), found.end(), is_space); at != found.end()) {
          i.address[0].space = space_named(*at);
          found.erase(at);
        }
      } else if (token == "H") {
        while (take(kHints) >= 0) {
        }
      } else if (token == "N") {
        const std::string shape(found.empty() ? "" : found.back());
        int depth = 0;
        fault_if(std::sscanf(shape.c_str(), "m64n%dk%d", &i.immediate, &depth) != 2 ||
                     depth * bytes_of(i.type) != 32,
                 "unknown shape ", shape);
        found.pop_back();
      } else if (token == "*") {
        found.clear();
      } else {
        const Words& list = parts_of<alternatives>(token);
        const bool required = token[0] != '[' && token[0] != '(';
        const int index = take(list);
        fault_if(index < 0 && required, '.', token, " is missing");
        if (token[0] == '[' || (required && list.size() > 1)) {
          i.choices[choices++] = uint8_t(index + !required);
        }
      }
    }
    if (!found.empty()) {
      throw Fault("unknown modifier .", found.front());
    }
  }

  void bind_operands(Instruction& i, std::string_view wanted, const std::vector<Operand>& found,
                     int& steps) {
    const Words& tokens = parts_of<words>(wanted);
    const size_t least = tokens.size() - size_t(std::count(wanted.begin(), wanted.end(), '?'));
    if (wanted == "*") {
      return;
    }
    fault_if(found.size() < least || found.size() > tokens.size(), found.size(),
             " operands; expected are ", least,
             tokens.size() > least ? joined(" to ", tokens.size()) : "");
    int addresses = 0;
    for (size_t k = 0; k < found.size(); ++k, ++steps) {
      bind_operand(i, tokens[k], found[k], addresses);
    }
  }

  void bind_operand(Instruction& i, std::string_view token, const Operand& operand,
                    int& addresses) {
    const bool written = token[0] == '=';
    const char kind = token[written], mark = token.size() > 1u + written ? token[written + 1] : ' ';
    const std::vector<Operand> parts =
        operand.kind == Operand::vector ? operand.parts : std::vector<Operand>{operand};
    const Space spaces[] = {i.address[0].space, Space::shared, Space::global, Space::generic};
    if (const size_t space = std::string_view("msgM").find(kind); space < 4) {
      i.address[addresses++] = address(operand, spaces[space]);
      if (kind == 'M' && operand.parts.size() == 2) {
        for (const Operand& coordinate : operand.parts[1].parts) {
          bind_register(i, coordinate, 4, 4, false);
          ++i.immediate;
        }
      }
    } else if (kind == 'i') {
      i.immediate = int(bits_of(operand, 4));
    } else if (kind == '+') {
      for (const Operand& part : parts) {
        i.sums.push_back(place(part, 4, 4, true).first);
      }
    } else if (kind != 'l') {
      const size_t count = kind == 'x' || (mark == '|' && parts.size() == 2) ? parts.size()
                           : mark != '*'                                     ? 1
                           : token.back() != '*' ? size_t(token.back() - '0')
                                                 : size_t(1) << i.choices[0];
      fault_if(parts.size() != count, parts.size(), " registers; expected are ", count);
      const Type type = written || kind != 'r' || i.type2 == Type::none ? i.type : i.type2;
      const int bytes = kind == 'p'   ? kPredicate
                        : kind == 'x' ? bytes_of(type) / int(count)
                        : kind >= 'a' ? bytes_of(type)
                                      : kind - '0';
      for (const Operand& part : parts) {
        bind_register(i, part, mark == '|' && &part == &parts[1] ? kPredicate : bytes,
                      kind == 'r' ? 8 : bytes, written);
      }
    }
  }

  static constexpr int kPredicate = 0;  // in place of a number of bytes

  // The place and the bytes of a register; constants and symbols become registers that hold them.
  std::pair<uint32_t, int> place(const Operand& operand, int least, int most, bool written) {
    const bool is_predicate = least == kPredicate, is_name = operand.kind == Operand::name;
    const Register* found = is_name ? find(operand.text) : nullptr;
    least = std::max(2, least);  // there are none of one byte
    if (found) {
      const int bytes = is_predicate ? 0 : bytes_of(found->type);
      fault_if(is_predicate != (found->type == Type::pred), operand.text,
               is_predicate ? " is no predicate" : " is a predicate");
      fault_if(!is_predicate && (bytes < least || bytes > std::max(least, most)), operand.text,
               " has ", 8 * bytes, " bits, not ", 8 * least);
      return {found->offset, bytes};
    }
    fault_if(written && operand.kind != Operand::sink, "a register is expected, not ",
             operand.text);
    if (written || is_predicate) {
      return {written ? allocate(least) : constant(4, bits_of(operand, 4) ? kAllLanes : 0), 0};
    }
    return {constant(least, is_name ? symbol(operand) : bits_of(operand, least)), least};
  }

  void bind_register(Instruction& i, const Operand& operand, int least, int most, bool written) {
    const auto [offset, bytes] = place(operand, least, most, written);
    uint8_t& before = written ? i.to_bytes : i.from_bytes;
    fault_if(most > least && before && bytes && before != bytes, operand.text,
             " has another width than those before it");
    before = bytes ? uint8_t(bytes) : before;
    i.inverted |= uint16_t(operand.negated << i.inputs);
    (written ? i.to[i.outputs++] : i.from[i.inputs++]) = offset;
  }

  Address address(const Operand& operand, Space space) {
    fault_if(operand.kind != Operand::address, "an address is expected");
    const Operand& base = operand.parts[0];
    Address address;
    address.space = space;
    address.offset = base.offset;
    const Register* found = base.kind == Operand::name ? find(base.text) : nullptr;
    if (found) {
      address.based = true;
      address.wide = bytes_of(found->type) == 8;
      address.base = found->offset;
    } else {
      address.offset = int64_t(base.kind == Operand::name ? symbol(base) : bits_of(base, 8));
    }
    return address;
  }

  Kernel& kernel_;
  std::vector<Scope> scopes_;
  std::map<std::string, uint64_t> symbols_;  // addresses
  std::map<std::pair<int, uint64_t>, uint32_t> constants_;
  std::map<std::string, uint32_t> labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
  std::vector<Variable> by_launch_;
  uint32_t register_bytes_ = 0;
  std::string region_;
  std::map<std::string, std::string> regions_;  // by place in the source
  int source_line_ = 0;
  uint32_t always_;  // a predicate that holds
};

}  // namespace

bool add_forms(std::initializer_list<Form> list) {
  for (const Form& form : list) {
    forms().emplace(form.opcode, form);
  }
  return true;
}

void translate(Kernel& kernel) {
  if (!kernel.translated) {
    Translator(kernel).run();
  }
}

}  // namespace ptx
