// Bilinear resizing along one axis.

#pragma once

#include "memory.h"

namespace fassd::cpu {

// For every output position: its two input neighbours and the weight of the second. Positions are
// computed in double, so that the weights are right to the last digit of T on any width.
template <typename T, typename Index = int64_t>
struct ResizeAxis {
  Buffer<Index> before_, after_;
  Buffer<T> weight_after_;
  const Index *const before = before_.data(), *const after = after_.data();
  const T* const weight_after = weight_after_.data();

  // The corners' centres lie on each other (`align_corners`), or else their outer edges.
  ResizeAxis(int64_t in, int64_t out, bool align_corners = true)
      : before_(out), after_(out), weight_after_(out) {
    const double corners = out > 1 ? double(in - 1) / double(out - 1) : 0.0;
    const double edges = double(in) / double(out);
    for (int64_t i = 0; i < out; i++) {
      const double position = align_corners ? double(i) * corners
                              : in == out   ? double(i)
                                            : std::max(0.0, (double(i) + 0.5) * edges - 0.5);
      // Of more pixels than a double tells apart, the last one's number would be rounded up.
      const int64_t first = position < double(in - 1) ? int64_t(position) : in - 1;
      before_.data()[i] = Index(first);
      // On an axis that keeps its size PyTorch reads no neighbour, so none may pass its NaN on.
      after_.data()[i] = in == out ? Index(first) : Index(std::min<int64_t>(first + 1, in - 1));
      weight_after_.data()[i] = T(position - double(first));
    }
  }
};

// Row y, pixels [begin, end), of an image of adjacent channels of T, resized to the axes' sizes.
template <typename T>
void interpolate_row(const Image& image, const ResizeAxis<T>& rows, const ResizeAxis<T>& columns,
                     int64_t n, int64_t y, int64_t begin, int64_t end, T* out) {
  const T* data = static_cast<const T*>(image.data);
  kernels<T>().interpolate(data + image.offset(n, rows.before[y]),
                           data + image.offset(n, rows.after[y]), image.stride_w, columns.before,
                           columns.after, columns.weight_after, rows.weight_after[y], begin, end,
                           image.channels, out, image.channels);
}

// The gradient of an image of `size` of which `gradient` is that of the upsampled one, N x C x H x
// W, floating, channels_last.
Tensor upsample_backward(const Tensor& gradient, const Integers& size);

}  // namespace fassd::cpu
