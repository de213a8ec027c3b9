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
    try {
      while ((at_ = text_.find_first_not_of(" \t\r\n", at_)) != text_.npos) {
        statement();
      }
      at_ = 0;
      fault_if(module_->architecture == 0, "no .target: this is no PTX, or a part of it");
    } catch (const Fault& error) {
      throw Fault(module_->file, ':', line(at_), ": ", error.what());
    }
    return std::move(module_);
  }

 private:
  int line(size_t at) const {
    return 1 + int(std::count(text_.begin(), text_.begin() + long(at), '\n'));
  }

  // The text up to one of some characters.
  std::string_view until(const char* ends) {
    const size_t end = text_.find_first_of(ends, at_);
    fault_if(end == text_.npos, "the file ends within a statement");
    return trimmed(all_.substr(at_, end - at_));
  }

  // The body in the braces that begin at `open`.
  std::string_view body(size_t open) const {
    int depth = 0;
    for (size_t i = open; i < text_.size(); ++i) {
      depth += (text_[i] == '{') - (text_[i] == '}');
      if (depth == 0) {
        return all_.substr(open + 1, i - open - 1);
      }
    }
    throw Fault("the file ends within a body");
  }

  void statement() {
    const std::string_view line = trimmed(all_.substr(at_, text_.find('\n', at_) - at_));
    const std::string_view first = words(line)[0];
    const std::string rest(trimmed(line.substr(first.size())));
    size_t end = at_ + line.size();
    if (first == ".version") {
      fault_if(std::atof(rest.c_str()) > kNewestVersion, "PTX of version ", rest,
               "; this executor knows versions up to ", kNewestVersion);
    } else if (first == ".target") {
      fault_if(rest.compare(0, 3, "sm_") != 0, "unknown target ", rest);
      module_->architecture = std::atoi(rest.c_str() + 3);
    } else if (first == ".section") {
      const std::string_view found = body(text_.find('{', at_));
      if (rest.compare(0, 10, ".debug_str") == 0) {
        names(found);
      }
      end = size_t(found.end() - all_.begin()) + 1;
    } else if (first != ".address_size" && first != ".file") {
      end = declaration();
    }
    at_ = end;
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

  // Returns the end of it.
  size_t declaration() {
    const std::string_view head = until(";{");
    const size_t brace = text_.find_first_of(";{", at_);
    const bool has_body = text_[brace] == '{';
    if (head.find(".entry") != head.npos && has_body) {
      const std::string_view found = body(brace);
      entry(head, found);
      return size_t(found.end() - all_.begin()) + 1;
    }
    if (head.find(".func") == head.npos) {
      variable(until(";"));
    } else if (has_body) {
      throw Fault("functions that are not inlined are not supported: ", head);
    }
    return text_.find(';', at_) + 1;
  }

  void variable(std::string_view text) {
    Variable variable = parse_variable(text);
    if (variable.space != Space::shared) {
      std::vector<uint8_t>& storage =
          module_->storage.emplace_back(variable.bytes + variable.alignment);
      variable.address = aligned(reinterpret_cast<uint64_t>(storage.data()), variable.alignment);
      add_allocation(variable.address, variable.bytes);
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
