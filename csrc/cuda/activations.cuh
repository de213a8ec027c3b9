// The activations that a convolution on tensor cores does not have in its epilogue.

#pragma once

#include "../checks.h"

namespace fassd::cuda {

__device__ __forceinline__ float up_to_six(float value) {
  value = value < 0.0f ? 0.0f : value;
  return value > 6.0f ? 6.0f : value;
}

// Activates each value; not for activations that are piecewise linear with one kink. The activation
// is tested once for all values.
template <int count>
__device__ __forceinline__ void activate_values(float (&values)[count], Activation activation) {
  const auto all = [&](auto curve) {
#pragma unroll
    for (int k = 0; k < count; k++) {
      values[k] = curve(values[k]);
    }
  };
  switch (activation) {
    case Activation::relu6:
      return all([](float v) { return up_to_six(v); });
    case Activation::hardswish:
      return all([](float v) { return v * (up_to_six(v + 3.0f) * (1.0f / 6.0f)); });
    case Activation::hardsigmoid:
      return all([](float v) { return up_to_six(v + 3.0f) * (1.0f / 6.0f); });
    case Activation::sigmoid:
      return all([](float v) { return 1.0f / (1.0f + expf(-v)); });
    case Activation::silu:
      return all([](float v) { return v / (1.0f + expf(-v)); });
    case Activation::gelu:
      return all([](float v) { return v * (0.5f * erfcf(v * -0.70710678f)); });
    default:  // gelu_tanh; (1 + tanh(u)) / 2 = sigmoid(2 u)
      return all(
          [](float v) { return v / (1.0f + expf(-1.59576912f * v * (1.0f + 0.044715f * v * v))); });
  }
}

}  // namespace fassd::cuda
