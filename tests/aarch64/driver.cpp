// The operators of csrc/cpu without PyTorch, for a machine that is emulated or has none.
//
//     driver               answers calls from its input, one by one, on its output
//     driver FILE ...      makes the calls of files, and holds them to the results written there
//
// A call is the name of an operator, its arguments, and how its result is judged (aarch64/calls.py
// writes them). Numbers are little-endian; a string or a list begins with its length in 32 bits.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>

#include "libtorch.h"

namespace {

using libtorch::Storage;

class Reader {
 public:
  explicit Reader(std::FILE* file) : file_(file) {}

  bool more() {
    const int next = std::fgetc(file_);
    std::ungetc(next, file_);
    return next != EOF;
  }
  void bytes(void* to, size_t count) {
    if (std::fread(to, 1, count, file_) != count) {
      throw std::runtime_error("the calls end in the middle of one");
    }
  }
  template <typename T>
  T number() {
    T value;
    bytes(&value, sizeof value);
    return value;
  }
  template <typename T>
  std::vector<T> list() {
    std::vector<T> values(number<uint32_t>());
    bytes(values.data(), values.size() * sizeof(T));
    return values;
  }
  std::string text() {
    const std::vector<char> characters = list<char>();
    return {characters.begin(), characters.end()};
  }

  // A tensor with all of its storage, whatever of it the tensor shows.
  AtenTensorHandle tensor() {
    auto* const made = new AtenTensorOpaque;
    made->dtype = number<int32_t>();
    made->sizes = list<int64_t>();
    made->strides = list<int64_t>();
    made->offset = number<int64_t>();
    made->storage = std::make_shared<Storage>(number<int64_t>());
    bytes(made->storage->data(), made->storage->bytes());
    return made;
  }

 private:
  std::FILE* const file_;
};

class Writer {
 public:
  template <typename T>
  void number(T value) {
    std::fwrite(&value, sizeof value, 1, stdout);
  }
  template <typename T>
  void list(const std::vector<T>& values) {
    number(uint32_t(values.size()));
    std::fwrite(values.data(), sizeof(T), values.size(), stdout);
  }
  void text(const std::string& text) { list(std::vector<char>(text.begin(), text.end())); }
  void tensor(const AtenTensorOpaque& tensor) {
    number(tensor.dtype);
    list(tensor.sizes);
    list(tensor.strides);
    // A result has no gaps.
    const int64_t size = tensor.numel() * libtorch::element_size(tensor.dtype);
    number(size);
    std::fwrite(tensor.data(), 1, size, stdout);
  }
};

StableIValue value_of(const void* pointer) {
  return reinterpret_cast<StableIValue>(pointer);
}

struct Call {
  std::string name;
  std::vector<StableIValue> stack;
  uint64_t arguments = 0;
  // Inputs, and what their storages held.
  std::vector<std::shared_ptr<Storage>> storages;
  std::vector<std::string> before;

  explicit Call(Reader& in) : name(in.text()) {
    const auto count = in.number<uint32_t>();
    for (uint32_t i = 0; i < count; i++) {
      stack.push_back(argument(in));
    }
    arguments = stack.size();
    stack.resize(std::max<size_t>(arguments, 2));  // results take the place of arguments
    for (const auto& storage : storages) {
      before.emplace_back(storage->data(), storage->bytes());
    }
  }

  StableIValue tensor(Reader& in) {
    AtenTensorHandle const made = in.tensor();
    storages.push_back(made->storage);
    return value_of(made);
  }

  // By a letter for its type; an upper-case one where the schema says that it may be missing.
  StableIValue argument(Reader& in) {
    const char kind = in.number<char>();
    if (kind == '-') {
      return 0;
    }
    if (kind >= 'A' && kind <= 'Z') {
      return value_of(new StableIValue(plain(in, kind - 'A' + 'a')));
    }
    return plain(in, kind);
  }

  StableIValue plain(Reader& in, char kind) {
    switch (kind) {
      case 't':
        return tensor(in);
      case 'l': {
        auto* const list = new StableListOpaque;
        const auto count = in.number<uint32_t>();
        for (uint32_t i = 0; i < count; i++) {
          list->items.push_back(tensor(in));
        }
        return value_of(list);
      }
      case 'n': {  // integers, or the bits of floating numbers
        auto* const list = new StableListOpaque;
        for (const uint64_t bits : in.list<uint64_t>()) {
          list->items.push_back(bits);
        }
        return value_of(list);
      }
      case 's':
        return value_of(new StringOpaque{in.text()});
      case 'i':  // an integer, a floating number, a bool, a dtype
        return in.number<uint64_t>();
      default:
        throw std::runtime_error(std::string("an argument of the unknown kind ") + kind);
    }
  }

  void run() {
    const libtorch::Kernel kernel = libtorch::kernel(name);
    if (kernel == nullptr) {
      throw std::runtime_error("there is no operator " + name);
    }
    kernel(stack.data(), arguments, results());
    for (size_t i = 0; i < storages.size(); i++) {
      if (std::memcmp(before[i].data(), storages[i]->data(), before[i].size()) != 0) {
        throw std::runtime_error(name + " writes to its inputs, or around them");
      }
    }
  }

  uint64_t results() const {
    return name == "batch_norm_act" || name == "batch_norm_act_backward" ? 2 : 1;
  }
};

// --- the verdict ---------------------------------------------------------------------------------

double value(const AtenTensorOpaque& tensor, int64_t index) {
  int64_t at = 0;
  for (size_t axis = tensor.sizes.size(); axis-- > 0; index /= tensor.sizes[axis]) {
    at += index % tensor.sizes[axis] * tensor.strides[axis];
  }
  const char* const from = tensor.data() + at * libtorch::element_size(tensor.dtype);
  switch (tensor.dtype) {
    case libtorch::uint8:
      return uint8_t(*from);
    case libtorch::half: {
      uint16_t bits;
      std::memcpy(&bits, from, sizeof bits);
      const int exponent = bits >> 10 & 31, fraction = bits & 1023;
      const double size = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(fraction, -24)
                                          : std::ldexp(fraction + 1024, exponent - 25);
      return bits >> 15 ? -size : size;
    }
    case libtorch::bfloat16: {
      uint16_t bits;
      std::memcpy(&bits, from, sizeof bits);
      const uint32_t wide = uint32_t(bits) << 16;
      float v;
      std::memcpy(&v, &wide, sizeof v);
      return v;
    }
    case libtorch::float32: {
      float v;
      std::memcpy(&v, from, sizeof v);
      return v;
    }
    default: {
      double v;
      std::memcpy(&v, from, sizeof v);
      return v;
    }
  }
}

std::string text_of(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

// As check_close of tests/conformance/harness.py: in norm, and element by element.
std::string judge_close(const AtenTensorOpaque& result, const AtenTensorOpaque& right,
                        double tolerance) {
  double squares = 0, differences = 0, largest = 0, worst = 0;
  const int64_t count = right.numel();
  for (int64_t i = 0; i < count; i++) {
    const double r = value(right, i), d = std::fabs(value(result, i) - r);
    if (std::isnan(d)) {
      return "element " + std::to_string(i) + " is NaN";
    }
    squares += r * r;
    differences += d * d;
    largest = std::max(largest, std::fabs(r));
    worst = std::max(worst, d);
  }
  if (count == 0) {
    return "";
  }
  const double scale = std::max(std::sqrt(squares / count), 0.3);
  const double ratio = std::sqrt(differences / count) / scale;
  if (!(ratio <= tolerance)) {
    return "||out - ref|| / ||ref|| is " + text_of(ratio) + "; expected <= " + text_of(tolerance);
  }
  worst /= std::max(largest, scale);
  return worst <= 4 * tolerance ? "" : "an element is off by " + text_of(worst);
}

// As check_labels: of N x C x H x W logits, a label's is hardly less than the largest. Behind
// labels there may be certainties, so far from those that are right.
std::string judge_labels(const AtenTensorOpaque& result, const AtenTensorOpaque& logits,
                         double allowed, const AtenTensorOpaque& levels, double off) {
  const int64_t batch = logits.sizes[0], classes = logits.sizes[1];
  const int64_t pixels = logits.sizes[2] * logits.sizes[3];
  const bool certain = result.sizes.size() == 4;
  for (int64_t n = 0; n < batch; n++) {
    for (int64_t p = 0; p < pixels; p++) {
      double best = -INFINITY;
      for (int64_t c = 0; c < classes; c++) {
        best = std::max(best, value(logits, (n * classes + c) * pixels + p));
      }
      const int64_t at = (certain ? 2 * n : n) * pixels + p, label = value(result, at);
      if (label >= classes ||
          !(best - value(logits, (n * classes + label) * pixels + p) <= allowed)) {
        return "label " + std::to_string(label) + " of pixel " + std::to_string(p) + " is wrong";
      }
      if (certain &&
          !(std::fabs(value(result, at + pixels) - value(levels, n * pixels + p)) <= off)) {
        return "the certainty of pixel " + std::to_string(p) + " is wrong";
      }
    }
  }
  return "";
}

std::string judge(Reader& in, Call& call) {
  const char kind = in.number<char>();
  const std::unique_ptr<AtenTensorOpaque> right(in.tensor());
  const auto tolerance = in.number<double>();
  std::unique_ptr<AtenTensorOpaque> levels;
  double off = 0;
  if (kind == 'l') {
    levels.reset(in.tensor());
    off = in.number<double>();
  }
  try {
    call.run();
  } catch (const std::exception& error) {
    return error.what();
  }
  const std::unique_ptr<AtenTensorOpaque> result(reinterpret_cast<AtenTensorHandle>(call.stack[0]));
  if (kind == 'l') {
    return judge_labels(*result, *right, tolerance, *levels, off);
  }
  return result->sizes == right->sizes ? judge_close(*result, *right, tolerance)
                                       : "the shape is another";
}

int check_files(int count, char** paths) {
  std::map<std::string, int> calls;
  int wrong = 0, all = 0;
  for (int i = 0; i < count; i++) {
    std::FILE* const file = std::fopen(paths[i], "rb");
    if (file == nullptr) {
      std::fprintf(stderr, "%s: %s\n", paths[i], std::strerror(errno));
      return 2;
    }
    Reader in(file);
    while (in.more()) {
      const std::string what = in.text();  // for people
      Call call(in);
      const std::string fault = judge(in, call);
      calls[call.name]++;
      all++;
      if (!fault.empty()) {
        wrong++;
        std::printf("%s: %s\n", what.c_str(), fault.c_str());
      }
    }
    std::fclose(file);
  }
  std::printf("%d calls of %zu operators, %d wrong\n", all, calls.size(), wrong);
  return wrong > 0 || all == 0;
}

// --- answers -------------------------------------------------------------------------------------

void answer(Reader& in) {
  Writer out;
  Call call(in);
  try {
    call.run();
  } catch (const std::exception& error) {
    out.number('e');
    out.text(error.what());
    return;
  }
  if (call.name == "cpu_capability") {
    auto* const text = reinterpret_cast<StringHandle>(call.stack[0]);
    out.number('s');
    out.text(text->text);
    delete text;
    return;
  }
  out.number('t');
  out.number(uint32_t(call.results()));
  for (uint64_t i = 0; i < call.results(); i++) {
    const std::unique_ptr<AtenTensorOpaque> result(
        reinterpret_cast<AtenTensorHandle>(call.stack[i]));
    out.tensor(*result);
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count > 1) {
      return check_files(count - 1, arguments + 1);
    }
    Reader in(stdin);
    while (in.more()) {
      answer(in);
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return 0;
}
