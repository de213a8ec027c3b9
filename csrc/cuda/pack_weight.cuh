// Weights in the order in which the kernels read them: [taps][in_channels][out_channels rounded
// up], with adjacent output channels and zeros after the last: any run of input channels is a run
// of whole rows, wherever an input of the virtual concatenation begins. At the end follow as many
// zeros as pad a row, so that the length gives the number of output channels.

#pragma once

#include "image.cuh"

namespace fassd::cuda {

constexpr int64_t row_multiple = 16;  // output channels of a row are padded to a multiple

inline int64_t row_elements(int64_t out_channels) {
  return round_up(out_channels, row_multiple);
}

// Number of elements for O x I x kH x kW.
int64_t packed_elements(int64_t out_channels, int64_t in_channels, int64_t taps);

// Input channels [first, first + count) of a weight.
Tensor pack(const Queue& queue, const Tensor& weight, int64_t first, int64_t count);

}  // namespace fassd::cuda
