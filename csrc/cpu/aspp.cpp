#include "packing.h"

namespace fassd::cpu {

namespace {

// Mean of every channel of image n, in double.
template <typename T>
std::vector<double> channel_means(const Image& image, int64_t n) {
  std::vector<double> sums(image.channels, 0.0);
  std::vector<T> pixel(image.channels);
  const int64_t size = element_size(image.dtype);
  for (int64_t y = 0; y < image.height; y++) {
    const char* row = static_cast<const char*>(image.data) + image.offset(n, y) * size;
    for (int64_t x = 0; x < image.width; x++) {
      kernels<T>().load(row + x * image.stride_w * size, image.dtype, image.stride_c, pixel.data(),
                        1, image.channels);
      for (int64_t c = 0; c < image.channels; c++) {
        sums[c] += pixel[c];
      }
    }
  }
  for (double& sum : sums) {
    sum /= double(image.height * image.width);
  }
  return sums;
}

// out[o] = sum over c of weight[o][c][0][0] * values[c], plus bias[o].
template <typename T>
std::vector<double> multiply(const Tensor& weight, int64_t first_in,
                             const std::vector<double>& values, const Tensor& bias) {
  const int64_t out = weight.size(0), in = values.size();
  const int64_t size = element_size(weight.scalar_type());
  const char* from = static_cast<const char*>(weight.const_data_ptr());
  const ChannelVector<T> biases(bias);
  std::vector<T> row(in);
  std::vector<double> result(out);
  for (int64_t o = 0; o < out; o++) {
    kernels<T>().load(from + (o * weight.stride(0) + first_in * weight.stride(1)) * size,
                      weight.scalar_type(), weight.stride(1), row.data(), 1, in);
    result[o] = biases.data()[o];
    for (int64_t c = 0; c < in; c++) {
      result[o] += row[c] * values[c];
    }
  }
  return result;
}

// The pooled branch is the same at every pixel of a picture, so what the last 1x1 makes of it is a
// bias of that picture's own. The other branches write their channels of one image in place.
template <typename T>
void run_aspp(const Tensor& input, const Tensors& weights, const Tensors& biases,
              const OptionalTensors& packed, const Integers& dilations, Tensor& out) {
  const Image image = image_of(input);
  const int64_t branches = 1 + dilations.size(), width = weights[0].size(0);
  const Tensor joined =
      empty_image({out.size(0), checked_product({branches, width}), image.height, image.width},
                  dtype_between<T>(input.scalar_type()));
  for (int64_t i = 0; i < branches; i++) {
    const int64_t dilation = i == 0 ? 1 : dilations[i - 1];
    const Weights<T> branch_weights("aspp", weights[i], packed_at(packed, i), {1, 1},
                                    {dilation, dilation});
    const ChannelVector<T> bias(biases[i]);
    Conv<T> conv = branch_weights.convolution(&image, 1, image.height, image.width);
    conv.epilogue.bias = bias.data();
    conv.epilogue.activation = Activation::relu;
    conv.out = channels_of(destination(joined), i * width);
    run(conv, out.size(0));
  }
  const Tensor& fuse = weights.back();
  const Weights<T> fuse_weights(
      "aspp", torch::stable::narrow(const_cast<Tensor&>(fuse), 1, 0, branches * width),
      packed_at(packed, branches + 1));
  const Image concatenation = image_of(joined);
  for (int64_t n = 0; n < out.size(0); n++) {
    std::vector<double> pooled =
        multiply<T>(weights[branches], 0, channel_means<T>(image, n), biases[branches]);
    for (double& value : pooled) {
      value = value < 0 ? 0 : value;
    }
    std::vector<T> bias((out.size(1) / channel_padding + 2) * channel_padding, T(0));
    const std::vector<double> sums = multiply<T>(fuse, branches * width, pooled, biases.back());
    std::copy(sums.begin(), sums.end(), bias.begin());
    Image one = concatenation;
    one.data = static_cast<const char*>(concatenation.data) +
               n * concatenation.stride_n * element_size(concatenation.dtype);
    Conv<T> conv = fuse_weights.convolution(&one, 1, image.height, image.width);
    conv.epilogue.bias = bias.data();
    conv.epilogue.activation = Activation::relu;
    conv.out = destination(out);
    conv.out.data =
        static_cast<char*>(conv.out.data) + n * conv.out.stride_n * element_size(conv.out.dtype);
    run(conv, 1);
  }
}

}  // namespace

Tensor aspp(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const OptionalTensors& packed, const Integers& dilations) {
  const Checked checked = check_aspp(input, weights, biases, packed, dilations);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    run_aspp<decltype(type)>(input, weights, biases, packed, dilations, out);
  });
}

}  // namespace fassd::cpu
