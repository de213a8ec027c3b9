#include "quantized.h"

#include <torch/headeronly/util/Exception.h>

#include <cmath>

#include "packing.h"
#include "upsample.h"

namespace fassd::cpu {

namespace {

// Columns between the taps, at most: the rows of a strip hold all of them.
constexpr int64_t farthest = 512, longest_step = 8;
// Products that a sum has at most: 255 * 128 each, all in 31 bits.
constexpr int64_t most_products = ((int64_t(1) << 31) - 1) / (255 * 128);

std::string input_name(size_t i) {
  return "inputs[" + std::to_string(i) + "]";
}

void check_type(const std::string& op, const std::string& name, const Tensor& tensor,
                ScalarType expected) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, op, ": ", name, " has dtype ",
                  dtype_name(tensor.scalar_type()), "; expected ", dtype_name(expected));
  check_storage(op, name, tensor);
}

void check_rank(const std::string& op, const std::string& name, const Tensor& image) {
  STD_TORCH_CHECK(image.dim() == 4, op, ": ", name, " has shape ", shape_name(image),
                  "; expected four dimensions, N x C x H x W");
}

void check_vector(const std::string& op, const char* name, const Tensor& vector, int64_t channels) {
  STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == channels, op, ": ", name, " has shape ",
                  shape_name(vector), "; expected (", channels, ",), one per output channel");
  check_type(op, name, vector, ScalarType::Float);
}

void check_quantized_weight(const std::string& op, const Tensor& weight, int64_t in_channels,
                            const Integers& stride, const Integers& dilation) {
  check_weight(op, "weight", weight, in_channels, weight, conv_act_kernels);
  check_type(op, "weight", weight, ScalarType::Char);
  const int64_t products = checked_product({weight.size(1), weight.size(2), weight.size(3)});
  STD_TORCH_CHECK(products <= most_products, op, ": weight has ", products,
                  " products per output; expected at most ", most_products,
                  ", whose sum 32 bits hold");
  check_positive(op, "stride", stride);
  check_positive(op, "dilation", dilation);
  STD_TORCH_CHECK(stride[1] <= longest_step && (weight.size(3) == 1 || dilation[1] <= farthest), op,
                  ": stride is ", list_name(stride), " and dilation ", list_name(dilation),
                  "; expected a horizontal stride of at most ", longest_step,
                  " and a horizontal dilation of at most ", farthest);
}

void check_same_size(const std::string& op, const std::string& name, const Tensor& image,
                     const Tensor& first) {
  STD_TORCH_CHECK(image.size(0) == first.size(0) && image.size(2) == first.size(2) &&
                      image.size(3) == first.size(3),
                  op, ": ", name, " has shape ", shape_name(image), ", but inputs[0] has ",
                  shape_name(first), "; batch, height and width must agree");
}

void check_inputs(const std::string& op, const Tensors& inputs, const Integers& zeros) {
  STD_TORCH_CHECK(!inputs.empty(), op, ": inputs is an empty list; expected at least one tensor");
  STD_TORCH_CHECK(zeros.size() == inputs.size(), op, ": zeros has ", zeros.size(),
                  " numbers; expected ", inputs.size(), ", one per input");
  for (size_t i = 0; i < inputs.size(); i++) {
    const std::string name = input_name(i);
    check_rank(op, name, inputs[i]);
    check_type(op, name, inputs[i], ScalarType::Byte);
    check_same_size(op, name, inputs[i], inputs[0]);
    STD_TORCH_CHECK(zeros[i] >= 0 && zeros[i] <= 255, op, ": zeros[", i, "] is ", zeros[i],
                    "; expected a byte, 0 to 255");
  }
}

// Bytes, or what is computed in float32.
void check_bytes_or_floating(const std::string& op, const std::string& what, ScalarType dtype) {
  STD_TORCH_CHECK(dtype == ScalarType::Byte || (is_floating(dtype) && dtype != ScalarType::Double),
                  op, ": ", what, " ", dtype_name(dtype),
                  "; expected torch.uint8, float32, bfloat16 or float16");
}

void check_residual(const std::string& op, const Tensor& residual, const ImageSize& size,
                    double scale, int64_t zero) {
  const ScalarType dtype = residual.scalar_type();
  check_bytes_or_floating(op, "residual has dtype", dtype);
  check_storage(op, "residual", residual);
  STD_TORCH_CHECK(residual.dim() == 4 && residual.size(0) == size.batch &&
                      residual.size(1) == size.channels && residual.size(2) == size.height &&
                      residual.size(3) == size.width,
                  op, ": residual has shape ", shape_name(residual), "; expected (", size.batch,
                  ", ", size.channels, ", ", size.height, ", ", size.width, "), the result's");
  if (dtype == ScalarType::Byte) {
    check_level(op, "residual_", scale, zero);
  }
}

// Bytes with adjacent channels: those of other layouts are copied.
Tensor adjacent(const Tensor& image) {
  return image.size(1) == 1 || image.stride(1) == 1
             ? image
             : torch::stable::contiguous(image, torch::headeronly::MemoryFormat::ChannelsLast);
}

// Images of bytes or floating values with adjacent channels; it owns the copies of others.
class MixedImage {
 public:
  explicit MixedImage(const Tensor& tensor) {
    if (tensor.scalar_type() == ScalarType::Byte) {
      kept_ = adjacent(tensor);
      image_ = image_of(*kept_);
    } else {
      floating_.emplace(tensor);
      image_ = floating_->image();
    }
  }
  const Image& image() const { return image_; }

 private:
  OptionalTensor kept_;
  std::optional<Adjacent<float>> floating_;
  Image image_;
};

struct QuantizedConv {
  std::vector<MixedImage> kept;
  std::vector<Image> images;
  Weights<float> weights;
  ChannelVector<float> factor, bias, slope;
  Image residual;
  Conv<float> conv;

  QuantizedConv(const Tensors& inputs, const Tensor& weight, const Tensor& factor_vector,
                const Tensor& bias_vector, const OptionalTensor& slope_vector, const Tensor& packed,
                const Integers& zeros, const Checked& checked)
      : weights("quantized_conv_act", weight, packed, checked.stride, checked.dilation),
        factor(factor_vector),
        bias(bias_vector),
        slope(slope_vector) {
    for (size_t i = 0; i < inputs.size(); i++) {
      images.push_back(kept.emplace_back(inputs[i]).image());
      images.back().zero = int32_t(zeros[i]);
    }
    conv =
        weights.convolution(images.data(), images.size(), checked.size.height, checked.size.width);
    conv.epilogue.factor = factor.data();
    conv.epilogue.bias = bias.data();
    conv.epilogue.activation = checked.activation;
    conv.epilogue.slope = slope.data();
  }

  void add(const Tensor& added, double scale, int64_t zero) {
    residual = kept.emplace_back(added).image();
    residual.scale = float(scale);
    residual.zero = int32_t(zero);
    conv.epilogue.residual = &residual;
  }
};

// Whether all values, over the scale of the result's bytes, certainly fit 31 bits.
bool is_bounded(const Conv<float>& conv, double scale) {
  const auto& epilogue = conv.epilogue;
  const double most = 255.0 * 128 * double(conv.in_channels * conv.kernel_h * conv.kernel_w);
  const double added = epilogue.residual ? 255 * double(epilogue.residual->scale) : 0;
  bool bounded = true;
  for (int64_t c = 0; c < conv.out_channels; c++) {
    const double value =
        std::abs(double(epilogue.factor[c])) * most + std::abs(double(epilogue.bias[c])) + added;
    const double slope = epilogue.slope ? std::abs(double(epilogue.slope[c])) : 0;
    bounded = bounded && value * (1 + slope) < scale * double(1 << 30);  // false for NaN
  }
  return bounded;
}

}  // namespace

void check_level(const std::string& op, const std::string& of, double scale, int64_t zero) {
  STD_TORCH_CHECK(std::isnormal(float(scale)) && scale > 0, op, ": ", of, "scale is ", scale,
                  "; expected a finite number above 0");
  STD_TORCH_CHECK(zero >= 0 && zero <= 255, op, ": ", of, "zero is ", zero,
                  "; expected a byte, 0 to 255");
}

Destination byte_destination(const Tensor& out, double scale, int64_t zero) {
  Destination to = destination(out);
  to.scale = float(scale);
  to.zero = int32_t(zero);
  return to;
}

Tensor quantize(const Tensor& input, double scale, int64_t zero) {
  const std::string op = "quantize";
  check_rank(op, "input", input);
  STD_TORCH_CHECK(is_floating(input.scalar_type()), op, ": input has dtype ",
                  dtype_name(input.scalar_type()),
                  "; expected float32, float16, bfloat16 or float64");
  check_storage(op, "input", input);
  check_level(op, "", scale, zero);
  const ImageSize size = {input.size(0), input.size(1), input.size(2), input.size(3)};
  Tensor out = empty_image(size, ScalarType::Byte);
  if (size.numel() == 0) {
    return out;
  }
  with_arithmetic(input.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Adjacent<T> source(input);
    const Image& image = source.image();
    const int64_t row = size.width * size.channels, bytes = element_size(image.dtype);
    const bool dense = image.stride_w == size.channels;
    uint8_t* const to = static_cast<uint8_t*>(out.mutable_data_ptr());
    parallel(size.batch * size.height, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; item++) {
        const char* const from = static_cast<const char*>(image.data) +
                                 image.offset(item / size.height, item % size.height) * bytes;
        for (int64_t x = 0; x < (dense ? 1 : size.width); x++) {
          kernels<T>().quantize(from + x * image.stride_w * bytes, image.dtype, float(scale),
                                int32_t(zero), to + item * row + x * size.channels,
                                dense ? row : size.channels);
        }
      }
    });
  });
  return out;
}

Tensor quantized_conv_act(const Tensors& inputs, const Tensor& weight, const Tensor& factor,
                          const Tensor& bias, const OptionalTensor& slope,
                          const OptionalTensor& residual, const Tensor& packed,
                          const Integers& zeros, double residual_scale, int64_t residual_zero,
                          double scale, int64_t zero, ScalarType dtype, const Integers& stride,
                          const Integers& dilation, const std::string& activation, int64_t pool) {
  const std::string op = "quantized_conv_act";
  check_inputs(op, inputs, zeros);
  Checked checked;
  checked.stride = expand_pair(op, "stride", stride);
  checked.dilation = expand_pair(op, "dilation", dilation);
  check_quantized_weight(op, weight, total_channels(inputs), checked.stride, checked.dilation);
  check_vector(op, "factor", factor, weight.size(0));
  check_vector(op, "bias", bias, weight.size(0));
  if (slope) {
    check_vector(op, "slope", *slope, weight.size(0));
  }
  checked.activation = check_activation(op, activation, "slope", slope, weight.size(0), factor);
  check_storage(op, "packed", packed);
  STD_TORCH_CHECK(pool == 1 || pool == 2, op, ": pool is ", pool, "; expected 1 or 2");
  const bool bytes = dtype == ScalarType::Byte;
  check_bytes_or_floating(op, "dtype is", dtype);
  if (bytes) {
    check_level(op, "", scale, zero);
  }
  const ImageSize& size = checked.size = {inputs[0].size(0), weight.size(0),
                                          steps(inputs[0].size(2), checked.stride[0]),
                                          steps(inputs[0].size(3), checked.stride[1])};
  if (residual) {
    check_residual(op, *residual, size, residual_scale, residual_zero);
  }
  const ImageSize pooled = {size.batch, size.channels, size.height / pool, size.width / pool};
  Tensor out = empty_image(pooled, dtype);
  if (pooled.numel() == 0) {
    return out;
  }
  QuantizedConv call(inputs, weight, factor, bias, slope, packed, zeros, checked);
  if (residual) {
    call.add(*residual, residual_scale, residual_zero);
  }
  call.conv.out = byte_destination(out, scale, zero);
  call.conv.epilogue.bounded = bytes && is_bounded(call.conv, scale);
  if (pool == 1) {
    run(call.conv, size.batch);
  } else {
    run_in_bands(call.conv, out, pool);
  }
  return out;
}

Tensor pack_quantized_weight(const Tensor& weight, const Integers& stride,
                             const Integers& dilation) {
  const std::string op = "pack_quantized_weight";
  const Integers steps = expand_pair(op, "stride", stride);
  const Integers distance = expand_pair(op, "dilation", dilation);
  check_quantized_weight(op, weight, weight.dim() == 4 ? weight.size(1) : 1, steps, distance);
  return pack<float>(weight, Method::bytes);
}

Tensor quantized_upsample(const Tensor& input, const Integers& size, bool align_corners) {
  const std::string op = "quantized_upsample";
  check_rank(op, "input", input);
  check_type(op, "input", input, ScalarType::Byte);
  STD_TORCH_CHECK(size.size() == 2 && size[0] >= 1 && size[1] >= 1, op, ": size is ",
                  list_name(size), "; expected (height, width), each at least 1");
  STD_TORCH_CHECK(input.size(2) >= 1 && input.size(3) >= 1, op, ": input has shape ",
                  shape_name(input), "; expected height and width of at least 1");
  const ImageSize result = {input.size(0), input.size(1), size[0], size[1]};
  Tensor out = empty_image(result, ScalarType::Byte);
  if (result.numel() == 0) {
    return out;
  }
  const Tensor source = adjacent(input);
  const Image image = image_of(source);
  const ResizeAxis<float> rows(image.height, result.height, align_corners);
  const ResizeAxis<float> columns(image.width, result.width, align_corners);
  const auto* const from = static_cast<const uint8_t*>(image.data);
  const Kernels<float>& kernel = kernels<float>();
  const int64_t channels = image.channels, row = image.width * channels;
  const bool dense = image.stride_w == channels;
  auto* const to = static_cast<uint8_t*>(out.mutable_data_ptr());
  parallel_items<float>(result.batch * result.height, row, [&](float* scratch, int64_t item) {
    const int64_t n = item / result.height, y = item % result.height;
    const uint8_t* const top = from + image.offset(n, rows.before[y]);
    const uint8_t* const bottom = from + image.offset(n, rows.after[y]);
    for (int64_t x = 0; x < (dense ? 1 : image.width); x++) {
      kernel.blend_bytes(top + x * image.stride_w, bottom + x * image.stride_w,
                         rows.weight_after[y], dense ? row : channels, scratch + x * channels);
    }
    kernel.resize_to_bytes(scratch, columns.before, columns.after, columns.weight_after,
                           result.width, channels, to + item * result.width * channels);
  });
  return out;
}

Tensor quantized_sum(const Tensors& inputs, const Tensor& factors, const Tensor& bias,
                     const OptionalTensor& slope, double scale, int64_t zero,
                     const std::string& activation) {
  const std::string op = "quantized_sum";
  STD_TORCH_CHECK(!inputs.empty(), op, ": inputs is an empty list; expected at least one tensor");
  const Tensor& first = inputs[0];
  for (size_t i = 0; i < inputs.size(); i++) {
    check_rank(op, input_name(i), inputs[i]);
    check_bytes_or_floating(op, input_name(i) + " has dtype", inputs[i].scalar_type());
    check_storage(op, input_name(i), inputs[i]);
    check_same_size(op, input_name(i), inputs[i], first);
    STD_TORCH_CHECK(inputs[i].size(1) == first.size(1), op, ": ", input_name(i), " has ",
                    inputs[i].size(1), " channels, but inputs[0] has ", first.size(1));
  }
  const int64_t channels = first.size(1), count = inputs.size();
  STD_TORCH_CHECK(factors.dim() == 2 && factors.size(0) == count && factors.size(1) == channels, op,
                  ": factors has shape ", shape_name(factors), "; expected (", count, ", ",
                  channels, "), one per input and channel");
  check_type(op, "factors", factors, ScalarType::Float);
  check_vector(op, "bias", bias, channels);
  if (slope) {
    check_vector(op, "slope", *slope, channels);
  }
  check_level(op, "", scale, zero);
  WeightedSum<float> sum;
  sum.activation = check_activation(op, activation, "slope", slope, channels, bias);
  const ImageSize size = {first.size(0), channels, first.size(2), first.size(3)};
  Tensor out = empty_image(size, ScalarType::Byte);
  if (size.numel() == 0) {
    return out;
  }
  const ChannelVector<float> added(bias), slopes(slope);
  sum.pitch = (channels / channel_padding + 1) * channel_padding;
  std::vector<float> padded(sum.pitch * count);
  std::vector<MixedImage> kept;
  std::vector<Image> images;
  for (int64_t i = 0; i < count; i++) {
    kernels<float>().load(
        static_cast<const float*>(factors.const_data_ptr()) + i * factors.stride(0),
        ScalarType::Float, factors.stride(1), padded.data() + i * sum.pitch, 1, channels);
    images.push_back(kept.emplace_back(inputs[i]).image());
  }
  sum.inputs = images.data();
  sum.count = count;
  sum.factors = padded.data();
  sum.bias = added.data();
  sum.slope = slopes.data();
  sum.out = byte_destination(out, scale, zero);
  parallel(size.batch * size.height, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      kernels<float>().weighted_sum(sum, item / size.height, item % size.height);
    }
  });
  return out;
}

}  // namespace fassd::cpu
