// Bilinear resizing along one axis.

#pragma once

#include <torch/headeronly/util/Exception.h>

#include "memory.h"

namespace fassd::cpu {

// Positions of an axis that are there: `count` of `total`, from `first` on.
struct Extent {
  int64_t first, count, total;
};

// Rows that strips of two images hold of the whole ones, of which the second is the first resized.
struct StripRows {
  Extent in, out;

  // `rows`: the first and the number of all rows of the one, then of the other.
  StripRows(const char* op, int64_t in_height, int64_t out_height, const Integers& rows);
  StripRows(int64_t in_height, int64_t out_height)
      : in{0, in_height, in_height}, out{0, out_height, out_height} {}
};

// For every output position: its two input neighbours and the weight of the second. Positions are
// computed in double, so that the weights are right to the last digit of T on any width; those of a
// part are the whole axis's.
template <typename T, typename Index = int64_t>
struct ResizeAxis {
  Buffer<Index> before_, after_;
  Buffer<T> weight_after_;
  const Index *const before = before_.data(), *const after = after_.data();
  const T* const weight_after = weight_after_.data();

  // The corners' centres lie on each other (`align_corners`), or else their outer edges.
  ResizeAxis(const Extent& from, const Extent& to, bool align_corners = true)
      : before_(to.count), after_(to.count), weight_after_(to.count) {
    const int64_t in = from.total, out = to.total;
    const double corners = out > 1 ? double(in - 1) / double(out - 1) : 0.0;
    const double edges = double(in) / double(out);
    for (int64_t i = 0; i < to.count; i++) {
      const double at = double(to.first + i);
      const double position = align_corners ? at * corners
                              : in == out   ? at
                                            : std::max(0.0, (at + 0.5) * edges - 0.5);
      // Of more pixels than a double tells apart, the last one's number would be rounded up.
      const int64_t first = position < double(in - 1) ? int64_t(position) : in - 1;
      // On an axis that keeps its size PyTorch reads no neighbour, so none may pass its NaN on.
      const int64_t second = in == out ? first : std::min<int64_t>(first + 1, in - 1);
      STD_TORCH_CHECK(first >= from.first && second < from.first + from.count, "position ",
                      to.first + i, " lies between positions ", first, " and ", second, " of ", in,
                      ", but there are ", from.count, " from ", from.first, " on");
      before_.data()[i] = Index(first - from.first);
      after_.data()[i] = Index(second - from.first);
      weight_after_.data()[i] = T(position - double(first));
    }
  }
  ResizeAxis(int64_t in, int64_t out, bool align_corners = true)
      : ResizeAxis(Extent{0, in, in}, Extent{0, out, out}, align_corners) {}
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

// The operators of these names on strips: `rows` is the first row of `input` or `low` in the whole
// image and the number of rows of that, then of the result's.
Tensor upsample_rows(const Tensor& input, const Integers& size, const Integers& rows);
Tensor upsample_argmax_rows(const Tensor& input, const Integers& size, const Integers& rows);
Tensor upsample_confidence_rows(const Tensor& input, const Integers& size, const Integers& rows,
                                const std::string& measure, double temperature);
Tensor upsample_conv1x1_rows(const Tensors& low, const Tensors& skip, const Tensor& weight,
                             const OptionalTensor& bias, const OptionalTensor& slope,
                             const OptionalTensors& packed, const std::string& activation,
                             const Integers& rows);

// The gradient of an image of `size` of which `gradient` is that of the upsampled one, N x C x H x
// W, floating, channels_last.
Tensor upsample_backward(const Tensor& gradient, const Integers& size);

}  // namespace fassd::cpu
