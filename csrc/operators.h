// The operators as C++ functions, one namespace per device. Meaning, shapes and errors are those of
// fassd_kernels/reference; the schemas are in fassd_kernels/schemas.def.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fassd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using OptionalTensors = std::optional<Tensors>;
using Integers = std::vector<int64_t>;

namespace cpu {

Tensor conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& slope, const OptionalTensor& residual,
                const OptionalTensor& packed, const Integers& stride, const Integers& dilation,
                const std::string& activation, int64_t pool);

Tensor asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                       const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                       const OptionalTensor& horizontal_bias, const OptionalTensor& vertical_slope,
                       const OptionalTensor& horizontal_slope, const OptionalTensors& packed,
                       int64_t dilation, const std::string& activation);

Tensor dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const OptionalTensors& packed, const Integers& dilations);

Tensor aspp(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const OptionalTensors& packed, const Integers& dilations);

Tensor hardblock(const Tensor& input, const Tensors& weights, const Tensors& biases,
                 const OptionalTensors& packed);

Tensor mda(const Tensor& input, const Tensors& weights, const Tensors& scales,
           const Tensors& shifts, const Tensors& slopes, const OptionalTensors& packed,
           int64_t dilation);

Tensor upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& slope,
                        const OptionalTensors& packed, const std::string& activation);

Tensor pack_weight(const Tensor& weight, const Integers& stride, const Integers& dilation);

Tensor upsample(const Tensor& input, const Integers& size);

Tensor upsample_argmax(const Tensor& input, const Integers& size);

Tensor normalize(const Tensor& image, const std::vector<double>& mean,
                 const std::vector<double>& std, ScalarType dtype);

Tensor normalize_conv_act(const Tensor& image, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& slope, const OptionalTensor& packed,
                          const std::vector<double>& mean, const std::vector<double>& std,
                          const Integers& stride, const Integers& dilation,
                          const std::string& activation);

}  // namespace cpu

namespace cuda {

// As those above, on images whose pixels may be padded to whole vectors. `allow_tf32` lets products
// of float32 round to TF32.

Tensor conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& slope, const OptionalTensor& residual,
                const OptionalTensor& packed, const Integers& stride, const Integers& dilation,
                const std::string& activation, int64_t pool, bool allow_tf32);

Tensor asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                       const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                       const OptionalTensor& horizontal_bias, const OptionalTensor& vertical_slope,
                       const OptionalTensor& horizontal_slope, const OptionalTensors& packed,
                       int64_t dilation, const std::string& activation, bool allow_tf32);

Tensor dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const OptionalTensors& packed, const Integers& dilations, bool allow_tf32);

Tensor aspp(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const OptionalTensors& packed, const Integers& dilations, bool allow_tf32);

Tensor hardblock(const Tensor& input, const Tensors& weights, const Tensors& biases,
                 const OptionalTensors& packed, bool allow_tf32);

Tensor mda(const Tensor& input, const Tensors& weights, const Tensors& scales,
           const Tensors& shifts, const Tensors& slopes, const OptionalTensors& packed,
           int64_t dilation, bool allow_tf32);

Tensor upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& slope,
                        const OptionalTensors& packed, const std::string& activation,
                        bool allow_tf32);

Tensor pack_weight(const Tensor& weight, const Integers& stride, const Integers& dilation);

Tensor upsample(const Tensor& input, const Integers& size);

Tensor upsample_argmax(const Tensor& input, const Integers& size);

Tensor normalize(const Tensor& image, const std::vector<double>& mean,
                 const std::vector<double>& std, ScalarType dtype);

Tensor normalize_conv_act(const Tensor& image, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& slope, const OptionalTensor& packed,
                          const std::vector<double>& mean, const std::vector<double>& std,
                          const Integers& stride, const Integers& dilation,
                          const std::string& activation, bool allow_tf32);

}  // namespace cuda

}  // namespace fassd
