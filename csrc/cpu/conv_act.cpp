#include "packing.h"
#include "quantized.h"

namespace fassd::cpu {

namespace {

template <typename T>
struct ConvAct {
  std::vector<Image> images;
  Weights<T> weights;
  ChannelVector<T> bias, slope;
  std::optional<Adjacent<T>> residual;
  Conv<T> conv;

  ConvAct(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias_vector,
          const OptionalTensor& slope_vector, const OptionalTensor& added,
          const OptionalTensor& packed, const Checked& checked)
      : images(images_of(inputs)),
        weights("conv_act", weight, packed, checked.stride, checked.dilation),
        bias(bias_vector),
        slope(slope_vector) {
    conv =
        weights.convolution(images.data(), images.size(), checked.size.height, checked.size.width);
    conv.epilogue.bias = bias.data();
    conv.epilogue.activation = checked.activation;
    conv.epilogue.slope = slope.data();
    if (added) {
      residual.emplace(*added);
      conv.epilogue.residual = &residual->image();
    }
  }
};

}  // namespace

Tensor conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& slope, const OptionalTensor& residual,
                const OptionalTensor& packed, const Integers& stride, const Integers& dilation,
                const std::string& activation, int64_t pool) {
  const Checked checked = check_conv_act(inputs, weight, bias, slope, residual, packed, stride,
                                         dilation, activation, pool);
  const ImageSize& size = checked.size;
  const ImageSize pooled = {size.batch, size.channels, size.height / pool, size.width / pool};
  return result_of(pooled, checked.dtype, [&](auto type, Tensor& out) {
    ConvAct<decltype(type)> call(inputs, weight, bias, slope, residual, packed, checked);
    call.conv.out = destination(out);
    if (pool == 1) {
      run(call.conv, size.batch);
    } else {
      run_in_bands(call.conv, out, pool);
    }
  });
}

Tensor conv_act_quantized(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& slope, const OptionalTensor& packed, double scale,
                          int64_t zero, const Integers& stride, const Integers& dilation,
                          const std::string& activation) {
  const Checked checked = check_conv_act(inputs, weight, bias, slope, std::nullopt, packed, stride,
                                         dilation, activation, 1);
  check_level("conv_act_quantized", "", scale, zero);
  Tensor out = empty_image(checked.size, ScalarType::Byte);
  if (checked.size.numel() > 0) {
    with_arithmetic(checked.dtype, [&](auto type) {
      using T = decltype(type);
      ConvAct<T> call(inputs, weight, bias, slope, std::nullopt, packed, checked);
      call.conv.out = byte_destination(out, scale, zero);
      run_in_bands(call.conv, out, 1);
    });
  }
  return out;
}

}  // namespace fassd::cpu
