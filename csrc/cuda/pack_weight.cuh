// Weights in the order in which the kernels read them: [taps][in_channels][out_channels rounded
// up], output channels adjacent, zeros behind the last: any run of input channels is a run of whole
// rows, wherever an input of the virtual concatenation begins. As many more zeros as a row has
// stand at the end, so that the length tells the number of output channels.

#pragma once

#include "image.cuh"

namespace fassd::cuda {

constexpr int64_t row_multiple = 16;  // output channels of a row are padded to so many

inline int64_t row_elements(int64_t out_channels) {
  return round_up(out_channels, row_multiple);
}

// How many elements O x I x kH x kW takes.
int64_t packed_elements(int64_t out_channels, int64_t in_channels, int64_t taps);

// Input channels [first, first + count) of a weight.
Tensor pack(const Queue& queue, const Tensor& weight, int64_t first, int64_t count);

}  // namespace fassd::cuda
