#include "launches.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

#include "memo.h"

namespace fassd::plan {

using namespace cuda;

namespace {

DeviceLimits limits_of(const Integers& gpu) {
  STD_TORCH_CHECK(gpu.size() == 3, "gpu has ", gpu.size(), " numbers; expected 3");
  for (int64_t value : gpu) {
    STD_TORCH_CHECK(value >= 1 && value <= (int64_t(1) << 30), "gpu holds ", value,
                    "; expected 1 to ", (int64_t(1) << 30));
  }
  return {int(gpu[0]), int(gpu[1]), int(gpu[2])};
}

// --- the answer ---

// Writes one JSON object, field by field.
class Object {
 public:
  explicit Object(std::ostream& out) : out_(out) { out_ << '{'; }
  ~Object() { out_ << '}'; }

  std::ostream& key(const char* name) {
    out_ << (first_ ? "" : ", ") << '"' << name << "\": ";
    first_ = false;
    return out_;
  }
  void text(const char* name, const std::string& value) { key(name) << '"' << value << '"'; }
  void number(const char* name, int64_t value) { key(name) << value; }
  void number(const char* name, int value) { key(name) << value; }
  void number(const char* name, double value) {
    char digits[32];
    std::snprintf(digits, sizeof(digits), "%.17g", value);
    key(name) << (std::isinf(value) ? "Infinity" : digits);  // if no plan fits
  }

 private:
  std::ostream& out_;
  bool first_ = true;
};

template <typename Values, typename Write>
void write_list(std::ostream& out, const Values& values, const Write& write) {
  out << '[';
  bool first = true;
  for (const auto& value : values) {
    out << (first ? "" : ", ");
    first = false;
    write(value);
  }
  out << ']';
}

void write(std::ostream& out, const Plan& blocks) {
  Object object(out);
  object.number("warps", blocks.variant.warps);
  object.number("m_tiles", blocks.variant.m_tiles);
  object.number("n_tiles", blocks.variant.n_tiles);
  object.number("sliding", int(blocks.variant.sliding));
  object.number("splits", blocks.variant.splits);
  object.number("tile_width", 1 << blocks.tile.width_log2);
  object.number("tile_height", blocks.tile.height);
  object.number("taps", blocks.live_taps);
  object.number("chunk", blocks.chunk);
  object.number("stages", blocks.stages);
  object.number("boxes", blocks.boxes);
  object.number("tiles", blocks.tiles);
  object.number("shared_bytes", blocks.layout.total);
  object.number("blocks", blocks.cost.blocks);
  object.number("resident", blocks.cost.resident);
  object.number("products", blocks.cost.products);
  object.number("shared_read", blocks.cost.shared_bytes);
  object.number("loaded", blocks.cost.loaded_bytes);
  object.number("stored", blocks.cost.stored_bytes);
  object.number("cycles", blocks.cost.cycles);
}

// Amounts that are not zero.
void write_amounts(std::ostream& out, const Work& work) {
  Object object(out);
  work.for_each([&](const char* name, Part, double amount, double) {
    if (amount > 0) {
      object.number(name, amount);
    }
  });
}

void write_instructions(std::ostream& out, const Work& work) {
  Object object(out);
  object.number("copy", work.instructions(Part::copy));
  object.number("product", work.instructions(Part::product));
  object.number("epilogue", work.instructions(Part::epilogue));
  object.number("other", work.instructions(Part::other));
}

void write(std::ostream& out, const ConvolutionShape& shape) {
  Object object(out);
  const auto pair = [&](const char* name, int a, int b) {
    object.key(name) << '[' << a << ", " << b << ']';
  };
  object.number("batch", shape.batch);
  pair("size", shape.height, shape.width);
  write_list(object.key("channels"), shape.channels, [&](int count) { out << count; });
  object.number("out_channels", shape.out_channels);
  pair("kernel", shape.kernel_h, shape.kernel_w);
  object.number("arithmetic", int(shape.arithmetic));
  pair("out_size", shape.out_height, shape.out_width);
  pair("stride", shape.stride_h, shape.stride_w);
  pair("dilation", shape.dilation_h, shape.dilation_w);
  object.number("pool", shape.pool);
}

// --- sums ---

std::string names_of(const ConvolutionShape& shape) {
  std::string text;
  for (int channels : shape.channels) {
    text += (text.empty() ? "" : "+") + std::to_string(channels);
  }
  return text + ">" + std::to_string(shape.out_channels);
}

std::string name_of(const PairShape& shape) {
  const std::string middle = shape.single ? "" : ">" + std::to_string(shape.middle_channels);
  return std::to_string(shape.in_channels) + middle + ">" + std::to_string(shape.out_channels);
}

// Channels of each kind of branch, with their number.
std::string names_of(const std::vector<PairShape>& shapes) {
  std::string text;
  for (size_t i = 0; i < shapes.size();) {
    size_t end = i;
    while (end < shapes.size() && name_of(shapes[end]) == name_of(shapes[i])) {
      end++;
    }
    text += (text.empty() ? "" : ", ") + (end - i > 1 ? std::to_string(end - i) + "x " : "") +
            name_of(shapes[i]);
    i = end;
  }
  return text;
}

// The number of multiplications and additions that contribute to the result.
int64_t operations_of(const ConvolutionShape& shape) {
  // A row or column after the last whole pool is computed in vain.
  const int64_t pixels = checked_product({shape.batch, shape.out_height / shape.pool * shape.pool,
                                          shape.out_width / shape.pool * shape.pool});
  int64_t channels = 0;
  for (int count : shape.channels) {
    channels += count;
  }
  return checked_product({2, pixels, live_taps(shape), channels, shape.out_channels});
}

// The operations of a pair without padding: for the outer taps, the rows and columns in the
// picture.
std::vector<int64_t> operations_of(const PairShape& shape) {
  if (shape.single) {
    return {operations_of(convolutions_of(shape)[0])};
  }
  const auto rows_of = [&](int size) { return size + 2 * std::max(size - shape.dilation, 0); };
  return {checked_product({2, shape.batch, rows_of(shape.height), shape.width, shape.in_channels,
                           shape.middle_channels}),
          checked_product({2, shape.batch, rows_of(shape.width), shape.height,
                           shape.middle_channels, shape.out_channels})};
}

bool is_empty(const ConvolutionShape& shape) {
  return shape.batch == 0 || shape.out_height / shape.pool == 0 ||
         shape.out_width / shape.pool == 0;
}

}  // namespace

Work streamed(const ImageSize& size) {
  Work work;
  work.streamed_vectors =
      double(checked_product({size.batch, size.height, size.width, (size.channels + 7) / 8})) / 32;
  return work;
}

Call::Call(ScalarType dtype, const Integers& gpu, bool allow_tf32)
    : limits_(limits_of(gpu)),
      itemsize_(dtype == ScalarType::Double  ? 8
                : dtype == ScalarType::Float ? 4
                                             : 2),
      arithmetic_(arithmetic_of(itemsize_ > 2, allow_tf32, limits_)) {
  STD_TORCH_CHECK(dtype != ScalarType::Double,
                  "the cuda backend takes float32, float16 and bfloat16, not torch.float64");
}

int64_t Call::image(const ImageSize& size) const {
  return checked_product({size.numel(), itemsize_});
}

void Call::convolution(const std::string& label, ConvolutionShape shape, int64_t more) {
  complete(shape);
  if (is_empty(shape)) {
    return;
  }
  join(label, shape);
  Launch launch = {label, "convolution_kernel", names_of(shape), shape.out_height / shape.pool,
                   shape.out_width / shape.pool};
  launch.bytes = bytes_of(shape) + more;
  launch.operations = operations_of(shape);
  const auto plan = [&](const auto& found) {
    launch.blocks = {found};
    launch.work.add(work_of(found, shape), double(found.cost.blocks));
  };
  if (!shape.prologue && is_stem(shape)) {
    launch.kernel = "stem_kernel";
    plan(plan_stem(shape, limits_));
  } else {
    plan(remembered<plan_convolution>(shape, limits_));
  }
  launch.cycles = launch.blocks[0].cost.cycles;
  launch.rank = launch.blocks[0].cost.rank;
  launch.convolution = shape;
  launches_.push_back(std::move(launch));
}

bool Call::normalized_convolution(const std::string& label, ConvolutionShape shape) {
  complete(shape);
  if (is_empty(shape) || !is_stem(shape)) {
    return false;
  }
  convolution(label, shape);
  launches_.back().bytes -=
      checked_product({shape.batch, shape.height, shape.width, stem_channels, itemsize_ - 1});
  return true;
}

void Call::pairs(const std::string& op, std::vector<PairShape> shapes) {
  for (PairShape& shape : shapes) {
    shape.arithmetic = arithmetic_;
  }
  const PairShape& first = shapes[0];
  if (first.batch == 0 || first.height == 0 || first.width == 0) {
    return;
  }
  const PairsPlan plan = remembered<plan_pairs>(shapes, limits_);
  if (!plan.together) {
    for (const PairShape& shape : shapes) {
      apart(op, shape);
    }
    return;
  }
  Launch launch = {op + (shapes.size() > 1 ? " branches" : " asymmetric"), "pair_kernel",
                   names_of(shapes), first.height, first.width};
  launch.bytes = image({first.batch, first.in_channels, first.height, first.width});
  launch.operations = 0;
  for (size_t i = 0; i < shapes.size(); i++) {
    for (const ConvolutionShape& shape : convolutions_of(shapes[i])) {
      launch.bytes += weight_bytes(shape);
    }
    const int images = shapes[i].ending == Ending::addend ? 2 : 1;
    launch.bytes +=
        images * image({first.batch, shapes[i].out_channels, first.height, first.width});
    for (int64_t operations : operations_of(shapes[i])) {
      launch.operations += operations;
    }
    launch.blocks.push_back(plan.pairs[i]);
    launch.work.add(work_of(plan.pairs[i], shapes[i]), double(plan.pairs[i].cost.blocks));
  }
  launch.cycles = plan.cycles;
  launch.rank = plan.rank;
  launches_.push_back(std::move(launch));
}

void Call::elementwise(const std::string& label, const std::string& kernel, int64_t channels,
                       int64_t height, int64_t width, int64_t bytes, int64_t operations,
                       const Work& work) {
  Launch launch = {label, kernel, std::to_string(channels), height, width, bytes, operations, work};
  const int warps = 32;  // of a multiprocessor, as such kernels use few registers
  launch.cycles = issue_cycles(work.instructions(), warps, limits_);
  launches_.push_back(std::move(launch));
}

std::string Call::answer() const {
  static const char* const names[] = {"half", "tf32", "float32"};
  std::ostringstream out;
  write_list(out, launches_, [&](const Launch& launch) {
    Object object(out);
    object.text("label", launch.label);
    object.text("kernel", launch.kernel);
    object.text("arithmetic", launch.blocks.empty() ? "float32" : names[int(arithmetic_)]);
    object.text("channels", launch.channels);
    object.number("height", launch.height);
    object.number("width", launch.width);
    object.number("bytes", launch.bytes);
    object.number("operations", launch.operations);
    write_amounts(object.key("work"), launch.work);
    write_instructions(object.key("instructions"), launch.work);
    object.number("cycles", launch.cycles);
    object.number("rank", launch.rank);
    write_list(object.key("blocks"), launch.blocks,
               [&](const Plan& blocks) { write(out, blocks); });
    if (launch.convolution) {
      object.key("convolution");
      write(out, *launch.convolution);
    }
  });
  return out.str();
}

void Call::complete(ConvolutionShape& shape) const {
  shape.arithmetic = arithmetic_;
  // Inputs without channels add nothing.
  shape.channels.erase(std::remove(shape.channels.begin(), shape.channels.end(), 0),
                       shape.channels.end());
}

int64_t Call::weight_bytes(const ConvolutionShape& shape) const {
  int64_t channels = 0;
  for (int count : shape.channels) {
    channels += count;
  }
  return checked_product({shape.kernel_h, shape.kernel_w, channels, shape.out_channels, itemsize_});
}

int64_t Call::bytes_of(const ConvolutionShape& shape) const {
  int64_t bytes =
      weight_bytes(shape) + image({shape.batch, shape.out_channels, shape.out_height / shape.pool,
                                   shape.out_width / shape.pool});
  for (int channels : shape.channels) {
    bytes += image({shape.batch, channels, shape.height, shape.width});
  }
  return bytes;
}

// A launch takes a limited number of inputs: those beyond it are joined to one.
void Call::join(const std::string& label, ConvolutionShape& shape) {
  if (shape.channels.size() <= most_sources || shape.prologue) {
    return;
  }
  int joined = 0;
  for (size_t i = most_sources - 1; i < shape.channels.size(); i++) {
    joined += shape.channels[i];
    elementwise(label + " join", "join_kernel", shape.channels[i], shape.height, shape.width,
                2 * image({shape.batch, shape.channels[i], shape.height, shape.width}), 0,
                streamed({shape.batch, shape.channels[i], shape.height, shape.width}));
  }
  shape.channels.resize(most_sources - 1);
  shape.channels.push_back(joined);
}

void Call::apart(const std::string& op, const PairShape& pair) {
  const std::vector<ConvolutionShape> shapes = convolutions_of(pair);
  const std::vector<int64_t> operations = operations_of(pair);
  for (size_t i = 0; i < shapes.size(); i++) {
    const ConvolutionShape& shape = shapes[i];
    const int64_t images = shape.ending == Ending::addend ? 1 : 0;
    convolution(op + " " + std::to_string(shape.kernel_h) + "x" + std::to_string(shape.kernel_w),
                shape,
                images * image({shape.batch, shape.out_channels, shape.height, shape.width}));
    launches_.back().operations = operations[i];
  }
}

}  // namespace fassd::plan
