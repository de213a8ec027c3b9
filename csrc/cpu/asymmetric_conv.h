// The 3x1 -> 1x3 pair on a band of rows, for the operators that contain it.

#pragma once

#include "packing.h"

namespace fassd::cpu {

// Both convolutions, ready to run on bands of rows of one input. The 1x3 needs only its own row, so
// a band's intermediate stays in scratch memory and nothing is computed twice.
template <typename T>
class AsymmetricPair {
 public:
  AsymmetricPair(const char* op, const Image& input, const Tensor& vertical_weight,
                 const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                 const OptionalTensor& horizontal_bias, const OptionalTensor& vertical_slope,
                 const OptionalTensor& horizontal_slope, const OptionalTensor& vertical_packed,
                 const OptionalTensor& horizontal_packed, int64_t dilation, Activation activation)
      : vertical_weights_(op, vertical_weight, vertical_packed, {1, 1}, {dilation, 1}),
        horizontal_weights_(op, horizontal_weight, horizontal_packed, {1, 1}, {1, dilation}),
        vertical_bias_(vertical_bias),
        horizontal_bias_(horizontal_bias),
        vertical_slope_(vertical_slope),
        horizontal_slope_(horizontal_slope),
        input_(input),
        middle_(vertical_weight.size(0)),
        dtype_(dtype_between<T>(vertical_weight.scalar_type())) {
    const Image intermediate = rows(nullptr, 0, 0).image();
    vertical_ = vertical_weights_.convolution(&input_, 1, input.height, input.width);
    horizontal_ = horizontal_weights_.convolution(&intermediate, 1, input.height, input.width);
    vertical_.epilogue.bias = vertical_bias_.data();
    vertical_.epilogue.slope = vertical_slope_.data();
    horizontal_.epilogue.bias = horizontal_bias_.data();
    horizontal_.epilogue.slope = horizontal_slope_.data();
    vertical_.epilogue.activation = horizontal_.epilogue.activation = activation;
    extra_scratch_ =
        std::max(kernels<T>().conv_scratch(vertical_), kernels<T>().conv_scratch(horizontal_));
  }
  AsymmetricPair(const AsymmetricPair&) = delete;

  // Values of scratch that a row of a band takes, and those needed beside all rows.
  int64_t scratch_per_row() const {
    return values_for<T>(checked_product({input_.width, middle_}), dtype_);
  }
  int64_t extra_scratch() const { return extra_scratch_; }

  // Rows [first, last) of image n, into `out`.
  void run(T* scratch, int64_t n, int64_t first, int64_t last, const Destination& out) const {
    const Band<T> band = rows(scratch, first, last);
    T* const rest = scratch + band.values();
    Conv<T> conv = vertical_;
    conv.out = band.destination();
    run_rows(conv, n, first, last, rest);
    const Image intermediate = band.image();
    conv = horizontal_;
    conv.inputs = &intermediate;
    conv.out = out;
    run_rows(conv, n, first, last, rest);
  }

 private:
  Band<T> rows(T* data, int64_t first, int64_t last) const {
    return {data, middle_, input_.height, input_.width, first, last, dtype_};
  }

  const Weights<T> vertical_weights_, horizontal_weights_;
  const ChannelVector<T> vertical_bias_, horizontal_bias_, vertical_slope_, horizontal_slope_;
  const Image input_;
  const int64_t middle_;
  const ScalarType dtype_;  // of the intermediate
  int64_t extra_scratch_ = 0;
  Conv<T> vertical_, horizontal_;
};

}  // namespace fassd::cpu
