// Operators on quantised images, uint8, with values scale * (byte - zero); what they compute is in
// fassd_kernels/reference/quantized.py.

#pragma once

#include "memory.h"

namespace fassd::cpu {

Tensor quantize(const Tensor& input, double scale, int64_t zero);

// `packed`: what `pack_quantized_weight` gave for the weight, stride and dilation, or empty.
Tensor quantized_conv_act(const Tensors& inputs, const Tensor& weight, const Tensor& factor,
                          const Tensor& bias, const OptionalTensor& slope,
                          const OptionalTensor& residual, const Tensor& packed,
                          const Integers& zeros, double residual_scale, int64_t residual_zero,
                          double scale, int64_t zero, ScalarType dtype, const Integers& stride,
                          const Integers& dilation, const std::string& activation, int64_t pool);

Tensor pack_quantized_weight(const Tensor& weight, const Integers& stride,
                             const Integers& dilation);

Tensor quantized_upsample(const Tensor& input, const Integers& size, bool align_corners);

// `quantize` of `conv_act`, of which rows stay in the cache in between.
Tensor conv_act_quantized(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& slope, const OptionalTensor& packed, double scale,
                          int64_t zero, const Integers& stride, const Integers& dilation,
                          const std::string& activation);

// Throws unless a scale and a zero point are those of bytes; `of` is the prefix of their names.
void check_level(const std::string& op, const std::string& of, double scale, int64_t zero);

// A result that may be of bytes, with their scale and zero point.
Destination byte_destination(const Tensor& out, double scale, int64_t zero);

Tensor quantized_sum(const Tensors& inputs, const Tensor& factors, const Tensor& bias,
                     const OptionalTensor& slope, double scale, int64_t zero,
                     const std::string& activation);

}  // namespace fassd::cpu
