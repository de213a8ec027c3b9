// Argument checks of the operators: the rules and the words of fassd_kernels/checks.py, for the
// compiled backends. Each throws, and PyTorch turns that into a RuntimeError.

#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "operators.h"

namespace fassd {

enum class Activation { none, relu, prelu };

// Sums and products of sizes, none of them negative. They throw where 64 bits do not hold them:
// what is allocated or stepped over is never less than what the sizes say.
int64_t checked_sum(int64_t a, int64_t b);
int64_t checked_product(std::initializer_list<int64_t> factors);

// Shape of the result, N x C x H x W.
struct ImageSize {
  int64_t batch, channels, height, width;
  std::vector<int64_t> sizes() const { return {batch, channels, height, width}; }
  // Throws where there are more than memory can hold.
  int64_t numel() const;
};

using Kernel = std::pair<int64_t, int64_t>;

std::string shape_name(const Tensor& tensor);
// Throws where a tensor's storage ends before its last element, because it was freed or shrunk
// (`untyped_storage().resize_`).
void check_storage(const std::string& op, const std::string& name, const Tensor& tensor);
const char* dtype_name(ScalarType dtype);
bool is_floating(ScalarType dtype);

// One value stands for both axes, as everywhere in PyTorch.
Integers expand_pair(const char* op, const char* name, const Integers& values);

Activation check_conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& slope, const OptionalTensor& residual,
                          const OptionalTensor& packed, const Integers& stride,
                          const Integers& dilation, const std::string& activation, int64_t pool,
                          ImageSize& size);

Activation check_asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                                 const Tensor& horizontal_weight,
                                 const OptionalTensor& vertical_bias,
                                 const OptionalTensor& horizontal_bias,
                                 const OptionalTensor& vertical_slope,
                                 const OptionalTensor& horizontal_slope,
                                 const OptionalTensors& packed, int64_t dilation,
                                 const std::string& activation, ImageSize& size);

ImageSize check_dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
                     const OptionalTensors& packed, const Integers& dilations);

ImageSize check_aspp(const Tensor& input, const Tensors& weights, const Tensors& biases,
                     const OptionalTensors& packed, const Integers& dilations);

// Layer `layer` of a block (from 1) reads these earlier ones (0 is the input), in this order.
std::vector<int64_t> hardblock_sources(int64_t layer);
// Whether a layer is part of the block's result.
bool is_hardblock_output(int64_t layer, int64_t layers);

ImageSize check_hardblock(const Tensor& input, const Tensors& weights, const Tensors& biases,
                          const OptionalTensors& packed);

void check_pack_weight(const Tensor& weight, const Integers& stride, const Integers& dilation);

// The i-th of the packed weights, or nothing where none were given.
OptionalTensor packed_at(const OptionalTensors& packed, size_t i);

ImageSize check_mda(const Tensor& input, const Tensors& weights, const Tensors& scales,
                    const Tensors& shifts, const Tensors& slopes, const OptionalTensors& packed,
                    int64_t dilation);

Activation check_upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                                  const OptionalTensor& bias, const OptionalTensor& slope,
                                  const OptionalTensors& packed, const std::string& activation,
                                  ImageSize& size);

ImageSize check_upsample(const char* op, const Tensor& input, const Integers& size);

ImageSize check_upsample_argmax(const Tensor& input, const Integers& size);

ImageSize check_normalize(const Tensor& image, const std::vector<double>& mean,
                          const std::vector<double>& std, ScalarType dtype,
                          const std::string& op = "normalize");

// Shape of the result; strides and dilations of both axes.
Activation check_normalize_conv_act(const Tensor& image, const Tensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& slope,
                                    const OptionalTensor& packed, const std::vector<double>& mean,
                                    const std::vector<double>& std, const Integers& stride,
                                    const Integers& dilation, const std::string& activation,
                                    ImageSize& size);

}  // namespace fassd
