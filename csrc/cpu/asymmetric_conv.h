// The 3x1 -> 1x3 pair on a band of rows, for the operators that contain it.

#pragma once

#include "memory.h"

namespace fassd::cpu {

// Both convolutions, ready to run on bands of rows of one input. The 1x3 needs only its own row, so
// a band's intermediate stays in scratch memory and nothing is computed twice.
template <typename T>
class AsymmetricPair {
 public:
  AsymmetricPair(const Image<T>& input, const Tensor& vertical_weight,
                 const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                 const OptionalTensor& horizontal_bias, const OptionalTensor& vertical_slope,
                 const OptionalTensor& horizontal_slope, int64_t dilation, Activation activation)
      : vertical_weights_(vertical_weight),
        horizontal_weights_(horizontal_weight),
        vertical_bias_(vertical_bias),
        horizontal_bias_(horizontal_bias),
        vertical_slope_(vertical_slope),
        horizontal_slope_(horizontal_slope),
        input_(input),
        middle_(vertical_weight.size(0)) {
    vertical_weights_.attach(vertical_);
    horizontal_weights_.attach(horizontal_);
    vertical_.dilation_h = horizontal_.dilation_w = dilation;
    vertical_.epilogue.bias = vertical_bias_.data();
    vertical_.epilogue.slope = vertical_slope_.data();
    horizontal_.epilogue.bias = horizontal_bias_.data();
    horizontal_.epilogue.slope = horizontal_slope_.data();
    for (Conv<T>* conv : {&vertical_, &horizontal_}) {
      conv->input_count = 1;
      conv->out_height = input.height;
      conv->out_width = input.width;
      conv->epilogue.activation = activation;
    }
  }

  // Values of scratch that a row of a band takes.
  int64_t scratch_per_row() const { return input_.width * middle_; }

  // Rows [first, last) of image n, into `out`.
  void run(T* scratch, int64_t n, int64_t first, int64_t last, const Destination& out) const {
    const int64_t width = input_.width, row = width * middle_;
    Conv<T> conv = vertical_;
    conv.inputs = &input_;
    conv.out = {scratch, dtype_of<T>, 0, row, middle_, first};
    kernels<T>().conv(conv, n, first * width, last * width);
    const Image<T> intermediate = {scratch, middle_, input_.height, width, 0, row, middle_, first};
    conv = horizontal_;
    conv.inputs = &intermediate;
    conv.out = out;
    kernels<T>().conv(conv, n, first * width, last * width);
  }

 private:
  PackedWeights<T> vertical_weights_, horizontal_weights_;
  ChannelVector<T> vertical_bias_, horizontal_bias_, vertical_slope_, horizontal_slope_;
  Image<T> input_;
  int64_t middle_;
  Conv<T> vertical_, horizontal_;
};

}  // namespace fassd::cpu
