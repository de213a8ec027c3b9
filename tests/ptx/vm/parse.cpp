// A module: its variables, and its kernels as text.

#include <algorithm>
#include <cstring>

#include "memory.h"
#include "syntax.h"

namespace ptx {
namespace {

constexpr double kNewestVersion = 9.1;

// Comments become spaces, so that lines stay where they are.
std::string without_comments(std::string text) {
  for (size_t at = 0; (at = text.find('/', at)) != text.npos; ++at) {
    const bool line = text.compare(at, 2, "//") == 0;
    if (!line && text.compare(at, 2, "/*") != 0) {
      continue;
    }
    const size_t end = line ? text.find('\n', at) : text.find("*/", at + 2);
    for (; at < std::min(line ? end : end + 2, text.size()); ++at) {
      text[at] = text[at] == '\n' ? '\n' : ' ';
    }
  }
  return text;
}

class Parser {
 public:
  Parser(const std::string& file, const std::string& text)
      : module_(std::make_unique<Module>()), text_(without_comments(text)), all_(text_) {
    module_->file = file.substr(file.rfind('/') + 1);
  }

  std::unique_ptr<Module> parse() {
    size_t begin = 0;
    try {
      for (; (at_ = begin = text_.find_first_not_of(" \t\r\n", at_)) != text_.npos;) {
        statement();
      }
      begin = 0;
      fault_if(module_->architecture == 0, "no .target: this is no PTX, or a part of it");
    } catch (const Fault& error) {
      throw Fault(module_->file, ':', line(begin), ": ", error.what());
    }
    return std::move(module_);
  }

 private:
  int line(size_t at) const {
    return 1 + int(std::count(text_.begin(), text_.begin() + long(at), '\n'));
  }

  // The text up to one of some characters, which is passed over.
  std::string_view taken(const char* ends) {
    const size_t begin = at_, end = text_.find_first_of(ends, begin);
    fault_if(end == text_.npos, "the file ends within a statement");
    at_ = end + 1;
    return trimmed(all_.substr(begin, end - begin));
  }

  // What comes up to the brace that closes one before.
  std::string_view body() {
    const size_t begin = at_;
    for (int depth = 1; depth > 0; ++at_) {
      fault_if(at_ == text_.size(), "the file ends within a body");
      depth += (text_[at_] == '{') - (text_[at_] == '}');
    }
    return all_.substr(begin, at_ - 1 - begin);
  }

  void statement() {
    const size_t begin = at_, space = text_.find_first_of(" \t\r\n", at_);
    const std::string_view first = all_.substr(at_, space - at_);
    const bool is_line =
        first == ".version" || first == ".target" || first == ".address_size" || first == ".file";
    const std::string rest(is_line ? trimmed(taken("\n").substr(first.size())) : taken(";{"));
    const bool has_body = !is_line && text_[at_ - 1] == '{';
    if (first == ".version") {
      fault_if(std::atof(rest.c_str()) > kNewestVersion, "PTX of version ", rest,
               "; this executor knows versions up to ", kNewestVersion);
    } else if (first == ".target") {
      fault_if(rest.compare(0, 3, "sm_") != 0, "unknown target ", rest);
      module_->architecture = std::atoi(rest.c_str() + 3);
    } else if (has_body && first == ".section") {
      const std::string_view found = body();
      names(rest.find(".debug_str") == rest.npos ? "" : found);
    } else if (has_body && rest.find(".entry") != rest.npos) {
      entry(rest, body());
    } else if (!is_line && rest.find(".func") == rest.npos) {
      at_ = begin;
      variable(taken(";"));
    } else {
      fault_if(has_body, "functions that are not inlined are not supported: ", rest);
    }
  }

  // Names of inlined functions, a label in front of each.
  void names(std::string_view section) {
    std::string label;
    for (std::string_view row : split(section, '\n')) {
      if (!row.empty() && row.back() == ':') {
        label = row.substr(0, row.size() - 1);
      } else if (row.compare(0, 3, ".b8") == 0) {
        for (std::string_view number : split(row.substr(3), ',')) {
          if (const int64_t c = integer_of(number)) {
            module_->strings[label] += char(c);
          }
        }
      }
    }
  }

  // {95, 95, 67}: bytes, such as a name that a library's function was asked by.
  static void initialise(const Variable& variable, std::string_view values) {
    fault_if(bytes_of(variable.element) != 1,
             "initial values are supported of bytes alone: ", variable.name);
    const size_t open = values.find('{'), close = values.find('}');
    fault_if(open == values.npos || close == values.npos, "no list of initial values: ", values);
    uint64_t at = variable.address;
    for (std::string_view number : split(values.substr(open + 1, close - open - 1), ',')) {
      fault_if(at == variable.address + variable.bytes, "too many initial values: ", values);
      *reinterpret_cast<uint8_t*>(at++) = uint8_t(integer_of(number));
    }
  }

  void variable(std::string_view text) {
    const std::string_view declared = trimmed(text.substr(0, text.find('=')));
    Variable variable = parse_variable(declared);
    if (variable.space != Space::shared) {
      std::vector<uint8_t>& storage =
          module_->storage.emplace_back(variable.bytes + variable.alignment);
      variable.address = aligned(reinterpret_cast<uint64_t>(storage.data()), variable.alignment);
      add_allocation(variable.address, variable.bytes);
      if (declared.size() < trimmed(text).size()) {
        initialise(variable, text.substr(text.find('=') + 1));
      }
    }
    module_->variables.push_back(variable);
  }

  void entry(std::string_view head, std::string_view body) {
    auto kernel = std::make_unique<Kernel>();
    kernel->module = module_.get();
    head = trimmed(head.substr(head.find(".entry") + 6));
    const size_t end = std::min(head.find_first_of("( \t\n"), head.size());
    kernel->name = head.substr(0, end);
    const size_t open = head.find('('), close = head.rfind(')');
    if (open != head.npos) {
      for (std::string_view text : split(head.substr(open + 1, close - open - 1), ',')) {
        const Variable variable = parse_variable(text);
        const uint32_t offset = aligned(kernel->parameter_bytes, variable.alignment);
        kernel->parameters.push_back({variable.name, offset, uint32_t(variable.bytes)});
        kernel->parameter_bytes = offset + uint32_t(variable.bytes);
      }
    }
    limits(*kernel, head.substr(open == head.npos ? end : close + 1));
    kernel->body = body;
    kernel->first_line = line(size_t(body.begin() - all_.begin()));
    module_->kernels[kernel->name] = std::move(kernel);
  }

  // .maxntid 256, 1, 1 and .reqntid 128
  static void limits(Kernel& kernel, std::string_view directives) {
    for (const std::string_view directive : split(directives, '.')) {
      const std::string_view word = directive.substr(0, directive.find_first_of(" \t\n"));
      if (word == "maxntid" || word == "reqntid") {
        std::array<uint32_t, 3> sizes = {1, 1, 1};
        size_t i = 0;
        for (std::string_view number : split(directive.substr(word.size()), ',')) {
          sizes.at(i++) = uint32_t(integer_of(number));
        }
        kernel.most_threads = sizes[0] * sizes[1] * sizes[2];
        kernel.required = word == "reqntid" ? sizes : kernel.required;
      }
    }
  }

  std::unique_ptr<Module> module_;
  const std::string text_;
  const std::string_view all_;
  size_t at_ = 0;
};

}  // namespace

std::unique_ptr<Module> parse(const std::string& file, const std::string& text) {
  return Parser(file, text).parse();
}

}  // namespace ptx
