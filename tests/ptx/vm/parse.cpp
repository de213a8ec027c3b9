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
  const auto blank = [&](size_t from, size_t to) {
    for (size_t i = from; i < to; ++i) {
      text[i] = text[i] == '\n' ? '\n' : ' ';
    }
  };
  for (size_t at = 0; (at = text.find('/', at)) != text.npos;) {
    if (text.compare(at, 2, "//") == 0) {
      blank(at, std::min(text.find('\n', at), text.size()));
    } else if (text.compare(at, 2, "/*") == 0) {
      const size_t end = text.find("*/", at + 2);
      blank(at, end == text.npos ? text.size() : end + 2);
    } else {
      ++at;
    }
  }
  return text;
}

class Parser {
 public:
  Parser(const std::string& file, const std::string& text)
      : module_(std::make_unique<Module>()), text_(without_comments(text)) {
    module_->file = file.substr(file.rfind('/') + 1);
  }

  std::unique_ptr<Module> parse() {
    while ((at_ = text_.find_first_not_of(" \t\r\n", at_)) != text_.npos) {
      try {
        statement();
      } catch (const Fault& error) {
        if (std::strncmp(error.what(), module_->file.c_str(), module_->file.size()) == 0) {
          throw;
        }
        syntax_error(module_->file, line(at_), error.what());
      }
    }
    if (module_->architecture == 0) {
      syntax_error(module_->file, 1, "no .target: this is no PTX, or a part of it");
    }
    return std::move(module_);
  }

 private:
  int line(size_t at) const {
    return 1 + int(std::count(text_.begin(), text_.begin() + std::min(at, text_.size()), '\n'));
  }

  bool begins(std::string_view word) const { return text_.compare(at_, word.size(), word) == 0; }

  std::string_view rest_of_line() {
    const size_t end = std::min(text_.find('\n', at_), text_.size());
    const std::string_view found = std::string_view(text_).substr(at_, end - at_);
    at_ = end;
    return trimmed(found);
  }

  // The end of what a brace at `open` begins.
  size_t closing(size_t open) const {
    int depth = 0;
    for (size_t i = open; i < text_.size(); ++i) {
      depth += (text_[i] == '{') - (text_[i] == '}');
      if (depth == 0) {
        return i;
      }
    }
    throw Fault("the file ends within a body");
  }

  void statement() {
    if (begins(".version")) {
      const std::string version(rest_of_line().substr(8));
      if (std::atof(version.c_str()) > kNewestVersion) {
        throw Fault("PTX of version" + version + "; this executor knows versions up to 9.1");
      }
    } else if (begins(".target")) {
      module_->target = std::string(trimmed(rest_of_line().substr(7)));
      if (module_->target.compare(0, 3, "sm_") != 0) {
        throw Fault("unknown target " + module_->target);
      }
      module_->architecture = std::atoi(module_->target.c_str() + 3);
    } else if (begins(".address_size")) {
      rest_of_line();
    } else if (begins(".file")) {
      const std::vector<std::string_view> found = words(rest_of_line());
      if (found.size() > 2) {
        module_->files[std::atoi(std::string(found[1]).c_str())] = std::string(found[2]);
      }
    } else if (begins(".section")) {
      section();
    } else {
      declaration();
    }
  }

  // Names of inlined functions, of debug information; all else of it is passed over.
  void section() {
    const size_t open = text_.find('{', at_);
    if (open == text_.npos) {
      throw Fault("a section without a body");
    }
    const size_t close = closing(open);
    const bool strings = text_.substr(at_, open - at_).find(".debug_str") != std::string::npos;
    std::string label;
    for (size_t i = open + 1; strings && i < close;) {
      const size_t end = std::min(text_.find('\n', i), close);
      const std::string_view row = trimmed(std::string_view(text_).substr(i, end - i));
      if (!row.empty() && row.back() == ':') {
        label = std::string(row.substr(0, row.size() - 1));
      } else if (row.compare(0, 3, ".b8") == 0) {
        for (std::string_view number : split(row.substr(3), ',')) {
          if (const int c = std::atoi(std::string(number).c_str())) {
            module_->strings[label] += char(c);
          }
        }
      }
      i = end + 1;
    }
    at_ = close + 1;
  }

  void declaration() {
    const size_t semicolon = text_.find(';', at_), brace = text_.find('{', at_);
    const size_t end = std::min(semicolon, brace);
    if (end == text_.npos) {
      throw Fault("the file ends within a statement");
    }
    const std::string_view head = std::string_view(text_).substr(at_, end - at_);
    if (head.find(".func") != head.npos) {
      if (semicolon > brace) {
        throw Fault("functions that are not inlined are not supported: " + std::string(head));
      }
      at_ = semicolon + 1;
    } else if (head.find(".entry") != head.npos) {
      entry(head, brace);
    } else {
      if (semicolon == text_.npos) {
        throw Fault("the file ends within a statement");
      }
      variable(std::string_view(text_).substr(at_, semicolon - at_));
      at_ = semicolon + 1;
    }
  }

  void variable(std::string_view text) {
    std::string name, initial;
    Type element = Type::none;
    Variable variable = parse_variable(text, name, initial, element);
    if (variable.space != Space::shared) {
      std::vector<uint8_t>& storage =
          module_->storage.emplace_back(variable.bytes + variable.alignment);
      variable.address = (reinterpret_cast<uint64_t>(storage.data()) + variable.alignment - 1) /
                         variable.alignment * variable.alignment;
      std::string_view values = initial;
      if (!values.empty() && values[0] == '{') {
        values = values.substr(1, values.size() - 2);
      }
      uint64_t at = variable.address;
      for (std::string_view value : split(values, ',')) {
        Operand number;
        if (!parse_number(value, number)) {
          throw Fault("initial value " + std::string(value));
        }
        std::memcpy(reinterpret_cast<void*>(at), &number.bits, size_t(bytes_of(element)));
        at += uint64_t(bytes_of(element));
      }
      add_allocation(variable.address, variable.bytes);
    }
    module_->variables[name] = variable;
  }

  void entry(std::string_view head, size_t brace) {
    auto kernel = std::make_unique<Kernel>();
    kernel->module = module_.get();
    const size_t open = head.find('('), close = head.rfind(')');
    const size_t name = head.find(".entry") + 6;
    kernel->name = std::string(trimmed(head.substr(name, std::min(open, head.size()) - name)));
    std::string_view directives;
    if (open == head.npos) {
      const std::vector<std::string_view> found = words(kernel->name);
      directives = head.substr(name + found[0].size() + 1);
      kernel->name = std::string(found[0]);
    } else {
      for (std::string_view text : split(head.substr(open + 1, close - open - 1), ',')) {
        Parameter parameter;
        std::string initial;
        Type element = Type::none;
        const Variable variable = parse_variable(text, parameter.name, initial, element);
        const uint32_t alignment = variable.alignment;
        parameter.offset = (kernel->parameter_bytes + alignment - 1) / alignment * alignment;
        parameter.bytes = uint32_t(variable.bytes);
        kernel->parameter_bytes = parameter.offset + parameter.bytes;
        kernel->parameters.push_back(parameter);
      }
      directives = head.substr(close + 1);
    }
    limits(*kernel, directives);
    const size_t end = closing(brace);
    kernel->body = text_.substr(brace + 1, end - brace - 1);
    kernel->first_line = line(brace);
    module_->kernels[kernel->name] = std::move(kernel);
    at_ = end + 1;
  }

  // .maxntid 256, 1, 1 and .reqntid 128
  static void limits(Kernel& kernel, std::string_view directives) {
    for (const std::string_view word : {".maxntid", ".reqntid"}) {
      const size_t found = directives.find(word);
      if (found == directives.npos) {
        continue;
      }
      std::string_view numbers = directives.substr(found + word.size());
      numbers = numbers.substr(0, numbers.find('.'));
      std::array<uint32_t, 3> sizes = {1, 1, 1};
      size_t i = 0;
      for (std::string_view number : split(numbers, ',')) {
        sizes[i++] = uint32_t(std::atoi(std::string(number).c_str()));
      }
      kernel.most_threads = sizes[0] * sizes[1] * sizes[2];
      if (word == ".reqntid") {
        kernel.required = sizes;
      }
    }
  }

  std::unique_ptr<Module> module_;
  std::string text_;
  size_t at_ = 0;
};

}  // namespace

std::unique_ptr<Module> parse(const std::string& file, const std::string& text) {
  return Parser(file, text).parse();
}

}  // namespace ptx
