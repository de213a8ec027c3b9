#include "checks.h"

#include <torch/headeronly/util/Exception.h>

#include <limits>

namespace fassd {

namespace {

constexpr int64_t max_step = (int64_t(1) << 31) - 1;  // positions of taps stay within 64 bits

const std::vector<Kernel> grouped_conv_kernels = {{1, 1}, {3, 3}, {5, 5}, {7, 7}};

std::string indexed(const char* name, size_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

void check_device(const std::string& op, const std::string& name, const Tensor& tensor,
                  const std::string& other_name, const Tensor& other) {
  STD_TORCH_CHECK(tensor.is_cpu() == other.is_cpu() && tensor.is_cuda() == other.is_cuda() &&
                      tensor.get_device_index() == other.get_device_index(),
                  op, ": ", name, " is on ", place_name(tensor), ", but ", other_name, " is on ",
                  place_name(other), "; all tensors must be on one device");
}

void check_like(const std::string& op, const std::string& name, const Tensor& tensor,
                const std::string& other_name, const Tensor& other) {
  STD_TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), op, ": ", name, " has dtype ",
                  dtype_name(tensor.scalar_type()), ", but ", other_name, " has ",
                  dtype_name(other.scalar_type()), "; all tensors must have one dtype");
  check_device(op, name, tensor, other_name, other);
}

void check_floating(const std::string& op, const std::string& what, ScalarType dtype) {
  STD_TORCH_CHECK(is_floating(dtype), op, ": ", what, " ", dtype_name(dtype),
                  "; expected float32, float16, bfloat16 or float64");
}

void check_image(const std::string& op, const std::string& name, const Tensor& image) {
  STD_TORCH_CHECK(image.dim() == 4, op, ": ", name, " has shape ", shape_name(image),
                  "; expected four dimensions, N x C x H x W");
  check_floating(op, name + " has dtype", image.scalar_type());
  check_storage(op, name, image);
}

void check_images(const std::string& op, const char* name, const Tensors& images) {
  STD_TORCH_CHECK(!images.empty(), op, ": ", name,
                  " is an empty list; expected at least one tensor");
  const Tensor& first = images[0];
  for (size_t i = 0; i < images.size(); i++) {
    check_image(op, indexed(name, i), images[i]);
    check_like(op, indexed(name, i), images[i], indexed(name, 0), first);
    STD_TORCH_CHECK(images[i].size(0) == first.size(0) && images[i].size(2) == first.size(2) &&
                        images[i].size(3) == first.size(3),
                    op, ": ", indexed(name, i), " has shape ", shape_name(images[i]), ", but ",
                    indexed(name, 0), " has ", shape_name(first),
                    "; batch, height and width must agree");
  }
}

void check_vector(const std::string& op, const std::string& name, const OptionalTensor& vector,
                  int64_t channels, const Tensor& like) {
  if (!vector) {
    return;
  }
  STD_TORCH_CHECK(vector->dim() == 1 && vector->size(0) == channels, op, ": ", name, " has shape ",
                  shape_name(*vector), "; expected (", channels, ",), one per output channel");
  check_like(op, name, *vector, "the input", like);
  check_storage(op, name, *vector);
}

const std::vector<std::string> activations = {"none",      "relu",        "prelu",   "relu6",
                                              "hardswish", "hardsigmoid", "sigmoid", "silu",
                                              "gelu",      "gelu_tanh"};

const std::vector<std::string> measures = {"probability", "margin", "entropy"};

// The position of a word in the first `count` known ones.
int check_word(const std::string& op, const char* name, const std::string& word,
               const std::vector<std::string>& known, size_t count) {
  std::string accepted;
  for (size_t i = 0; i < count; i++) {
    if (known[i] == word) {
      return int(i);
    }
    accepted += (i == 0 ? "" : ", ") + known[i];
  }
  STD_TORCH_CHECK(false, op, ": ", name, " is '", word, "'; expected one of ", accepted);
}

// Checks steps and epilogue of a convolution of `image`.
Checked check_convolution(const std::string& op, const char* name, const Tensor& image,
                          int64_t out_channels, const OptionalTensor& bias,
                          const OptionalTensor& slope, const OptionalTensor& residual,
                          const Integers& stride, const Integers& dilation,
                          const std::string& activation) {
  Checked checked;
  checked.dtype = image.scalar_type();
  checked.stride = expand_pair(op, "stride", stride);
  checked.dilation = expand_pair(op, "dilation", dilation);
  check_vector(op, "bias", bias, out_channels, image);
  checked.activation = check_activation(op, activation, "slope", slope, out_channels, image);
  check_positive(op, "stride", checked.stride);
  check_positive(op, "dilation", checked.dilation);
  const ImageSize& size =
      checked.size = {image.size(0), out_channels, steps(image.size(2), checked.stride[0]),
                      steps(image.size(3), checked.stride[1])};
  if (residual) {
    check_like(op, "residual", *residual, name, image);
    check_storage(op, "residual", *residual);
    STD_TORCH_CHECK(residual->dim() == 4 && residual->size(0) == size.batch &&
                        residual->size(1) == size.channels && residual->size(2) == size.height &&
                        residual->size(3) == size.width,
                    op, ": residual has shape ", shape_name(*residual), "; expected (", size.batch,
                    ", ", size.channels, ", ", size.height, ", ", size.width, "), the result's");
  }
  return checked;
}

void check_count(const char* op, const char* name, const Tensors& tensors, size_t expected) {
  STD_TORCH_CHECK(tensors.size() == expected, op, ": ", name, " has ", tensors.size(),
                  " tensors; expected ", expected);
}

// Checks the device of a packed weight; each backend checks its content.
void check_packed(const std::string& op, const std::string& name, const OptionalTensor& packed,
                  const Tensor& like) {
  if (packed) {
    check_device(op, name, *packed, "the weight", like);
    check_storage(op, name, *packed);
  }
}

void check_packed(const std::string& op, const OptionalTensors& packed, size_t expected,
                  const Tensor& like) {
  STD_TORCH_CHECK(!packed || packed->size() == expected, op, ": packed has ", packed->size(),
                  " tensors; expected none or ", expected, ", one per weight");
  for (size_t i = 0; i < (packed ? expected : 0); i++) {
    check_packed(op, indexed("packed", i), (*packed)[i], like);
  }
}

void check_rank(const char* op, const char* name, const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 4, op, ": ", name, " has shape ", shape_name(weight),
                  "; expected four dimensions, O x I x kH x kW");
}

// Branches as wide as the first one, and the 1x1 after `joined` of them, whose weight is the last.
// A 1x3 reads the 3x1 before it; the others read the input.
Checked check_branches(const char* op, const Tensor& input, const Tensors& weights,
                       const Tensors& biases, const OptionalTensors& packed,
                       const Integers& dilations, const std::vector<Kernel>& kernels,
                       int64_t joined) {
  check_image(op, "input", input);
  check_positive(op, "dilations", dilations);
  const size_t last = kernels.size();
  check_count(op, "weights", weights, last + 1);
  check_count(op, "biases", biases, last + 1);
  check_packed(op, packed, last + 1, input);
  check_rank(op, "weights[0]", weights[0]);
  const int64_t width = weights[0].size(0);
  for (size_t i = 0; i <= last; i++) {
    const Kernel kernel = i < last ? kernels[i] : Kernel(1, 1);
    const int64_t in_channels = i == last                ? checked_product({width, joined})
                                : kernel == Kernel(1, 3) ? width
                                                         : input.size(1);
    check_weight(op, indexed("weights", i), weights[i], in_channels, input, {kernel});
    STD_TORCH_CHECK(i == last || weights[i].size(0) == width, op, ": ", indexed("weights", i),
                    " has ", weights[i].size(0), " output channels; expected ", width,
                    ", as weights[0]");
    check_vector(op, indexed("biases", i), biases[i], weights[i].size(0), input);
  }
  return {{input.size(0), weights[last].size(0), input.size(2), input.size(3)},
          input.scalar_type()};
}

Checked check_resize(const char* op, const Tensor& input, const Integers& size) {
  check_image(op, "input", input);
  STD_TORCH_CHECK(size.size() == 2 && size[0] >= 1 && size[1] >= 1, op, ": size is ",
                  list_name(size), "; expected (height, width), each at least 1");
  STD_TORCH_CHECK(input.size(2) >= 1 && input.size(3) >= 1, op, ": input has shape ",
                  shape_name(input), "; expected height and width of at least 1");
  return {{input.size(0), input.size(1), size[0], size[1]}, input.scalar_type()};
}

Checked check_labels(const char* op, const Tensor& input, const Integers& size) {
  const Checked checked = check_resize(op, input, size);
  const int64_t channels = checked.size.channels;
  STD_TORCH_CHECK(channels >= 1 && channels <= max_labels, op, ": input has ", channels,
                  " channels; expected 1 to ", max_labels, ", labels are uint8");
  return checked;
}

void check_picture(const char* op, const Tensor& image, const std::vector<double>& mean,
                   const std::vector<double>& std) {
  STD_TORCH_CHECK(image.dim() == 4 && image.size(3) == 3, op, ": image has shape ",
                  shape_name(image), "; expected N x H x W x 3");
  STD_TORCH_CHECK(image.scalar_type() == ScalarType::Byte, op, ": image has dtype ",
                  dtype_name(image.scalar_type()), "; expected torch.uint8");
  check_storage(op, "image", image);
  STD_TORCH_CHECK(mean.size() == 3, op, ": mean has ", mean.size(), " values; expected 3");
  STD_TORCH_CHECK(std.size() == 3, op, ": std has ", std.size(), " values; expected 3");
  STD_TORCH_CHECK(std::all_of(std.begin(), std.end(), [](double v) { return v != 0; }), op,
                  ": std holds a zero; expected none");
}

}  // namespace

void check_weight(const std::string& op, const std::string& name, const Tensor& weight,
                  int64_t in_channels, const Tensor& like, const std::vector<Kernel>& kernels) {
  STD_TORCH_CHECK(weight.dim() == 4, op, ": ", name, " has shape ", shape_name(weight),
                  "; expected four dimensions, O x I x kH x kW");
  check_like(op, name, weight, "the input", like);
  check_storage(op, name, weight);
  std::string accepted;
  for (const Kernel& kernel : kernels) {
    accepted += (accepted.empty() ? "" : ", ") + std::to_string(kernel.first) + "x" +
                std::to_string(kernel.second);
  }
  STD_TORCH_CHECK(std::find(kernels.begin(), kernels.end(),
                            Kernel(weight.size(2), weight.size(3))) != kernels.end(),
                  op, ": ", name, " has a ", weight.size(2), "x", weight.size(3),
                  " kernel; expected ", accepted);
  STD_TORCH_CHECK(weight.size(1) == in_channels, op, ": ", name, " takes ", weight.size(1),
                  " input channels, but ", in_channels, " come in");
  STD_TORCH_CHECK(weight.size(0) > 0, op, ": ", name, " has no output channels");
  STD_TORCH_CHECK(in_channels > 0, op, ": ", name, " has no input channels");
}

void check_positive(const std::string& op, const char* name, const Integers& values) {
  STD_TORCH_CHECK(
      std::all_of(values.begin(), values.end(), [](int64_t v) { return v >= 1 && v <= max_step; }),
      op, ": ", name, " is ", list_name(values), "; expected at least 1, at most ", max_step);
}

Integers expand_pair(const std::string& op, const char* name, const Integers& values) {
  STD_TORCH_CHECK(values.size() == 1 || values.size() == 2, op, ": ", name, " is ",
                  list_name(values), "; expected one or two integers");
  return {values.front(), values.back()};
}

Activation check_activation(const std::string& op, const std::string& name, const char* slope_name,
                            const OptionalTensor& slope, int64_t channels, const Tensor& like,
                            Activation last) {
  const int found = check_word(op, "activation", name, activations, size_t(last) + 1);
  STD_TORCH_CHECK(slope.has_value() == (name == "prelu"), op, ": activation is '", name, "' and ",
                  slope_name, " is ", slope ? "given" : "missing", "; 'prelu' needs ", slope_name,
                  ", the others take none");
  check_vector(op, slope_name, slope, channels, like);
  return Activation(found);
}

void check_storage(const std::string& op, const std::string& name, const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t end = tensor.storage_offset() + 1;
  bool fits = true;
  for (size_t i = 0; i < sizes.size(); i++) {
    if (sizes[i] == 0) {
      return;
    }
    int64_t step = 0;
    fits = fits && !__builtin_mul_overflow(sizes[i] - 1, strides[i], &step) &&
           !__builtin_add_overflow(end, step, &end);
  }
  int64_t held = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &held));
  STD_TORCH_CHECK(fits && end <= held / int64_t(tensor.element_size()), op, ": ", name,
                  " has shape ", shape_name(tensor), ", but its storage holds ", held,
                  " bytes, and ends before its last element");
}

int64_t total_channels(const Tensors& images) {
  int64_t channels = 0;
  for (const Tensor& image : images) {
    channels = checked_sum(channels, image.size(1));
  }
  return channels;
}

Checked check_conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& slope, const OptionalTensor& residual,
                       const OptionalTensor& packed, const Integers& stride,
                       const Integers& dilation, const std::string& activation, int64_t pool) {
  const std::string op = "conv_act";
  check_images(op, "inputs", inputs);
  check_weight(op, "weight", weight, total_channels(inputs), inputs[0], conv_act_kernels);
  check_packed(op, "packed", packed, weight);
  STD_TORCH_CHECK(pool == 1 || pool == 2, op, ": pool is ", pool, "; expected 1 or 2");
  return check_convolution(op, "inputs[0]", inputs[0], weight.size(0), bias, slope, residual,
                           stride, dilation, activation);
}

Checked check_grouped_conv_act(const Tensor& input, const Tensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& slope,
                               const OptionalTensor& residual, const Integers& stride,
                               const Integers& dilation, const std::string& activation,
                               int64_t groups) {
  const std::string op = "grouped_conv_act";
  check_image(op, "input", input);
  check_rank(op.c_str(), "weight", weight);
  const int64_t channels = input.size(1), out_channels = weight.size(0);
  STD_TORCH_CHECK(groups >= 1 && channels % groups == 0 && out_channels % groups == 0, op,
                  ": groups is ", groups, "; expected a divisor of the input's ", channels,
                  " and the weight's ", out_channels, " channels");
  check_weight(op, "weight", weight, channels / groups, input, grouped_conv_kernels);
  return check_convolution(op, "input", input, out_channels, bias, slope, residual, stride,
                           dilation, activation);
}

Checked check_asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                              const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                              const OptionalTensor& horizontal_bias,
                              const OptionalTensor& vertical_slope,
                              const OptionalTensor& horizontal_slope, const OptionalTensors& packed,
                              int64_t dilation, const std::string& activation) {
  const std::string op = "asymmetric_conv";
  check_image(op, "input", input);
  check_weight(op, "vertical_weight", vertical_weight, input.size(1), input, {{3, 1}});
  const int64_t middle = vertical_weight.size(0);
  check_weight(op, "horizontal_weight", horizontal_weight, middle, input, {{1, 3}});
  const int64_t out_channels = horizontal_weight.size(0);
  check_vector(op, "vertical_bias", vertical_bias, middle, input);
  check_vector(op, "horizontal_bias", horizontal_bias, out_channels, input);
  check_positive(op, "dilation", {dilation});
  check_activation(op, activation, "vertical_slope", vertical_slope, middle, input,
                   Activation::prelu);
  const Activation parsed = check_activation(op, activation, "horizontal_slope", horizontal_slope,
                                             out_channels, input, Activation::prelu);
  check_packed(op, packed, 2, input);
  return {{input.size(0), out_channels, input.size(2), input.size(3)}, input.scalar_type(), parsed};
}

Checked check_dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
                   const OptionalTensors& packed, const Integers& dilations) {
  std::vector<Kernel> kernels = {{1, 1}};
  for (size_t i = 0; i < dilations.size(); i++) {
    kernels.insert(kernels.end(), {{3, 1}, {1, 3}});
  }
  return check_branches("dapf", input, weights, biases, packed, dilations, kernels,
                        1 + dilations.size());
}

Checked check_aspp(const Tensor& input, const Tensors& weights, const Tensors& biases,
                   const OptionalTensors& packed, const Integers& dilations) {
  std::vector<Kernel> kernels(dilations.size() + 2, {3, 3});
  kernels.front() = kernels.back() = {1, 1};
  return check_branches("aspp", input, weights, biases, packed, dilations, kernels, kernels.size());
}

std::vector<int64_t> hardblock_sources(int64_t layer) {
  std::vector<int64_t> sources;
  for (int64_t step = 1; step <= layer && layer % step == 0; step *= 2) {
    sources.push_back(layer - step);
  }
  return sources;
}

bool is_hardblock_output(int64_t layer, int64_t layers) {
  return layer % 2 == 1 || layer == layers;
}

Checked check_hardblock(const Tensor& input, const Tensors& weights, const Tensors& biases,
                        const OptionalTensors& packed) {
  const char* op = "hardblock";
  check_image(op, "input", input);
  STD_TORCH_CHECK(!weights.empty(), op, ": weights is an empty list; expected at least one tensor");
  check_count(op, "biases", biases, weights.size());
  check_packed(op, packed, weights.size(), input);
  std::vector<int64_t> widths = {input.size(1)};
  int64_t channels = 0;
  for (size_t i = 0; i < weights.size(); i++) {
    int64_t in_channels = 0;
    for (int64_t source : hardblock_sources(i + 1)) {
      in_channels = checked_sum(in_channels, widths[source]);
    }
    check_weight(op, indexed("weights", i), weights[i], in_channels, input, {{3, 3}});
    check_vector(op, indexed("biases", i), biases[i], weights[i].size(0), input);
    widths.push_back(weights[i].size(0));
    if (is_hardblock_output(i + 1, weights.size())) {
      channels = checked_sum(channels, widths.back());
    }
  }
  return {{input.size(0), channels, input.size(2), input.size(3)}, input.scalar_type()};
}

Checked check_pack_weight(const Tensor& weight, const Integers& stride, const Integers& dilation) {
  const std::string op = "pack_weight";
  const Integers strides = expand_pair(op, "stride", stride);
  const Integers dilations = expand_pair(op, "dilation", dilation);
  check_floating(op, "weight has dtype", weight.scalar_type());
  check_weight(op, "weight", weight, weight.dim() == 4 ? weight.size(1) : 1, weight,
               conv_act_kernels);
  check_positive(op, "stride", strides);
  check_positive(op, "dilation", dilations);
  return {{weight.size(0), weight.size(1), weight.size(2), weight.size(3)},
          weight.scalar_type(),
          Activation::none,
          strides,
          dilations};
}

OptionalTensor packed_at(const OptionalTensors& packed, size_t i) {
  return packed ? OptionalTensor((*packed)[i]) : OptionalTensor();
}

Checked check_mda(const Tensor& input, const Tensors& weights, const Tensors& scales,
                  const Tensors& shifts, const Tensors& slopes, const OptionalTensors& packed,
                  int64_t dilation) {
  const char* op = "mda";
  static const char* const roles[] = {"reduce", "square", "vertical", "horizontal", "project"};
  static const Kernel kernels[] = {{3, 3}, {3, 3}, {3, 1}, {1, 3}, {1, 1}};
  check_image(op, "input", input);
  check_count(op, "weights", weights, 5);
  check_count(op, "scales", scales, 2);
  check_count(op, "shifts", shifts, 6);
  check_count(op, "slopes", slopes, 6);
  check_packed(op, packed, 5, input);
  check_positive(op, "dilation", {dilation});
  check_rank(op, "weights[0] (reduce)", weights[0]);
  const int64_t channels = input.size(1), width = weights[0].size(0);
  for (size_t i = 0; i < 5; i++) {
    const std::string name = indexed("weights", i) + " (" + roles[i] + ")";
    const int64_t out_channels = i == 4 ? channels : width;
    check_weight(op, name, weights[i], i == 0 ? channels : width, input, {kernels[i]});
    STD_TORCH_CHECK(weights[i].size(0) == out_channels, op, ": ", name, " has ", weights[i].size(0),
                    " output channels; expected ", out_channels);
  }
  for (size_t i = 0; i < 2; i++) {
    check_vector(op, indexed("scales", i), scales[i], i == 0 ? channels : width, input);
  }
  for (size_t i = 0; i < 6; i++) {
    check_vector(op, indexed("shifts", i), shifts[i], i == 0 ? channels : width, input);
    check_vector(op, indexed("slopes", i), slopes[i], i == 0 ? channels : width, input);
  }
  return {{input.size(0), channels, input.size(2), input.size(3)}, input.scalar_type()};
}

Checked check_max_pool(const Tensor& input, const Integers& kernel, const Integers& stride,
                       const Integers& padding) {
  const char* op = "max_pool";
  check_image(op, "input", input);
  STD_TORCH_CHECK(input.size(2) >= 1 && input.size(3) >= 1, op, ": input has shape ",
                  shape_name(input), "; expected height and width of at least 1");
  const Integers kernels = expand_pair(op, "kernel", kernel);
  Checked checked;
  checked.dtype = input.scalar_type();
  checked.stride = expand_pair(op, "stride", stride);
  const Integers paddings = expand_pair(op, "padding", padding);
  check_positive(op, "kernel", kernels);
  check_positive(op, "stride", checked.stride);
  int64_t sides[2];
  for (int axis = 0; axis < 2; axis++) {
    const int64_t side = kernels[axis], around = paddings[axis];
    STD_TORCH_CHECK(around >= 0 && around <= side / 2, op, ": padding is ", list_name(paddings),
                    "; expected at least 0, at most half of kernel, ", list_name(kernels));
    const int64_t room = checked_sum(input.size(2 + axis), 2 * around) - side;
    STD_TORCH_CHECK(room >= 0, op, ": kernel is ", list_name(kernels),
                    "; expected at most the padded input, whose shape is ", shape_name(input));
    sides[axis] = room / checked.stride[axis] + 1;
  }
  checked.size = {input.size(0), input.size(1), sides[0], sides[1]};
  return checked;
}

Checked check_upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& slope,
                               const OptionalTensors& packed, const std::string& activation) {
  const std::string op = "upsample_conv1x1";
  check_images(op, "low", low);
  check_images(op, "skip", skip);
  check_like(op, "skip[0]", skip[0], "low[0]", low[0]);
  STD_TORCH_CHECK(low[0].size(0) == skip[0].size(0), op, ": skip[0] has shape ",
                  shape_name(skip[0]), ", but low[0] has ", shape_name(low[0]),
                  "; the batch must agree");
  STD_TORCH_CHECK(low[0].size(2) >= 1 && low[0].size(3) >= 1, op, ": low[0] has shape ",
                  shape_name(low[0]), "; expected height and width of at least 1");
  check_weight(op, "weight", weight, checked_sum(total_channels(low), total_channels(skip)), low[0],
               {{1, 1}});
  check_vector(op, "bias", bias, weight.size(0), low[0]);
  const Activation parsed =
      check_activation(op, activation, "slope", slope, weight.size(0), low[0]);
  check_packed(op, packed, 2, low[0]);
  return {{skip[0].size(0), weight.size(0), skip[0].size(2), skip[0].size(3)},
          weight.scalar_type(),
          parsed};
}

Checked check_upsample(const Tensor& input, const Integers& size, bool) {
  return check_resize("upsample", input, size);
}

Checked check_upsample_argmax(const Tensor& input, const Integers& size, bool) {
  return check_labels("upsample_argmax", input, size);
}

Checked check_upsample_confidence(const Tensor& input, const Integers& size,
                                  const std::string& measure, double temperature, bool) {
  const char* op = "upsample_confidence";
  Checked checked = check_labels(op, input, size);
  checked.measure = Measure(check_word(op, "measure", measure, measures, measures.size()));
  STD_TORCH_CHECK(temperature > 0 && temperature < std::numeric_limits<double>::infinity(), op,
                  ": temperature is ", temperature, "; expected a finite number above 0");
  return checked;
}

Checked check_normalize(const Tensor& image, const std::vector<double>& mean,
                        const std::vector<double>& std, ScalarType dtype) {
  check_picture("normalize", image, mean, std);
  check_floating("normalize", "dtype is", dtype);
  return {{image.size(0), 3, image.size(1), image.size(2)}, ScalarType::Float};
}

Checked check_normalize_conv_act(const Tensor& image, const Tensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& slope,
                                 const OptionalTensor& packed, const std::vector<double>& mean,
                                 const std::vector<double>& std, const Integers& stride,
                                 const Integers& dilation, const std::string& activation) {
  const char* op = "normalize_conv_act";
  Checked checked;
  checked.stride = expand_pair(op, "stride", stride);
  checked.dilation = expand_pair(op, "dilation", dilation);
  check_picture(op, image, mean, std);
  // The picture has no floating type: the weight's is that of the call.
  checked.dtype = weight.scalar_type();
  check_weight(op, "weight", weight, 3, weight, conv_act_kernels);
  check_floating(op, "weight has dtype", checked.dtype);
  STD_TORCH_CHECK(weight.device() == image.device(), op,
                  ": weight is on another device than image");
  check_packed(op, "packed", packed, weight);
  const int64_t out_channels = weight.size(0);
  check_vector(op, "bias", bias, out_channels, weight);
  checked.activation = check_activation(op, activation, "slope", slope, out_channels, weight);
  check_positive(op, "stride", checked.stride);
  check_positive(op, "dilation", checked.dilation);
  checked.size = {image.size(0), out_channels, steps(image.size(1), checked.stride[0]),
                  steps(image.size(2), checked.stride[1])};
  return checked;
}

}  // namespace fassd
