// Argument checks of the operators: the rules and the words of fassd_kernels/checks.py, for the
// compiled backends. Each throws, and PyTorch turns that into a RuntimeError.

#pragma once

#include <string>
#include <utility>
#include <vector>

#include "operators.h"

namespace fassd {

enum class Activation { none, relu, prelu };

// Shape of the result, N x C x H x W.
struct ImageSize {
  int64_t batch, channels, height, width;
  std::vector<int64_t> sizes() const { return {batch, channels, height, width}; }
  int64_t numel() const { return batch * channels * height * width; }
};

using Kernel = std::pair<int64_t, int64_t>;

std::string shape_name(const Tensor& tensor);
const char* dtype_name(ScalarType dtype);
bool is_floating(ScalarType dtype);

// One value stands for both axes, as everywhere in PyTorch.
Integers expand_pair(const char* op, const char* name, const Integers& values);

Activation check_conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& slope, const OptionalTensor& residual,
                          const Integers& stride, const Integers& dilation,
                          const std::string& activation, ImageSize& size);

Activation check_asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                                 const Tensor& horizontal_weight,
                                 const OptionalTensor& vertical_bias,
                                 const OptionalTensor& horizontal_bias,
                                 const OptionalTensor& vertical_slope,
                                 const OptionalTensor& horizontal_slope, int64_t dilation,
                                 const std::string& activation, ImageSize& size);

ImageSize check_dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
                     const Integers& dilations);

ImageSize check_mda(const Tensor& input, const Tensors& weights, const Tensors& scales,
                    const Tensors& shifts, const Tensors& slopes, int64_t dilation);

Activation check_upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                                  const OptionalTensor& bias, const OptionalTensor& slope,
                                  const std::string& activation, ImageSize& size);

ImageSize check_upsample(const char* op, const Tensor& input, const Integers& size);

ImageSize check_upsample_argmax(const Tensor& input, const Integers& size);

ImageSize check_normalize(const Tensor& image, const std::vector<double>& mean,
                          const std::vector<double>& std, ScalarType dtype);

}  // namespace fassd
