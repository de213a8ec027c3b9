#include "upsample.h"

namespace fassd::cpu {

namespace {

// Pixels that are interpolated in scratch before they are converted and written.
constexpr int64_t strip = 64;

template <typename T>
void run_upsample(const Tensor& input, Tensor& out) {
  const ImageSource<T> source(input);
  const Image<T>& image = source.image();
  const int64_t height = out.size(2), width = out.size(3);
  const ResizeAxis<T> rows(image.height, height), columns(image.width, width);
  const Destination to = destination(out);
  const int64_t size = element_size(to.dtype);
  char* const base = static_cast<char*>(to.data);
  parallel_items<T>(out.size(0) * height, strip * image.channels, [&](T* scratch, int64_t item) {
    const int64_t n = item / height, y = item % height;
    for (int64_t x = 0; x < width; x += strip) {
      const int64_t end = std::min(x + strip, width);
      interpolate_row(image, rows, columns, n, y, x, end, scratch);
      kernels<T>().store(scratch, base + to.offset(n, y, x) * size, to.dtype,
                         (end - x) * image.channels);
    }
  });
}

// Rows of logits, planar, so that the comparisons run over pixels: planes[c][x] is blended from the
// two neighbouring rows once per row of labels, at the logits' own width.
template <typename T>
void run_upsample_argmax(const Tensor& input, Tensor& out) {
  const ImageSource<T> source(input);
  const Image<T>& image = source.image();
  const int64_t height = out.size(1), width = out.size(2);
  const ResizeAxis<T> rows(image.height, height), columns(image.width, width);
  uint8_t* const labels = static_cast<uint8_t*>(out.mutable_data_ptr());
  const int64_t planes = image.width * image.channels;
  parallel_items<T>(out.size(0) * height, planes + width, [&](T* scratch, int64_t item) {
    const int64_t n = item / height, y = item % height;
    const T bottom_weight = rows.weight_after[y], top_weight = 1 - bottom_weight;
    for (int64_t x = 0; x < image.width; x++) {
      const T* top = image.pixel(n, rows.before[y], x);
      const T* bottom = image.pixel(n, rows.after[y], x);
      for (int64_t c = 0; c < image.channels; c++) {
        scratch[c * image.width + x] = top[c] * top_weight + bottom[c] * bottom_weight;
      }
    }
    kernels<T>().argmax_row(scratch, image.width, columns.before.data(), columns.after.data(),
                            columns.weight_after.data(), width, image.channels, scratch + planes,
                            labels + item * width);
  });
}

}  // namespace

Tensor upsample(const Tensor& input, const Integers& size) {
  const ImageSize result = check_upsample("upsample", input, size);
  Tensor out = empty_image(result, input.scalar_type());
  if (result.numel() > 0) {
    with_arithmetic(input.scalar_type(),
                    [&](auto type) { run_upsample<decltype(type)>(input, out); });
  }
  return out;
}

Tensor upsample_argmax(const Tensor& input, const Integers& size) {
  const ImageSize result = check_upsample_argmax(input, size);
  Tensor out = torch::stable::empty({result.batch, result.height, result.width}, ScalarType::Byte);
  if (result.numel() > 0) {
    with_arithmetic(input.scalar_type(),
                    [&](auto type) { run_upsample_argmax<decltype(type)>(input, out); });
  }
  return out;
}

}  // namespace fassd::cpu
