// Batch norm in training mode with the activation behind it, and its gradient: two passes each,
// where PyTorch's operators make three and keep another copy of the image.

#pragma once

#include <tuple>

#include "../schema.h"

namespace fassd::cpu {

// Images are N x C x H x W, dense in channels_last or in NCHW; vectors have C values of any
// floating dtype.
//
// Returns the image, laid out as the input, and in float32 (float64 for float64) 3 x C statistics:
// mean, 1 / sqrt(variance + eps), and the variance without bias, as running statistics take it.
std::tuple<Tensor, Tensor> batch_norm_act(const Tensor& input, const OptionalTensor& weight,
                                          const OptionalTensor& bias, const OptionalTensor& slope,
                                          double eps, const std::string& activation);

// Returns the gradient of the input, and 3 x C those of weight, bias and slope, in the type of the
// statistics. `gradient` is laid out as the input.
std::tuple<Tensor, Tensor> batch_norm_act_backward(const Tensor& gradient, const Tensor& input,
                                                   const Tensor& statistics,
                                                   const OptionalTensor& weight,
                                                   const OptionalTensor& bias,
                                                   const OptionalTensor& slope,
                                                   const std::string& activation);

}  // namespace fassd::cpu
