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
  return std::to_string(shape.in_channels) + ">" + std::to_string(shape.middle_channels) + ">" +
         std::to_string(shape.out_channels);
}

// The size of a kernel, as in "3x1".
std::string kernel_name(const ConvolutionShape& shape) {
  return std::to_string(shape.kernel_h) + "x" + std::to_string(shape.kernel_w);
}

// What a list calls its entries, each kind once with its number.
std::string counted(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0, end; i < names.size(); i = end) {
    for (end = i; end < names.size() && names[end] == names[i];) {
      end++;
    }
    text +=
        (text.empty() ? "" : ", ") + (end - i > 1 ? std::to_string(end - i) + "x " : "") + names[i];
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

void Call::group(const std::string& op, std::vector<ConvolutionShape> shapes,
                 const std::vector<int64_t>& operations, bool same_input) {
  for (ConvolutionShape& shape : shapes) {
    complete(shape);
  }
  if (shapes.empty() || is_empty(shapes[0])) {
    return;
  }
  const GroupPlan plan = remembered<plan_group>(shapes, limits_);
  if (!plan.together) {
    for (size_t i = 0; i < shapes.size(); i++) {
      apart(op, shapes[i], operations[i]);
    }
    return;
  }
  std::vector<std::string> kernels, channels;
  Launch launch = {"", "group_kernel", "", shapes[0].out_height, shapes[0].out_width};
  for (size_t i = 0; i < shapes.size(); i++) {
    kernels.push_back(kernel_name(shapes[i]));
    channels.push_back(names_of(shapes[i]));
    launch.bytes += bytes_of(shapes[i]);
    if (same_input && i > 0) {
      launch.bytes -=
          image({shapes[i].batch, shapes[i].channels[0], shapes[i].height, shapes[i].width});
    }
    launch.operations += operations[i];
    launch.blocks.push_back(plan.plans[i]);
    launch.work.add(work_of(plan.plans[i], shapes[i]), double(plan.plans[i].cost.blocks));
  }
  launch.label = op + " " + counted(kernels);
  launch.channels = counted(channels);
  launch.cycles = plan.cycles;
  launch.rank = plan.rank;
  launches_.push_back(std::move(launch));
}

void Call::pair(const std::string& op, PairShape shape) {
  shape.arithmetic = arithmetic_;
  if (shape.batch == 0 || shape.height == 0 || shape.width == 0) {
    return;
  }
  const PairPlan plan = remembered<plan_asymmetric>(shape, limits_);
  const std::vector<ConvolutionShape> both = convolutions_of(shape);
  const std::vector<int64_t> operations = operations_of(shape);
  const bool added = shape.ending == Ending::addend;
  if (!plan.together) {
    std::vector<ConvolutionShape> first = {both[0]};
    std::vector<int64_t> of_first = {operations[0]};
    if (added) {
      first.insert(first.begin(), addend_of(shape));
      of_first.insert(of_first.begin(), operations_of(first[0]));
    }
    group(op, first, of_first, true);
    apart(op, both[1], operations[1]);
    return;
  }
  if (added) {
    apart(op, addend_of(shape), operations_of(addend_of(shape)));
  }
  Launch launch = {op + " asymmetric", "pair_kernel", name_of(shape), shape.height, shape.width};
  launch.bytes =
      image({shape.batch, shape.in_channels, shape.height, shape.width}) + weight_bytes(both[0]) +
      weight_bytes(both[1]) +
      (added ? 2 : 1) * image({shape.batch, shape.out_channels, shape.height, shape.width});
  launch.operations = operations[0] + operations[1];
  launch.blocks.push_back(plan);
  launch.work.add(work_of(plan, shape), double(plan.cost.blocks));
  launch.cycles = plan.cost.cycles;
  launch.rank = plan.cost.rank;
  launches_.push_back(std::move(launch));
}

void Call::branches(const std::string& op, ConvolutionShape single, std::vector<PairShape> pairs) {
  std::vector<ConvolutionShape> first = {single}, second;
  std::vector<int64_t> of_first = {operations_of(single)}, of_second;
  for (PairShape& pair : pairs) {
    pair.arithmetic = arithmetic_;
    const std::vector<ConvolutionShape> both = convolutions_of(pair);
    const std::vector<int64_t> operations = operations_of(pair);
    first.push_back(both[0]);
    second.push_back(both[1]);
    of_first.push_back(operations[0]);
    of_second.push_back(operations[1]);
  }
  group(op, first, of_first, true);
  group(op, second, of_second, false);
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

void Call::apart(const std::string& op, const ConvolutionShape& shape, int64_t operations) {
  const int64_t images = shape.ending == Ending::addend ? 1 : 0;
  convolution(op + " " + kernel_name(shape), shape,
              images * image({shape.batch, shape.out_channels, shape.height, shape.width}));
  launches_.back().operations = operations;
}

}  // namespace fassd::plan
