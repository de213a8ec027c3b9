#include "packing.h"

namespace fassd::cpu {

namespace {

// The weights of a depthwise convolution as [tap][channel]: in place where they lie so.
template <typename T>
class TapWeights {
 public:
  explicit TapWeights(const Tensor& weight) {
    const int64_t channels = weight.size(0), width = weight.size(3);
    const int64_t taps = weight.size(2) * width;
    const bool adjacent = weight.stride(0) == 1 && weight.stride(3) == channels &&
                          weight.stride(2) == width * channels;
    if (adjacent && weight.scalar_type() == dtype_of<T>) {
      data_ = static_cast<const T*>(weight.const_data_ptr());
      return;
    }
    copy_.emplace(checked_product({taps, channels}));
    data_ = copy_->data();
    const char* const from = static_cast<const char*>(weight.const_data_ptr());
    const int64_t size = element_size(weight.scalar_type());
    for (int64_t tap = 0; tap < taps; tap++) {
      const int64_t at = tap / width * weight.stride(2) + tap % width * weight.stride(3);
      kernels<T>().load(from + at * size, weight.scalar_type(), weight.stride(0),
                        copy_->data() + tap * channels, 1, channels);
    }
  }
  TapWeights(const TapWeights&) = delete;
  const T* data() const { return data_; }

 private:
  const T* data_;
  std::optional<Buffer<T>> copy_;
};

template <typename T>
void run_depthwise(Conv<T> conv, const Tensor& input, const Tensor& weight,
                   const Checked& checked) {
  const Adjacent<T> image(input);
  const TapWeights<T> weights(weight);
  conv.inputs = &image.image();
  conv.input_count = 1;
  conv.in_channels = conv.out_channels = weight.size(0);
  conv.kernel_h = weight.size(2);
  conv.kernel_w = weight.size(3);
  conv.stride_h = checked.stride[0];
  conv.stride_w = checked.stride[1];
  conv.dilation_h = checked.dilation[0];
  conv.dilation_w = checked.dilation[1];
  conv.out_height = checked.size.height;
  conv.out_width = checked.size.width;
  conv.weights = weights.data();
  const int64_t bands = (conv.out_height + depthwise_rows - 1) / depthwise_rows;
  parallel(checked_product({checked.size.batch, bands}), [&](int64_t begin, int64_t end) {
    for (int64_t band = begin; band < end; band++) {
      const int64_t first = band % bands * depthwise_rows;
      const int64_t last = std::min(first + depthwise_rows, conv.out_height);
      kernels<T>().depthwise(conv, band / bands, first, last);
    }
  });
}

// Group after group, each a convolution of some channels to others.
template <typename T>
void run_groups(const Epilogue<T>& epilogue, const Destination& out, const Tensor& input,
                const Tensor& weight, int64_t groups, const Checked& checked) {
  const Image image = image_of(input);
  const int64_t in = weight.size(1), channels = weight.size(0) / groups;
  Tensor all = weight;
  for (int64_t group = 0; group < groups; group++) {
    const int64_t first = group * channels;
    const Weights<T> weights("grouped_conv_act", torch::stable::narrow(all, 0, first, channels),
                             std::nullopt, checked.stride, checked.dilation);
    const Image from = channels_of(image, group * in, in);
    Conv<T> conv = weights.convolution(&from, 1, checked.size.height, checked.size.width);
    conv.epilogue = epilogue;
    conv.epilogue.bias += epilogue.bias ? first : 0;
    conv.epilogue.slope += epilogue.slope ? first : 0;
    Image residual;
    if (epilogue.residual) {
      residual = channels_of(*epilogue.residual, first, channels);
      conv.epilogue.residual = &residual;
    }
    conv.out = channels_of(out, first);
    run(conv, checked.size.batch);
  }
}

}  // namespace

Tensor grouped_conv_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& slope, const OptionalTensor& residual,
                        const Integers& stride, const Integers& dilation,
                        const std::string& activation, int64_t groups) {
  const Checked checked = check_grouped_conv_act(input, weight, bias, slope, residual, stride,
                                                 dilation, activation, groups);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    using T = decltype(type);
    const ChannelVector<T> biases(bias), slopes(slope);
    std::optional<Adjacent<T>> added;
    Conv<T> conv;
    conv.epilogue.bias = biases.data();
    conv.epilogue.slope = slopes.data();
    conv.epilogue.activation = checked.activation;
    if (residual) {
      added.emplace(*residual);
      conv.epilogue.residual = &added->image();
    }
    conv.out = destination(out);
    if (groups == input.size(1) && groups == weight.size(0)) {
      run_depthwise(conv, input, weight, checked);
    } else {
      run_groups(conv.epilogue, conv.out, input, weight, groups, checked);
    }
  });
}

}  // namespace fassd::cpu
