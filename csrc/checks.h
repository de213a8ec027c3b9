// Argument checks of the operators: the rules and messages of fassd_kernels/checks.py, for the
// compiled backends. They throw, and PyTorch turns that into a RuntimeError.

#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "operators.h"
#include "sizes.h"

namespace fassd {

// In the order of the names in checks.cpp. Those up to prelu are piecewise linear, with one kink at
// zero, and all operators with an activation have them.
enum class Activation {
  none,
  relu,
  prelu,
  relu6,
  hardswish,
  hardsigmoid,
  sigmoid,
  silu,
  gelu,
  gelu_tanh
};

// Measures of upsample_confidence, in the order of the names in checks.cpp.
enum class Measure { probability, margin, entropy };

constexpr int64_t max_labels = 256;  // labels are uint8

using Kernel = std::pair<int64_t, int64_t>;

// Throws if a tensor's storage ends before its last element, because it was freed or shrunk
// (`untyped_storage().resize_`).
void check_storage(const std::string& op, const std::string& name, const Tensor& tensor);

// The checked arguments of a call.
struct Checked {
  ImageSize size;    // of the result, before pooling
  ScalarType dtype;  // of the images and weights; float32 where there are none
  Activation activation = Activation::none;
  Integers stride = {1, 1}, dilation = {1, 1};  // of both axes
  Measure measure = Measure::probability;
};

// Kernels of conv_act's weights.
inline const std::vector<Kernel> conv_act_kernels = {{3, 3}, {3, 1}, {1, 3}, {1, 1}};

// Parts of the checks of several operators. An activation is known, and not after `last`; PReLU,
// and only PReLU, has a slope per channel. One value of a pair stands for both axes, as everywhere
// in PyTorch.
void check_weight(const std::string& op, const std::string& name, const Tensor& weight,
                  int64_t in_channels, const Tensor& like, const std::vector<Kernel>& kernels);
void check_positive(const std::string& op, const char* name, const Integers& values);
Activation check_activation(const std::string& op, const std::string& name, const char* slope_name,
                            const OptionalTensor& slope, int64_t channels, const Tensor& like,
                            Activation last = Activation::gelu_tanh);
Integers expand_pair(const std::string& op, const char* name, const Integers& values);

// Results along an axis.
inline int64_t steps(int64_t size, int64_t stride) {
  return size / stride + (size % stride != 0);
}

// The check of each operator: a function of its arguments. For a weight to be packed, the size is
// the weight's.
#define OPERATOR(name, kind, text) Signature<Checked, arguments::name> check_##name;
#include "../fassd_kernels/schemas.def"
#undef OPERATOR

// The factor of the logits at a temperature, within the range of a float.
inline double sharpness(double temperature) {
  return std::clamp(1 / temperature, 1e-30, 1e30);
}

// Layer `layer` of a HarDBlock (from 1) reads these earlier ones (0 is the input), in this order.
std::vector<int64_t> hardblock_sources(int64_t layer);
// Returns true if a layer is part of the block's result.
bool is_hardblock_output(int64_t layer, int64_t layers);

int64_t total_channels(const Tensors& images);

// The i-th of the packed weights, or nothing if none were given.
OptionalTensor packed_at(const OptionalTensors& packed, size_t i);

}  // namespace fassd
