// What the CUDA backend launches for an operator's call on a GPU of given limits, which need not be
// there: torch.ops.fassd_kernels_plan.NAME takes the arguments of the operator NAME, `gpu`
// (multiprocessors, bytes of shared memory that one block can have, compute capability times ten)
// and `allow_tf32`. Of tensors only shapes and types are looked at.
// The answer is that of launches.h.

#include <torch/csrc/stable/library.h>

#include "launches.h"

namespace fassd::plan {

using cuda::ConvolutionShape;
using cuda::CoupleShape;
using cuda::PairShape;

namespace {

constexpr int64_t most_positions = int64_t(1) << 30;  // of an axis, as the kernels have it

int position_count(const char* op, int64_t size) {
  STD_TORCH_CHECK(size <= most_positions, op, ": an axis is too large: ", size,
                  "; the cuda backend takes at most ", most_positions);
  return int(size);
}

// Steps and dilations beyond any picture reach nothing all the same.
int limited(int64_t value) {
  return int(value < most_positions ? value : most_positions);
}

ConvolutionShape convolution_on(const ImageSize& image, std::vector<int> channels,
                                const Tensor& weight, int64_t dilation_h = 1,
                                int64_t dilation_w = 1) {
  ConvolutionShape shape;
  shape.batch = image.batch;
  shape.height = shape.out_height = position_count("plan", image.height);
  shape.width = shape.out_width = position_count("plan", image.width);
  shape.channels = std::move(channels);
  shape.out_channels = position_count("plan", weight.size(0));
  shape.kernel_h = int(weight.size(2));
  shape.kernel_w = int(weight.size(3));
  shape.dilation_h = limited(dilation_h);
  shape.dilation_w = limited(dilation_w);
  return shape;
}

std::vector<int> channels_of(const Tensors& images) {
  std::vector<int> channels;
  for (const Tensor& image : images) {
    channels.push_back(position_count("plan", image.size(1)));
  }
  return channels;
}

ImageSize size_of(const Tensor& image) {
  return {image.size(0), image.size(1), image.size(2), image.size(3)};
}

PairShape pair_on(const Tensor& input, const Tensor& first, const Tensor* second,
                  int64_t dilation) {
  PairShape pair;
  pair.batch = input.size(0);
  pair.height = position_count("plan", input.size(2));
  pair.width = position_count("plan", input.size(3));
  pair.in_channels = position_count("plan", input.size(1));
  pair.middle_channels = position_count("plan", first.size(0));
  pair.out_channels = position_count("plan", second ? second->size(0) : first.size(0));
  pair.dilation = limited(dilation);
  pair.single = second == nullptr;
  return pair;
}

}  // namespace

// --- the operators ---

std::string conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& slope, const OptionalTensor& residual,
                     const OptionalTensor& packed, const Integers& stride, const Integers& dilation,
                     const std::string& activation, int64_t pool, const Integers& gpu,
                     bool allow_tf32) {
  const Integers steps = expand_pair("conv_act", "stride", stride);
  const Integers dilations = expand_pair("conv_act", "dilation", dilation);
  ImageSize whole;
  check_conv_act(inputs, weight, bias, slope, residual, packed, steps, dilations, activation, pool,
                 whole);
  Call call(weight.scalar_type(), gpu, allow_tf32);
  ConvolutionShape shape =
      convolution_on(size_of(inputs[0]), channels_of(inputs), weight, dilations[0], dilations[1]);
  shape.stride_h = limited(steps[0]);
  shape.stride_w = limited(steps[1]);
  shape.out_height = int(whole.height);
  shape.out_width = int(whole.width);
  shape.pool = int(pool);
  const int64_t added = residual ? call.image(whole) : 0;
  call.convolution("conv", shape, added);
  return call.answer();
}

std::string asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                            const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                            const OptionalTensor& horizontal_bias,
                            const OptionalTensor& vertical_slope,
                            const OptionalTensor& horizontal_slope, const OptionalTensors& packed,
                            int64_t dilation, const std::string& activation, const Integers& gpu,
                            bool allow_tf32) {
  ImageSize size;
  check_asymmetric_conv(input, vertical_weight, horizontal_weight, vertical_bias, horizontal_bias,
                        vertical_slope, horizontal_slope, packed, dilation, activation, size);
  Call call(input.scalar_type(), gpu, allow_tf32);
  call.pairs("asymmetric", {pair_on(input, vertical_weight, &horizontal_weight, dilation)});
  return call.answer();
}

std::string dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
                 const OptionalTensors& packed, const Integers& dilations, const Integers& gpu,
                 bool allow_tf32) {
  check_dapf(input, weights, biases, packed, dilations);
  Call call(input.scalar_type(), gpu, allow_tf32);
  std::vector<PairShape> branches = {pair_on(input, weights[0], nullptr, 1)};
  for (size_t i = 0; i < dilations.size(); i++) {
    branches.push_back(pair_on(input, weights[2 * i + 1], &weights[2 * i + 2], dilations[i]));
  }
  call.pairs("dapf", branches);
  const std::vector<int> widths(branches.size(), branches[0].out_channels);
  call.convolution("dapf project", convolution_on(size_of(input), widths, weights.back()));
  return call.answer();
}

std::string aspp(const Tensor& input, const Tensors& weights, const Tensors& biases,
                 const OptionalTensors& packed, const Integers& dilations, const Integers& gpu,
                 bool allow_tf32) {
  const ImageSize size = check_aspp(input, weights, biases, packed, dilations);
  Call call(input.scalar_type(), gpu, allow_tf32);
  if (size.numel() == 0) {
    return call.answer();
  }
  const std::vector<int> channels = channels_of({input});
  const int width = position_count("plan", weights[0].size(0));
  call.convolution("aspp 1x1", convolution_on(size_of(input), channels, weights[0]));
  for (size_t i = 0; i < dilations.size(); i++) {
    call.convolution(
        "aspp 3x3 at " + std::to_string(dilations[i]),
        convolution_on(size_of(input), channels, weights[i + 1], dilations[i], dilations[i]));
  }
  const int64_t values = checked_product({size.batch, size.height, size.width, input.size(1)});
  call.elementwise("aspp mean", "mean_kernel", input.size(1), 1, 1, call.image(size_of(input)),
                   values);
  // One pixel a picture; its share of the last convolution is added at every pixel.
  const ImageSize pixel = {size.batch, input.size(1), 1, 1};
  call.convolution("aspp pooled", convolution_on(pixel, channels, weights[weights.size() - 2]));
  call.convolution("aspp share of the means", convolution_on(pixel, {width}, weights.back()));
  call.convolution(
      "aspp fuse",
      convolution_on(size_of(input), std::vector<int>(1 + dilations.size(), width), weights.back()),
      call.image(size));
  return call.answer();
}

std::string hardblock(const Tensor& input, const Tensors& weights, const Tensors& biases,
                      const OptionalTensors& packed, const Integers& gpu, bool allow_tf32) {
  check_hardblock(input, weights, biases, packed);
  Call call(input.scalar_type(), gpu, allow_tf32);
  std::vector<int> widths = channels_of({input});
  for (const Tensor& weight : weights) {
    widths.push_back(position_count("plan", weight.size(0)));
  }
  const auto shape_of = [&](int64_t layer) {
    std::vector<int> channels;
    for (int64_t source : hardblock_sources(layer)) {
      channels.push_back(widths[source]);
    }
    return convolution_on(size_of(input), channels, weights[layer - 1]);
  };
  const int64_t layers = int64_t(weights.size());
  if (input.size(0) == 0 || input.size(2) == 0 || input.size(3) == 0) {
    return call.answer();
  }
  for (int64_t layer = 1; layer <= layers; layer++) {
    const std::string label = "hardblock " + std::to_string(layer);
    const ConvolutionShape first = shape_of(layer);
    if (layer < layers) {
      const ConvolutionShape second = shape_of(layer + 1);
      CoupleShape couple;
      couple.batch = first.batch;
      couple.height = first.height;
      couple.width = first.width;
      couple.channels.assign(second.channels.begin() + 1, second.channels.end());
      couple.odd_channels = first.out_channels;
      couple.even_channels = second.out_channels;
      if (call.couple(label + "+" + std::to_string(layer + 1), couple)) {
        layer++;
        continue;
      }
    }
    // A layer of the result that others read is written a second time, for them.
    const bool copied = layer < layers && is_hardblock_output(layer, layers);
    call.convolution(
        label, first,
        copied ? call.image({first.batch, first.out_channels, first.height, first.width}) : 0);
  }
  return call.answer();
}

std::string mda(const Tensor& input, const Tensors& weights, const Tensors& scales,
                const Tensors& shifts, const Tensors& slopes, const OptionalTensors& packed,
                int64_t dilation, const Integers& gpu, bool allow_tf32) {
  const ImageSize size = check_mda(input, weights, scales, shifts, slopes, packed, dilation);
  Call call(input.scalar_type(), gpu, allow_tf32);
  if (size.numel() == 0) {
    return call.answer();
  }
  const int width = position_count("plan", weights[0].size(0));
  call.convolution("mda reduce", convolution_on(size, channels_of({input}), weights[0]), 0, true);
  call.convolution("mda square", convolution_on(size, {width}, weights[1]));
  PairShape pair = pair_on(input, weights[2], &weights[3], dilation);
  pair.in_channels = width;
  call.pairs("mda", {pair}, 1);
  call.convolution("mda tail", convolution_on(size, {width}, weights[4]), call.image(size));
  return call.answer();
}

std::string upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                             const OptionalTensor& bias, const OptionalTensor& slope,
                             const OptionalTensors& packed, const std::string& activation,
                             const Integers& gpu, bool allow_tf32) {
  ImageSize size;
  check_upsample_conv1x1(low, skip, weight, bias, slope, packed, activation, size);
  Call call(weight.scalar_type(), gpu, allow_tf32);
  if (size.numel() == 0) {
    return call.answer();
  }
  call.convolution("upsample_conv1x1 low",
                   convolution_on(size_of(low[0]), channels_of(low), weight));
  call.convolution("upsample_conv1x1 skip",
                   convolution_on(size_of(skip[0]), channels_of(skip), weight),
                   call.image({size.batch, size.channels, low[0].size(2), low[0].size(3)}));
  return call.answer();
}

// Of a channel and pixel: three blends of three operations.
int64_t blends(const ImageSize& result) {
  return checked_product({9, result.numel()});
}

std::string upsample(const Tensor& input, const Integers& size, const Integers& gpu,
                     bool allow_tf32) {
  const ImageSize result = check_upsample("upsample", input, size);
  Call call(input.scalar_type(), gpu, allow_tf32);
  if (result.numel() > 0) {
    const int64_t bytes = call.image(size_of(input)) + call.image(result);
    call.elementwise("upsample", "upsample_kernel", result.channels, result.height, result.width,
                     bytes, blends(result));
  }
  return call.answer();
}

std::string upsample_argmax(const Tensor& input, const Integers& size, const Integers& gpu,
                            bool allow_tf32) {
  const ImageSize result = check_upsample_argmax(input, size);
  Call call(input.scalar_type(), gpu, allow_tf32);
  if (result.numel() > 0) {
    const cuda::ArgmaxPlan plan = cuda::plan_argmax(
        result.batch, int(result.channels), position_count("plan", input.size(3)),
        position_count("plan", result.height), position_count("plan", result.width));
    const int64_t bytes =
        call.image(size_of(input)) + checked_product({result.batch, result.height, result.width});
    call.elementwise("upsample_argmax",
                     plan.by_rows ? "upsample_argmax_row_kernel" : "upsample_argmax_kernel",
                     result.channels, result.height, result.width, bytes, blends(result));
  }
  return call.answer();
}

void add_normalize(Call& call, const ImageSize& size, ScalarType dtype) {
  const int64_t itemsize = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  call.elementwise("normalize", "normalize_kernel", size.channels, size.height, size.width,
                   checked_product({size.numel(), 1 + itemsize}),
                   checked_product({2, size.numel()}));
}

std::string normalize(const Tensor& image, const std::vector<double>& mean,
                      const std::vector<double>& std, ScalarType dtype, const Integers& gpu,
                      bool allow_tf32) {
  const ImageSize size = check_normalize(image, mean, std, dtype);
  Call call(ScalarType::Float, gpu, allow_tf32);
  if (size.numel() > 0) {
    add_normalize(call, size, dtype);
  }
  return call.answer();
}

std::string normalize_conv_act(const Tensor& image, const Tensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& slope,
                               const OptionalTensor& packed, const std::vector<double>& mean,
                               const std::vector<double>& std, const Integers& stride,
                               const Integers& dilation, const std::string& activation,
                               const Integers& gpu, bool allow_tf32) {
  const char* op = "normalize_conv_act";
  const Integers steps = expand_pair(op, "stride", stride);
  const Integers dilations = expand_pair(op, "dilation", dilation);
  ImageSize size;
  check_normalize_conv_act(image, weight, bias, slope, packed, mean, std, steps, dilations,
                           activation, size);
  Call call(weight.scalar_type(), gpu, allow_tf32);
  const ImageSize picture = {image.size(0), 3, image.size(1), image.size(2)};
  ConvolutionShape shape = convolution_on(picture, {3}, weight, dilations[0], dilations[1]);
  shape.stride_h = limited(steps[0]);
  shape.stride_w = limited(steps[1]);
  shape.out_height = int(size.height);
  shape.out_width = int(size.width);
  if (!call.normalized_convolution("normalize_conv_act", shape) && picture.numel() > 0) {
    add_normalize(call, picture, weight.scalar_type());
    call.convolution("conv", shape);
  }
  return call.answer();
}

std::string pack_weight(const Tensor& weight, const Integers& stride, const Integers& dilation,
                        const Integers& gpu, bool allow_tf32) {
  check_pack_weight(weight, expand_pair("pack_weight", "stride", stride),
                    expand_pair("pack_weight", "dilation", dilation));
  Call call(weight.scalar_type(), gpu, allow_tf32);
  if (weight.numel() > 0) {
    call.elementwise("pack_weight", "pack_kernel", weight.size(1), weight.size(2), weight.size(3),
                     2 * call.image(size_of(weight)), 0);
  }
  return call.answer();
}

// An operator's schema, as that of its plan.
std::string plan_schema(const std::string& schema) {
  const size_t end = schema.rfind(") -> Tensor");
  const bool keywords = schema.find("*,") != std::string::npos;
  return schema.substr(0, end) + (keywords ? ", " : ", *, ") +
         "int[] gpu, bool allow_tf32=False) -> str";
}

}  // namespace fassd::plan

STABLE_TORCH_LIBRARY(fassd_kernels_plan, m) {
#define OPERATOR(name, kind, text) \
  m.def(fassd::plan::plan_schema(#name "(" text ") -> Tensor").c_str());
#include "../../fassd_kernels/schemas.def"
#undef OPERATOR
}

STABLE_TORCH_LIBRARY_IMPL(fassd_kernels_plan, CompositeExplicitAutograd, m) {
  m.impl("conv_act", TORCH_BOX(&fassd::plan::conv_act));
  m.impl("asymmetric_conv", TORCH_BOX(&fassd::plan::asymmetric_conv));
  m.impl("dapf", TORCH_BOX(&fassd::plan::dapf));
  m.impl("aspp", TORCH_BOX(&fassd::plan::aspp));
  m.impl("hardblock", TORCH_BOX(&fassd::plan::hardblock));
  m.impl("pack_weight", TORCH_BOX(&fassd::plan::pack_weight));
  m.impl("mda", TORCH_BOX(&fassd::plan::mda));
  m.impl("upsample_conv1x1", TORCH_BOX(&fassd::plan::upsample_conv1x1));
  m.impl("upsample", TORCH_BOX(&fassd::plan::upsample));
  m.impl("upsample_argmax", TORCH_BOX(&fassd::plan::upsample_argmax));
  m.impl("normalize", TORCH_BOX(&fassd::plan::normalize));
  m.impl("normalize_conv_act", TORCH_BOX(&fassd::plan::normalize_conv_act));
}
