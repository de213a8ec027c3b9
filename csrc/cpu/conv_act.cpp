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

// Bands of the convolution in scratch memory; their 2x2 means are what is written.
template <typename T>
void run_pooled(const Conv<T>& conv, Tensor& out) {
  const int64_t width = conv.out_width, channels = conv.out_channels, row = width * channels;
  const Destination to = destination(out);
  parallel_bands<T>(out.size(0), 2 * out.size(2), row, kernels<T>().conv_scratch(conv),
                    [&](T* scratch, int64_t n, int64_t first, int64_t last) {
                      const Band<T> band = {scratch, channels, conv.out_height, width, first, last};
                      Conv<T> part = conv;
                      part.out = band.destination();
                      run_rows(part, n, first, last, scratch + band.values());
                      for (int64_t y = first; y < last; y += 2) {
                        const T* top = scratch + (y - first) * row;
                        char* pooled = static_cast<char*>(to.data) +
                                       to.offset(n, y / 2, 0) * element_size(to.dtype);
                        kernels<T>().pool_rows(top, top + row, channels, out.size(3), channels,
                                               pooled, to.dtype, to.stride_w);
                      }
                    });
}

// The same of the bytes that a band's values are nearest to.
template <typename T>
void run_to_bytes(const Conv<T>& conv, Tensor& out, double scale, int64_t zero) {
  const int64_t width = conv.out_width, channels = conv.out_channels, row = width * channels;
  auto* const to = static_cast<uint8_t*>(out.mutable_data_ptr());
  parallel_bands<T>(out.size(0), conv.out_height, row, kernels<T>().conv_scratch(conv),
                    [&](T* scratch, int64_t n, int64_t first, int64_t last) {
                      const Band<T> band = {scratch, channels, conv.out_height, width, first, last};
                      Conv<T> part = conv;
                      part.out = band.destination();
                      run_rows(part, n, first, last, scratch + band.values());
                      kernels<T>().quantize(scratch, dtype_of<T>, float(scale), int32_t(zero),
                                            to + (n * conv.out_height + first) * row,
                                            (last - first) * row);
                    });
}

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
      run_pooled(call.conv, out);
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
      const ConvAct<T> call(inputs, weight, bias, slope, std::nullopt, packed, checked);
      run_to_bytes<T>(call.conv, out, scale, zero);
    });
  }
  return out;
}

}  // namespace fassd::cpu
