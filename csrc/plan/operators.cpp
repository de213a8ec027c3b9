// The launches of the CUDA backend for an operator's call on a GPU with given limits, which this
// machine need not have: torch.ops.fassd_kernels_plan.NAME takes the arguments of the operator
// NAME, `gpu` (multiprocessors, bytes of shared memory available to one block, compute capability
// times ten) and `allow_tf32`. Only shapes and types of tensors are used. launches.h describes the
// answer. The operator `variants` returns the kernels that are compiled for an arithmetic: rows of
// warps, m_tiles, n_tiles, sliding, splits.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "launches.h"

namespace fassd::plan {

using cuda::ConvolutionShape;
using cuda::Ending;
using cuda::PairShape;
using cuda::Work;

namespace {

constexpr int64_t most_positions = int64_t(1) << 30;  // of an axis, as in the kernels
constexpr int lanes_of_a_warp = 32 * 8;               // channels of pixels that it takes at a time

int position_count(const char* op, int64_t size) {
  STD_TORCH_CHECK(size <= most_positions, op, ": an axis is too large: ", size,
                  "; the cuda backend takes at most ", most_positions);
  return int(size);
}

// Clamps steps and dilations: beyond any picture they still reach nothing.
int limited(int64_t value) {
  return int(value < most_positions ? value : most_positions);
}

ConvolutionShape convolution_on(const ImageSize& image, std::vector<int> channels,
                                const Tensor& weight, int64_t dilation = 1) {
  ConvolutionShape shape;
  shape.batch = image.batch;
  shape.height = shape.out_height = position_count("plan", image.height);
  shape.width = shape.out_width = position_count("plan", image.width);
  shape.channels = std::move(channels);
  shape.out_channels = position_count("plan", weight.size(0));
  shape.kernel_h = int(weight.size(2));
  shape.kernel_w = int(weight.size(3));
  shape.dilation_h = shape.dilation_w = limited(dilation);
  return shape;
}

// The same for an operator that has strides.
ConvolutionShape convolution_on(const ImageSize& image, std::vector<int> channels,
                                const Tensor& weight, const Checked& checked) {
  ConvolutionShape shape = convolution_on(image, std::move(channels), weight);
  shape.stride_h = limited(checked.stride[0]);
  shape.stride_w = limited(checked.stride[1]);
  shape.dilation_h = limited(checked.dilation[0]);
  shape.dilation_w = limited(checked.dilation[1]);
  shape.out_height = int(checked.size.height);
  shape.out_width = int(checked.size.width);
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

// The launch after a convolution whose activation no epilogue has (csrc/cuda/activation.cu).
void add_activation(Call& call, const Checked& checked, const ImageSize& result) {
  if (checked.activation > Activation::prelu && result.numel() > 0) {
    Work work;
    work.activated_vectors = streamed(checked.size).streamed_vectors;
    call.elementwise("activation", "activation_kernel", result.channels, result.height,
                     result.width, call.image(checked.size) + call.image(result),
                     checked.size.numel(), work);
  }
}

// --- the operators ---
// For each operator a function of the call that it fills in, its checked arguments, and the
// arguments. The result, before any pooling, is not empty.

void conv_act(Call& call, const Checked& checked, const Tensors& inputs, const Tensor& weight,
              const OptionalTensor&, const OptionalTensor&, const OptionalTensor& residual,
              const OptionalTensor&, const Integers&, const Integers&, const std::string&,
              int64_t pool) {
  ConvolutionShape shape = convolution_on(size_of(inputs[0]), channels_of(inputs), weight, checked);
  const ImageSize& size = checked.size;
  shape.pool = checked.activation > Activation::prelu ? 1 : int(pool);
  shape.ending = residual ? Ending::residual : Ending::plain;
  const ImageSize result = {size.batch, size.channels, size.height / pool, size.width / pool};
  if (result.numel() > 0) {
    call.convolution("conv", shape, residual ? call.image(size) : 0);
    add_activation(call, checked, result);
  }
}

void asymmetric_conv(Call& call, const Checked&, const Tensor& input, const Tensor& vertical_weight,
                     const Tensor& horizontal_weight, const OptionalTensor&, const OptionalTensor&,
                     const OptionalTensor&, const OptionalTensor&, const OptionalTensors&,
                     int64_t dilation, const std::string&) {
  call.pairs("asymmetric", {pair_on(input, vertical_weight, &horizontal_weight, dilation)});
}

void dapf(Call& call, const Checked&, const Tensor& input, const Tensors& weights, const Tensors&,
          const OptionalTensors&, const Integers& dilations) {
  std::vector<PairShape> branches = {pair_on(input, weights[0], nullptr, 1)};
  for (size_t i = 0; i < dilations.size(); i++) {
    branches.push_back(pair_on(input, weights[2 * i + 1], &weights[2 * i + 2], dilations[i]));
  }
  call.pairs("dapf", branches);
  const std::vector<int> widths(branches.size(), branches[0].out_channels);
  call.convolution("dapf project", convolution_on(size_of(input), widths, weights.back()));
}

void aspp(Call& call, const Checked& checked, const Tensor& input, const Tensors& weights,
          const Tensors&, const OptionalTensors&, const Integers& dilations) {
  const ImageSize& size = checked.size;
  const std::vector<int> channels = channels_of({input});
  const int width = position_count("plan", weights[0].size(0));
  call.convolution("aspp 1x1", convolution_on(size_of(input), channels, weights[0]));
  for (size_t i = 0; i < dilations.size(); i++) {
    call.convolution("aspp 3x3 at " + std::to_string(dilations[i]),
                     convolution_on(size_of(input), channels, weights[i + 1], dilations[i]));
  }
  const int64_t values = checked_product({size.batch, size.height, size.width, input.size(1)});
  Work work;
  work.averaged_vectors = streamed(size_of(input)).streamed_vectors;
  call.elementwise("aspp mean", "mean_kernel", input.size(1), 1, 1, call.image(size_of(input)),
                   values, work);
  // One pixel per picture; its share of the last convolution is added at every pixel.
  const ImageSize pixel = {size.batch, input.size(1), 1, 1};
  call.convolution("aspp pooled", convolution_on(pixel, channels, weights[weights.size() - 2]));
  call.convolution("aspp share of the means", convolution_on(pixel, {width}, weights.back()));
  ConvolutionShape fuse =
      convolution_on(size_of(input), std::vector<int>(1 + dilations.size(), width), weights.back());
  fuse.ending = Ending::residual;
  call.convolution("aspp fuse", fuse, call.image(size));
}

void hardblock(Call& call, const Checked&, const Tensor& input, const Tensors& weights,
               const Tensors&, const OptionalTensors&) {
  std::vector<int> widths = channels_of({input});
  for (const Tensor& weight : weights) {
    widths.push_back(position_count("plan", weight.size(0)));
  }
  const int64_t layers = int64_t(weights.size());
  for (int64_t layer = 1; layer <= layers; layer++) {
    const std::string label = "hardblock " + std::to_string(layer);
    std::vector<int> channels;
    for (int64_t source : hardblock_sources(layer)) {
      channels.push_back(widths[source]);
    }
    ConvolutionShape shape = convolution_on(size_of(input), channels, weights[layer - 1]);
    // A layer of the result that others read is written a second time, for them.
    const bool copied = layer < layers && is_hardblock_output(layer, layers);
    shape.ending = copied ? Ending::copied : Ending::plain;
    call.convolution(
        label, shape,
        copied ? call.image({shape.batch, shape.out_channels, shape.height, shape.width}) : 0);
  }
}

void mda(Call& call, const Checked& checked, const Tensor& input, const Tensors& weights,
         const Tensors&, const Tensors&, const Tensors&, const OptionalTensors&, int64_t dilation) {
  const ImageSize& size = checked.size;
  const int width = position_count("plan", weights[0].size(0));
  ConvolutionShape reduce = convolution_on(size, channels_of({input}), weights[0]);
  reduce.prologue = true;
  call.convolution("mda reduce", reduce);
  call.convolution("mda square", convolution_on(size, {width}, weights[1]));
  PairShape pair = pair_on(input, weights[2], &weights[3], dilation);
  pair.in_channels = width;
  pair.ending = Ending::addend;
  call.pairs("mda", {pair});
  ConvolutionShape tail = convolution_on(size, {width}, weights[4]);
  tail.ending = Ending::residual;
  call.convolution("mda tail", tail, call.image(size));
}

void upsample_conv1x1(Call& call, const Checked& checked, const Tensors& low, const Tensors& skip,
                      const Tensor& weight, const OptionalTensor&, const OptionalTensor&,
                      const OptionalTensors&, const std::string&) {
  const ImageSize& size = checked.size;
  call.convolution("upsample_conv1x1 low",
                   convolution_on(size_of(low[0]), channels_of(low), weight));
  ConvolutionShape large = convolution_on(size_of(skip[0]), channels_of(skip), weight);
  large.ending = Ending::resized;
  call.convolution("upsample_conv1x1 skip", large,
                   call.image({size.batch, size.channels, low[0].size(2), low[0].size(3)}));
  add_activation(call, checked, size);
}

void grouped_conv_act(Call& call, const Checked& checked, const Tensor& input, const Tensor& weight,
                      const OptionalTensor&, const OptionalTensor&, const OptionalTensor& residual,
                      const Integers&, const Integers&, const std::string&, int64_t groups) {
  const ImageSize &size = checked.size, in = size_of(input);
  const cuda::GroupedPlan plan =
      cuda::plan_grouped(size.batch, position_count("plan", in.height),
                         position_count("plan", in.width), position_count("plan", size.height),
                         position_count("plan", size.width), position_count("plan", in.channels),
                         position_count("plan", size.channels), int(weight.size(2)), groups);
  const int64_t products = checked_product({size.batch, size.height, size.width, size.channels,
                                            weight.size(1), weight.size(2), weight.size(3)});
  Work work;
  if (plan.depthwise) {
    // Lanes after the last channel or pixel take part.
    const double vectors =
        double(plan.runs) * double(plan.parts) * cuda::grouped_run * cuda::grouped_vectors / 32;
    work.depthwise_vectors = vectors * double(weight.size(2) * weight.size(3));
    work.depthwise_results = vectors;
  } else {
    work.grouped_vectors = double(products) / lanes_of_a_warp;
  }
  const int64_t images = call.image(in) + (residual ? 2 : 1) * call.image(size);
  call.elementwise("grouped_conv", plan.depthwise ? "depthwise_kernel" : "grouped_kernel",
                   size.channels, size.height, size.width, images + call.image(size_of(weight)),
                   checked_product({2, products}), work);
}

void max_pool(Call& call, const Checked& checked, const Tensor& input, const Integers& kernel,
              const Integers&, const Integers&) {
  const ImageSize& size = checked.size;
  const int64_t compared = checked_product({size.numel(), kernel.front(), kernel.back()});
  Work work;
  work.compared_vectors = double(compared) / lanes_of_a_warp;
  call.elementwise("max_pool", "max_pool_kernel", size.channels, size.height, size.width,
                   call.image(size_of(input)) + call.image(size), compared, work);
}

// The operations of a channel and pixel: three blends of three operations.
int64_t blends(const ImageSize& result) {
  return checked_product({9, result.numel()});
}

void upsample(Call& call, const Checked& checked, const Tensor& input, const Integers&, bool) {
  const ImageSize& size = checked.size;
  Work work;
  work.enlarged_vectors = streamed(size).streamed_vectors;
  call.elementwise("upsample", "upsample_kernel", size.channels, size.height, size.width,
                   call.image(size_of(input)) + call.image(size), blends(size), work);
}

void upsample_argmax(Call& call, const Checked& checked, const Tensor& input, const Integers&,
                     bool align_corners) {
  const ImageSize& size = checked.size;
  const cuda::ArgmaxPlan plan = cuda::plan_argmax(
      size.batch, position_count("plan", input.size(2)), position_count("plan", input.size(3)),
      position_count("plan", size.height), position_count("plan", size.width), align_corners);
  call.elementwise(
      "upsample_argmax", plan.by_cells ? "upsample_argmax_cell_kernel" : "upsample_argmax_kernel",
      size.channels, size.height, size.width,
      call.image(size_of(input)) + checked_product({size.batch, size.height, size.width}),
      blends(size),
      work_of(plan, size.batch, position_count("plan", size.channels),
              position_count("plan", size.height), position_count("plan", size.width)));
}

void upsample_confidence(Call& call, const Checked& checked, const Tensor& input, const Integers&,
                         const std::string&, double, bool) {
  const ImageSize& size = checked.size;
  Work work;
  work.confident_pixels = double(size.batch * size.height * size.width) / 32;
  work.confident_vectors = streamed(size).streamed_vectors;
  call.elementwise(
      "upsample_confidence", "upsample_confidence_kernel", size.channels, size.height, size.width,
      call.image(size_of(input)) + checked_product({2, size.batch, size.height, size.width}),
      blends(size), work);
}

void add_normalize(Call& call, const ImageSize& size, ScalarType dtype) {
  const int64_t itemsize = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  call.elementwise("normalize", "normalize_kernel", size.channels, size.height, size.width,
                   checked_product({size.numel(), 1 + itemsize}),
                   checked_product({2, size.numel()}), streamed(size));
}

void normalize(Call& call, const Checked& checked, const Tensor&, const std::vector<double>&,
               const std::vector<double>&, ScalarType dtype) {
  add_normalize(call, checked.size, dtype);
}

void normalize_conv_act(Call& call, const Checked& checked, const Tensor& image,
                        const Tensor& weight, const OptionalTensor&, const OptionalTensor&,
                        const OptionalTensor&, const std::vector<double>&,
                        const std::vector<double>&, const Integers&, const Integers&,
                        const std::string&) {
  const ImageSize picture = {image.size(0), 3, image.size(1), image.size(2)};
  const ConvolutionShape shape = convolution_on(picture, {3}, weight, checked);
  if (!call.normalized_convolution("normalize_conv_act", shape)) {
    add_normalize(call, picture, checked.dtype);
    call.convolution("conv", shape);
  }
  add_activation(call, checked, checked.size);
}

void pack_weight(Call& call, const Checked&, const Tensor& weight, const Integers&,
                 const Integers&) {
  call.elementwise("pack_weight", "pack_kernel", weight.size(1), weight.size(2), weight.size(3),
                   2 * call.image(size_of(weight)), 0, streamed(size_of(weight)));
}

// --- registration ---

template <typename Check>
struct Planned;

template <typename... Arguments>
struct Planned<Checked(Arguments...)> {
  template <Checked (*check)(Arguments...), void (*plan)(Call&, const Checked&, Arguments...)>
  static std::string answer(Arguments... arguments, const Integers& gpu, bool allow_tf32) {
    const Checked checked = check(arguments...);
    Call call(checked.dtype, gpu, allow_tf32);
    if (checked.size.numel() > 0) {
      plan(call, checked, arguments...);
    }
    return call.answer();
  }
};

// The schema of an operator's plan, from the operator's schema.
std::string plan_schema(const std::string& schema) {
  const size_t end = schema.rfind(") -> Tensor");
  const bool keywords = schema.find("*,") != std::string::npos;
  return schema.substr(0, end) + (keywords ? ", " : ", *, ") +
         "int[] gpu, bool allow_tf32=False) -> str";
}

Tensor variants(int64_t number, const std::string& kernel) {
  STD_TORCH_CHECK(number >= 0 && number <= 2, "arithmetic is ", number, "; expected 0 to 2");
  const auto arithmetic = static_cast<cuda::Arithmetic>(number);
  const bool pairs = kernel == "pair_kernel";
  STD_TORCH_CHECK(pairs || kernel == "convolution_kernel", "kernel is '", kernel,
                  "'; expected convolution_kernel or pair_kernel");
  constexpr int columns = 5;
  std::vector<int> values;
  for (const cuda::Variant& one : pairs ? pairs_of(arithmetic) : variants_of(arithmetic)) {
    values.insert(values.end(),
                  {one.warps, one.m_tiles, one.n_tiles, int(one.sliding), one.splits});
  }
  const int64_t rows = int64_t(values.size()) / columns;
  Tensor result = torch::stable::empty({rows, columns}, ScalarType::Long);
  std::copy(values.begin(), values.end(), static_cast<int64_t*>(result.mutable_data_ptr()));
  return result;
}

}  // namespace

}  // namespace fassd::plan

STABLE_TORCH_LIBRARY(fassd_kernels_plan, m) {
#define OPERATOR(name, kind, text) \
  m.def(fassd::plan::plan_schema(#name "(" text ") -> Tensor").c_str());
#include "../../fassd_kernels/schemas.def"
#undef OPERATOR
  m.def("variants(int arithmetic, str kernel='convolution_kernel') -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fassd_kernels_plan, CompositeExplicitAutograd, m) {
#define OPERATOR(name, kind, text)                                                       \
  m.impl(#name, TORCH_BOX((&fassd::plan::Planned<decltype(fassd::check_##name)>::answer< \
                           &fassd::check_##name, &fassd::plan::name>)));
#include "../../fassd_kernels/schemas.def"
#undef OPERATOR
  m.impl("variants", TORCH_BOX(&fassd::plan::variants));
}
