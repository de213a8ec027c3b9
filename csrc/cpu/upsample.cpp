#include "upsample.h"

#include <torch/headeronly/util/Exception.h>

#include <limits>

namespace fassd::cpu {

namespace {

// Pixels that are interpolated in scratch before they are converted and written, where they have
// to be converted.
constexpr int64_t strip = 64;

template <typename T>
void run_upsample(const Tensor& input, const StripRows& strip_rows, bool align_corners,
                  Tensor& out) {
  const ChannelsLast<T> source(input);
  const Image& image = source.image();
  const int64_t height = out.size(2), width = out.size(3);
  const ResizeAxis<T> rows(strip_rows.in, strip_rows.out, align_corners);
  const ResizeAxis<T> columns(image.width, width, align_corners);
  const Destination to = destination(out);
  const int64_t size = element_size(to.dtype);
  char* const base = static_cast<char*>(to.data);
  const int64_t strip_values = checked_product({strip, image.channels});
  parallel_items<T>(out.size(0) * height, strip_values, [&](T* scratch, int64_t item) {
    const int64_t n = item / height, y = item % height;
    if (to.dtype == dtype_of<T>) {
      interpolate_row(image, rows, columns, n, y, 0, width,
                      static_cast<T*>(to.data) + to.offset(n, y, 0));
      return;
    }
    for (int64_t x = 0; x < width; x += strip) {
      const int64_t end = std::min(x + strip, width);
      interpolate_row(image, rows, columns, n, y, x, end, scratch);
      kernels<T>().store(scratch, base + to.offset(n, y, x) * size, to.dtype,
                         (end - x) * image.channels);
    }
  });
}

// Two rows of an image of adjacent channels in scratch memory, planar: planes[c * plane + x].
template <typename T>
class PlanarRows {
 public:
  // `scratch` has room for twice `planes` values.
  PlanarRows(const Image& image, int64_t plane, int64_t planes, T* scratch)
      : image_(image), plane_(plane), planes_{scratch, scratch + planes} {}

  // Row y of image n; the other row that is there stays if it is row `other`.
  const T* row(int64_t n, int64_t y, int64_t other) {
    const int64_t wanted = n * image_.height + y;
    const bool first =
        held_[0] == wanted || (held_[1] != wanted && held_[1] == n * image_.height + other);
    const int place = first ? 0 : 1;
    if (held_[place] != wanted) {
      held_[place] = wanted;
      const char* const from =
          static_cast<const char*>(image_.data) + image_.offset(n, y) * element_size(image_.dtype);
      kernels<T>().row_to_planes(from, image_.dtype, image_.stride_w, image_.width, image_.channels,
                                 planes_[place], plane_);
    }
    return planes_[place];
  }

 private:
  const Image& image_;
  const int64_t plane_;
  T* const planes_[2];
  int64_t held_[2] = {-1, -1};
};

// Rows of logits, planar, so that the comparisons run over pixels: planes[c][x] is blended from
// those of the two neighbouring rows once per row of labels, at the logits' own width.
// `label(planes, plane, columns, n, y)` makes labels of them.
template <typename T, typename Label>
void label_rows(const Tensor& input, const StripRows& strip_rows, bool align_corners, int64_t width,
                const Label& label) {
  const Adjacent<T> source(input);
  const Image& image = source.image();
  const int64_t height = strip_rows.out.count;
  const ResizeAxis<T> rows(strip_rows.in, strip_rows.out, align_corners);
  const ResizeAxis<T, int32_t> columns(image.width, width, align_corners);
  // Whole vectors are written and read, beginning at any pixel.
  const int64_t plane =
      (checked_sum(image.width, 3 * channel_padding) - 1) / channel_padding * channel_padding;
  const int64_t planes = checked_product({plane, image.channels});
  parallel_shares<T>(input.size(0) * height, checked_product({3, planes}),
                     [&](T* scratch, int64_t begin, int64_t end) {
                       PlanarRows<T> planar(image, plane, planes, scratch + planes);
                       for (int64_t item = begin; item < end; item++) {
                         const int64_t n = item / height, y = item % height;
                         const int64_t before = rows.before[y], after = rows.after[y];
                         const T* const top = planar.row(n, before, after);
                         const T* const bottom = planar.row(n, after, before);
                         kernels<T>().blend(top, bottom, rows.weight_after[y], planes, scratch);
                         label(scratch, plane, columns, n, y);
                       }
                     });
}

// Row by row of the smaller image: the rows that it was a neighbour of are added up at their full
// width, then along the row.
template <typename T>
void run_upsample_backward(const Tensor& gradient, Tensor& out) {
  const Kernels<T>& kernel = kernels<T>();
  const Image from = image_of(gradient);
  const Destination to = destination(out);
  const int64_t channels = from.channels, height = out.size(2), width = out.size(3);
  const ResizeAxis<T> rows(height, from.height), columns(width, from.width);
  const int64_t long_row = from.width * channels, short_row = width * channels;
  const int64_t size = element_size(from.dtype);
  parallel_items<T>(out.size(0) * height, long_row + short_row, [&](T* scratch, int64_t item) {
    const int64_t n = item / height, row = item % height;
    std::fill_n(scratch, long_row + short_row, T(0));
    const int64_t* const begin = std::lower_bound(rows.before, rows.before + from.height, row - 1);
    for (int64_t y = begin - rows.before; y < from.height && rows.before[y] <= row; y++) {
      const T after = rows.weight_after[y];
      const T weight =
          (rows.before[y] == row ? 1 - after : T(0)) + (rows.after[y] == row ? after : T(0));
      if (weight != 0) {
        kernel.add_scaled(
            static_cast<const char*>(from.data) + (n * from.height + y) * long_row * size,
            from.dtype, long_row, weight, scratch);
      }
    }
    kernel.spread_row(scratch, columns.before, columns.after, columns.weight_after, from.width,
                      channels, scratch + long_row);
    kernel.store(scratch + long_row, static_cast<char*>(to.data) + to.offset(n, row, 0) * size,
                 to.dtype, short_row);
  });
}

// Labels; with a temperature also their certainty.
Tensor labels_of(const char* op, const Tensor& input, const StripRows& rows, bool align_corners,
                 const Checked& checked, std::optional<double> temperature = std::nullopt) {
  constexpr int64_t widest =
      std::numeric_limits<int32_t>::max();  // columns are numbered in 32 bits
  STD_TORCH_CHECK(input.size(3) <= widest, op, ": input has ", input.size(3),
                  " columns; the C++ backend takes at most ", widest);
  const int64_t batch = checked.size.batch, channels = checked.size.channels;
  const int64_t height = checked.size.height, width = checked.size.width;
  const int64_t maps = temperature ? 2 : 1;
  Tensor out = empty_bytes(temperature ? Integers{batch, maps, height, width}
                                       : Integers{batch, height, width});
  if (out.numel() > 0) {
    uint8_t* const labels = static_cast<uint8_t*>(out.mutable_data_ptr());
    with_arithmetic(input.scalar_type(), [&](auto type) {
      using T = decltype(type);
      const T scale = T(sharpness(temperature.value_or(1)));
      label_rows<T>(input, rows, align_corners, width,
                    [&](const T* planes, int64_t plane, const auto& columns, int64_t n, int64_t y) {
                      uint8_t* const row = labels + (maps * n * height + y) * width;
                      if (temperature) {
                        kernels<T>().confidence_row(
                            planes, plane, columns.before, columns.after, columns.weight_after,
                            width, channels, checked.measure, scale, row, row + height * width);
                      } else {
                        kernels<T>().argmax_row(planes, plane, columns.before, columns.after,
                                                columns.weight_after, width, channels, row);
                      }
                    });
    });
  }
  return out;
}

}  // namespace

StripRows::StripRows(const char* op, int64_t in_height, int64_t out_height, const Integers& rows)
    : StripRows(in_height, out_height) {
  STD_TORCH_CHECK(rows.size() == 4, op, ": rows has ", rows.size(), " numbers; expected 4");
  in = {rows[0], in_height, rows[1]};
  out = {rows[2], out_height, rows[3]};
  for (const Extent& extent : {in, out}) {
    STD_TORCH_CHECK(extent.first >= 0 && extent.first <= extent.total - extent.count, op,
                    ": rows has a strip of ", extent.count, " rows from ", extent.first, " on of ",
                    extent.total, "; expected one inside the image");
  }
}

Tensor upsample_backward(const Tensor& gradient, const Integers& size) {
  STD_TORCH_CHECK(gradient.dim() == 4 && is_floating(gradient.scalar_type()) &&
                      gradient.numel() > 0 && is_channels_last(gradient),
                  "upsample_backward: gradient has shape ", shape_name(gradient),
                  "; expected a floating image N x C x H x W, not empty, channels_last");
  check_storage("upsample_backward", "gradient", gradient);
  STD_TORCH_CHECK(size.size() == 2 && size[0] >= 1 && size[1] >= 1, "upsample_backward: size is ",
                  list_name(size), "; expected (height, width), each at least 1");
  return result_of(
      {gradient.size(0), gradient.size(1), size[0], size[1]}, gradient.scalar_type(),
      [&](auto type, Tensor& out) { run_upsample_backward<decltype(type)>(gradient, out); });
}

Tensor upsample(const Tensor& input, const Integers& size, bool align_corners) {
  const Checked checked = check_upsample(input, size, align_corners);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    run_upsample<decltype(type)>(input, {input.size(2), size[0]}, align_corners, out);
  });
}

Tensor upsample_rows(const Tensor& input, const Integers& size, const Integers& rows) {
  const Checked checked = check_upsample(input, size, true);
  const StripRows strip_rows("upsample_rows", input.size(2), size[0], rows);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    run_upsample<decltype(type)>(input, strip_rows, true, out);
  });
}

Tensor upsample_argmax(const Tensor& input, const Integers& size, bool align_corners) {
  const Checked checked = check_upsample_argmax(input, size, align_corners);
  return labels_of("upsample_argmax", input, {input.size(2), size[0]}, align_corners, checked);
}

Tensor upsample_argmax_rows(const Tensor& input, const Integers& size, const Integers& rows) {
  const Checked checked = check_upsample_argmax(input, size, true);
  const StripRows strip_rows("upsample_argmax_rows", input.size(2), size[0], rows);
  return labels_of("upsample_argmax", input, strip_rows, true, checked);
}

Tensor upsample_confidence(const Tensor& input, const Integers& size, const std::string& measure,
                           double temperature, bool align_corners) {
  const Checked checked =
      check_upsample_confidence(input, size, measure, temperature, align_corners);
  return labels_of("upsample_confidence", input, {input.size(2), size[0]}, align_corners, checked,
                   temperature);
}

Tensor upsample_confidence_rows(const Tensor& input, const Integers& size, const Integers& rows,
                                const std::string& measure, double temperature) {
  const Checked checked = check_upsample_confidence(input, size, measure, temperature, true);
  const StripRows strip_rows("upsample_confidence_rows", input.size(2), size[0], rows);
  return labels_of("upsample_confidence", input, strip_rows, true, checked, temperature);
}

}  // namespace fassd::cpu
