#include "syntax.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "numbers.h"

namespace ptx {

void syntax_error(const std::string& file, int line, const std::string& what) {
  throw Fault(file + ":" + std::to_string(line) + ": " + what);
}

Type type_named(std::string_view word) {
  static const std::map<std::string_view, Type> kTypes = {
      {"pred", Type::pred},     {"b8", Type::b8},       {"b16", Type::b16},
      {"b32", Type::b32},       {"b64", Type::b64},     {"b128", Type::b128},
      {"u8", Type::u8},         {"u16", Type::u16},     {"u32", Type::u32},
      {"u64", Type::u64},       {"s8", Type::s8},       {"s16", Type::s16},
      {"s32", Type::s32},       {"s64", Type::s64},     {"f16", Type::f16},
      {"f16x2", Type::f16x2},   {"bf16", Type::bf16},   {"bf16x2", Type::bf16x2},
      {"tf32", Type::tf32},     {"f32", Type::f32},     {"f64", Type::f64},
  };
  const auto found = kTypes.find(word);
  return found == kTypes.end() ? Type::none : found->second;
}

int bytes_of(Type type) {
  switch (type) {
    case Type::b8:
    case Type::u8:
    case Type::s8:
      return 1;
    case Type::b16:
    case Type::u16:
    case Type::s16:
    case Type::f16:
    case Type::bf16:
      return 2;
    case Type::b64:
    case Type::u64:
    case Type::s64:
    case Type::f64:
      return 8;
    case Type::b128:
      return 16;
    default:
      return 4;
  }
}

bool is_signed(Type type) {
  return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64;
}

bool is_integer(Type type) { return type >= Type::b8 && type <= Type::s64; }

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == text.npos) {
    return {};
  }
  return text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
    if (c == separator && depth == 0) {
      parts.push_back(trimmed(text.substr(begin, i - begin)));
      begin = i + 1;
    }
  }
  const std::string_view last = trimmed(text.substr(begin));
  if (!last.empty()) {
    parts.push_back(last);
  }
  return parts;
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> found;
  for (size_t at = 0; (at = text.find_first_not_of(" \t\r\n", at)) != text.npos;) {
    const size_t end = std::min(text.find_first_of(" \t\r\n", at), text.size());
    found.push_back(text.substr(at, end - at));
    at = end;
  }
  return found;
}

bool parse_number(std::string_view text, Operand& into) {
  const std::string word(text);
  const char* at = word.c_str();
  const bool hexadecimal = word.size() > 2 && at[0] == '0';
  if (hexadecimal && (at[1] == 'f' || at[1] == 'F') && word.size() == 10) {
    into.kind = Operand::float32;
    into.bits = std::strtoull(at + 2, nullptr, 16);
    return true;
  }
  if (hexadecimal && (at[1] == 'd' || at[1] == 'D') && word.size() == 18) {
    into.kind = Operand::float64;
    into.bits = std::strtoull(at + 2, nullptr, 16);
    return true;
  }
  const bool negative = *at == '-';
  at += negative;
  if (!std::isdigit(static_cast<unsigned char>(*at))) {
    return false;
  }
  char* end = nullptr;
  const bool binary = at[0] == '0' && (at[1] == 'b' || at[1] == 'B');
  const uint64_t value = binary ? std::strtoull(at + 2, &end, 2) : std::strtoull(at, &end, 0);
  if (*end == '.') {  // 1.5, as Triton writes floats now and then
    into.kind = Operand::float64;
    into.bits = bits_as<uint64_t>(std::strtod(word.c_str(), &end));
    return *end == 0;
  }
  end += *end == 'U' || *end == 'u';
  if (*end) {
    return false;
  }
  into.kind = Operand::integer;
  into.bits = negative ? 0 - value : value;
  return true;
}

namespace {

// "name+16", "name-4", "name" to a name and an offset.
void parse_sum(std::string_view text, Operand& into) {
  const size_t sign = text.find_first_of("+-", 1);
  const std::string_view base = trimmed(text.substr(0, sign));
  if (parse_number(base, into)) {
    return;
  }
  into.kind = Operand::name;
  into.text = std::string(base);
  if (sign != text.npos) {
    Operand number;
    const bool plus = text[sign] == '+';
    const std::string rest(trimmed(text.substr(sign + 1)));
    if (!parse_number(plus ? rest : "-" + rest, number)) {
      throw Fault("no number in " + std::string(text));
    }
    into.offset = int64_t(number.bits);
  }
}

}  // namespace

Operand parse_operand(std::string_view text) {
  text = trimmed(text);
  Operand operand;
  if (text.empty()) {
    throw Fault("an operand is missing");
  }
  if (text[0] == '{' || text[0] == '[') {
    const char close = text[0] == '{' ? '}' : ']';
    if (text.back() != close) {
      throw Fault(std::string("no ") + close + " in " + std::string(text));
    }
    operand.kind = text[0] == '{' ? Operand::vector : Operand::address;
    for (std::string_view part : split(text.substr(1, text.size() - 2), ',')) {
      operand.parts.push_back(parse_operand(part));
    }
    if (operand.parts.empty()) {
      throw Fault("nothing in " + std::string(text));
    }
    return operand;
  }
  if (text[0] == '!') {
    operand = parse_operand(text.substr(1));
    operand.negated = true;
    return operand;
  }
  const size_t bar = text.find('|');
  if (bar != text.npos) {
    operand.kind = Operand::vector;
    operand.parts = {parse_operand(text.substr(0, bar)), parse_operand(text.substr(bar + 1))};
    return operand;
  }
  if (text == "_") {
    operand.kind = Operand::sink;
    return operand;
  }
  if (!parse_number(text, operand)) {
    parse_sum(text, operand);
  }
  return operand;
}

Variable parse_variable(std::string_view text, std::string& name, std::string& initial,
                        Type& element) {
  static const std::map<std::string_view, Space> kSpaces = {
      {".shared", Space::shared}, {".global", Space::global}, {".const", Space::constant},
      {".local", Space::local},   {".param", Space::param},
  };
  const size_t equals = text.find('=');
  initial = equals == text.npos ? "" : std::string(trimmed(text.substr(equals + 1)));
  const std::vector<std::string_view> found = words(text.substr(0, equals));
  Variable variable;
  uint32_t vector = 1, alignment = 0;
  element = Type::none;
  bool pointer = false;  // `.ptr .global .align 16` says what a parameter points to
  for (size_t i = 0; i < found.size(); ++i) {
    const std::string_view word = found[i];
    if (const auto space = kSpaces.find(word); space != kSpaces.end()) {
      variable.space = pointer ? variable.space : space->second;
    } else if (word == ".align" && i + 1 < found.size()) {
      ++i;
      alignment = pointer ? alignment : uint32_t(std::atoi(std::string(found[i]).c_str()));
    } else if (word == ".ptr") {
      pointer = true;
    } else if (word == ".v2" || word == ".v4") {
      vector = uint32_t(word[2] - '0');
    } else if (word == ".extern" || word == ".visible" || word == ".weak" || word == ".common" ||
               word == ".attribute(.managed)") {
    } else if (word[0] == '.') {
      element = type_named(word.substr(1));
      if (element == Type::none) {
        throw Fault("unknown word " + std::string(word));
      }
    } else {
      std::string rest;
      for (; i < found.size(); ++i) {
        rest += found[i];
      }
      const size_t bracket = rest.find('[');
      name = rest.substr(0, bracket);
      uint64_t count = 1;
      if (bracket != rest.npos) {
        const std::string inside = rest.substr(bracket + 1, rest.find(']') - bracket - 1);
        variable.sized_by_launch = inside.empty();
        count = std::strtoull(inside.c_str(), nullptr, 0);
      }
      const uint32_t bytes = uint32_t(bytes_of(element)) * vector;
      variable.bytes = count * bytes;
      variable.alignment = alignment ? alignment : bytes;
    }
  }
  if (name.empty() || element == Type::none) {
    throw Fault("a variable without name or type");
  }
  return variable;
}

}  // namespace ptx
