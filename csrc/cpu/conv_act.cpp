#include "memory.h"

namespace fassd::cpu {

namespace {

template <typename T>
void run_conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& slope, const OptionalTensor& residual,
                  const Integers& stride, const Integers& dilation, Activation activation,
                  Tensor& out) {
  const std::vector<ImageSource<T>> sources(inputs.begin(), inputs.end());
  std::vector<Image<T>> images;
  for (const ImageSource<T>& source : sources) {
    images.push_back(source.image());
  }
  const PackedWeights<T> weights(weight);
  const ChannelVector<T> biases(bias), slopes(slope);
  std::optional<ImageSource<T>> added;
  Conv<T> conv;
  conv.inputs = images.data();
  conv.input_count = images.size();
  conv.stride_h = stride[0];
  conv.stride_w = stride[1];
  conv.dilation_h = dilation[0];
  conv.dilation_w = dilation[1];
  conv.out_height = out.size(2);
  conv.out_width = out.size(3);
  weights.attach(conv);
  conv.epilogue.bias = biases.data();
  conv.epilogue.activation = activation;
  conv.epilogue.slope = slopes.data();
  if (residual) {
    added.emplace(*residual);
    conv.epilogue.residual = &added->image();
  }
  conv.out = destination(out);
  run(conv, out.size(0));
}

}  // namespace

Tensor conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& slope, const OptionalTensor& residual, const Integers& stride,
                const Integers& dilation, const std::string& activation) {
  const Integers strides = expand_pair("conv_act", "stride", stride);
  const Integers dilations = expand_pair("conv_act", "dilation", dilation);
  ImageSize size;
  const Activation parsed =
      check_conv_act(inputs, weight, bias, slope, residual, strides, dilations, activation, size);
  Tensor out = empty_image(size, inputs[0].scalar_type());
  if (size.numel() > 0) {
    with_arithmetic(inputs[0].scalar_type(), [&](auto type) {
      run_conv_act<decltype(type)>(inputs, weight, bias, slope, residual, strides, dilations,
                                   parsed, out);
    });
  }
  return out;
}

}  // namespace fassd::cpu
