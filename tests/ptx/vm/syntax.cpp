#include "syntax.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <set>

#include "numbers.h"

namespace ptx {
namespace {

constexpr const char* kBlank = " \t\r\n";

bool parse_number(std::string_view text, Operand& into) {
  const std::string word(text);
  const char* at = word.c_str() + (word[0] == '-');
  if (!std::isdigit(static_cast<unsigned char>(*at))) {
    return false;
  }
  into.kind = Operand::integer;
  const int mark = at[0] == '0' ? std::tolower(at[1]) : 0;
  char* end = nullptr;
  if (mark == 'f' || mark == 'd') {  // 0f3F800000 and 0d3FF0000000000000
    const uint64_t bits = std::strtoull(at + 2, &end, 16);
    into.kind = Operand::real;
    into.bits = mark == 'd' ? bits : bits_as<uint64_t>(double(bits_as<float>(uint32_t(bits))));
    return *end == 0;
  }
  into.bits = mark == 'b' ? std::strtoull(at + 2, &end, 2) : std::strtoull(at, &end, 0);
  if (*end == '.') {  // 1.5, as Triton writes floats now and then
    into.kind = Operand::real;
    into.bits = bits_as<uint64_t>(std::strtod(word.c_str(), &end));
    return *end == 0;
  }
  into.bits = word[0] == '-' ? 0 - into.bits : into.bits;
  return *end == 0 || ((*end == 'U' || *end == 'u') && end[1] == 0);
}

}  // namespace

std::string_view trimmed(std::string_view text) {
  const size_t begin = std::min(text.find_first_not_of(kBlank), text.size());
  return text.substr(begin, text.find_last_not_of(kBlank) + 1 - begin);
}

Words split(std::string_view text, char separator) {
  Words parts;
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

Words words(std::string_view text) {
  Words found;
  for (size_t at = 0; (at = text.find_first_not_of(kBlank, at)) != text.npos;) {
    const size_t end = std::min(text.find_first_of(kBlank, at), text.size());
    found.push_back(text.substr(at, end - at));
    at = end;
  }
  return found;
}

int64_t integer_of(std::string_view text) {
  Operand number;
  fault_if(!parse_number(trimmed(text), number) || number.kind != Operand::integer,
           "no number: ", text);
  return int64_t(number.bits);
}

Operand parse_operand(std::string_view text) {
  text = trimmed(text);
  Operand operand;
  fault_if(text.empty(), "an operand is missing");
  const size_t bar = text.find('|');
  if (text[0] == '{' || text[0] == '[') {
    const char close = text[0] == '{' ? '}' : ']';
    fault_if(text.back() != close || text.size() < 3, "no ", close, " in ", text);
    operand.kind = text[0] == '{' ? Operand::vector : Operand::address;
    for (std::string_view part : split(text.substr(1, text.size() - 2), ',')) {
      operand.parts.push_back(parse_operand(part));
    }
  } else if (text[0] == '!') {
    operand = parse_operand(text.substr(1));
    operand.negated = true;
  } else if (bar != text.npos) {
    operand.kind = Operand::vector;
    operand.parts = {parse_operand(text.substr(0, bar)), parse_operand(text.substr(bar + 1))};
  } else if (text == "_") {
    operand.kind = Operand::sink;
  } else if (!parse_number(text, operand)) {  // name, name+16, name+-4
    const size_t sign = text.find_first_of("+-", 1);
    operand.kind = Operand::name;
    operand.text = trimmed(text.substr(0, sign));
    if (sign != text.npos) {
      operand.offset = integer_of(text.substr(sign + (text[sign] == '+')));
    }
  }
  return operand;
}

uint64_t bits_of(const Operand& operand, int bytes) {
  if (operand.kind == Operand::real && bytes == 4) {
    return bits_as<uint32_t>(float(bits_as<double>(operand.bits)));
  }
  fault_if(operand.kind != Operand::integer && operand.kind != Operand::real,
           "a constant is expected");
  return bytes < 8 ? operand.bits & ((uint64_t(1) << (8 * bytes)) - 1) : operand.bits;
}

Type type_named(std::string_view word) {
  static const Words kNames = {FASSD_PTX_TYPES(FASSD_PTX_TEXT)};
  const size_t index = size_t(std::find(kNames.begin(), kNames.end(), word) - kNames.begin());
  return Type(std::min(index, size_t(Type::none)));
}

Space space_named(std::string_view word) {
  const size_t window = word.find("::");  // shared::cta, shared::cluster, param::entry
  static const Words kNames = {"generic", "global", "shared", "local", "param", "const"};
  const auto found = std::find(kNames.begin(), kNames.end(), word.substr(0, window));
  return found == kNames.end() ? Space::generic : Space(found - kNames.begin());
}

Variable parse_variable(std::string_view text) {
  static const std::set<std::string_view> kLinking = {".extern", ".visible", ".weak", ".common",
                                                      ".attribute(.managed)"};
  Variable variable;
  fault_if(text.find('=') != text.npos, "initial values are not supported: ", text);
  uint64_t count = 1;
  uint32_t vector = 1, alignment = 0;
  bool pointer = false;  // `.ptr .global .align 16` says what a parameter points to
  const Words found = words(text);
  for (size_t i = 0; i < found.size(); ++i) {
    const std::string_view word = found[i];
    if (const Space space = space_named(word.substr(1)); space != Space::generic) {
      variable.space = pointer ? variable.space : space;
    } else if (word == ".align" && i + 1 < found.size()) {
      const uint32_t wanted = uint32_t(integer_of(found[++i]));
      alignment = pointer ? alignment : wanted;
    } else if (word == ".v2" || word == ".v4") {
      vector = uint32_t(word[2] - '0');
    } else if (word == ".ptr") {
      pointer = true;
    } else if (word[0] != '.') {
      variable.name += word;
    } else if (!kLinking.contains(word)) {
      variable.element = type_named(word.substr(1));
      fault_if(variable.element == Type::none, "unknown word ", word);
    }
  }
  const size_t bracket = variable.name.find('[');
  if (bracket != std::string::npos) {
    const std::string inside = variable.name.substr(bracket + 1);
    variable.sized_by_launch = inside == "]";
    count = std::strtoull(inside.c_str(), nullptr, 0);
    variable.name.resize(bracket);
  }
  fault_if(variable.name.empty() || variable.element == Type::none,
           "a variable without a name or a type: ", text);
  const uint32_t bytes = uint32_t(bytes_of(variable.element)) * vector;
  variable.bytes = count * bytes;
  variable.alignment = alignment ? alignment : bytes;
  return variable;
}

}  // namespace ptx
