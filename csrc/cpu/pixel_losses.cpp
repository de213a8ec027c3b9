#include "pixel_losses.h"

#include <torch/headeronly/util/Exception.h>

#include "memory.h"

namespace fassd::cpu {

namespace {

// Pixels that a thread takes at a time: a multiple of every vector's values.
constexpr int64_t share = 1024;

ScalarType type_of_losses(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

LabelledPixels check_arguments(const char* op, const Tensor& logits, const Tensor& labels,
                               const Tensor& groups, int64_t ignored) {
  STD_TORCH_CHECK(logits.dim() == 4 && is_floating(logits.scalar_type()) && logits.numel() > 0 &&
                      is_channels_last(logits),
                  op, ": logits have shape ", shape_name(logits),
                  "; expected floating N x C x H x W, not empty, channels_last");
  const int64_t classes = logits.size(1);
  STD_TORCH_CHECK(labels.dim() == 3 && labels.scalar_type() == ScalarType::Long &&
                      labels.size(0) == logits.size(0) && labels.size(1) == logits.size(2) &&
                      labels.size(2) == logits.size(3) && labels.is_contiguous() && labels.is_cpu(),
                  op, ": labels have shape ", shape_name(labels), " and dtype ",
                  dtype_name(labels.scalar_type()),
                  "; expected int64 N x H x W as the logits, contiguous");
  STD_TORCH_CHECK(groups.dim() == 2 && groups.scalar_type() == ScalarType::Bool &&
                      groups.size(1) == classes && groups.is_contiguous() && groups.is_cpu(),
                  op, ": groups have shape ", shape_name(groups), "; expected bool G x ", classes);
  check_storage(op, "logits", logits);
  check_storage(op, "labels", labels);
  check_storage(op, "groups", groups);
  const int64_t* const values = static_cast<const int64_t*>(labels.const_data_ptr());
  const int64_t end = classes + groups.size(0);
  for (int64_t i = 0; i < labels.numel(); i++) {
    STD_TORCH_CHECK((values[i] >= 0 && values[i] < end) || values[i] == ignored, op,
                    ": a label is ", values[i], "; expected less than ", end, ", or ", ignored,
                    " where it is to be ignored");
  }
  return {classes, values, ignored, static_cast<const bool*>(groups.const_data_ptr())};
}

// Runs body(planes, first pixel, last pixel); a pixel has `vectors` vectors of scratch.
template <typename T, typename Body>
void for_pixels(int64_t pixels, int64_t vectors, const Body& body) {
  const int64_t values = checked_product({vectors, channel_padding});
  parallel_items<T>((pixels + share - 1) / share, values, [&](T* planes, int64_t item) {
    body(planes, item * share, std::min((item + 1) * share, pixels));
  });
}

}  // namespace

Tensor pixel_losses(const Tensor& logits, const Tensor& labels, const Tensor& groups,
                    int64_t ignored) {
  const LabelledPixels pixels = check_arguments("pixel_losses", logits, labels, groups, ignored);
  Tensor losses = torch::stable::empty({logits.size(0), logits.size(2), logits.size(3)},
                                       type_of_losses(logits));
  with_arithmetic(logits.scalar_type(), [&](auto type) {
    using T = decltype(type);
    T* const out = static_cast<T*>(losses.mutable_data_ptr());
    for_pixels<T>(labels.numel(), pixels.classes, [&](T* planes, int64_t begin, int64_t end) {
      kernels<T>().pixel_losses(logits.const_data_ptr(), logits.scalar_type(), pixels, begin, end,
                                planes, out);
    });
  });
  return losses;
}

Tensor pixel_losses_backward(const Tensor& gradient, const Tensor& logits, const Tensor& labels,
                             const Tensor& groups, int64_t ignored) {
  const char* const op = "pixel_losses_backward";
  const LabelledPixels pixels = check_arguments(op, logits, labels, groups, ignored);
  STD_TORCH_CHECK(gradient.scalar_type() == type_of_losses(logits) &&
                      gradient.numel() == labels.numel() && gradient.is_contiguous() &&
                      gradient.is_cpu(),
                  op, ": gradient has shape ", shape_name(gradient), " and dtype ",
                  dtype_name(gradient.scalar_type()), "; expected the losses', contiguous");
  check_storage(op, "gradient", gradient);
  return result_of({logits.size(0), pixels.classes, logits.size(2), logits.size(3)},
                   logits.scalar_type(), [&](auto type, Tensor& out) {
                     using T = decltype(type);
                     const T* const weights = static_cast<const T*>(gradient.const_data_ptr());
                     void* const to = out.mutable_data_ptr();
                     for_pixels<T>(labels.numel(), 2 * pixels.classes,
                                   [&](T* planes, int64_t begin, int64_t end) {
                                     kernels<T>().pixel_gradients(logits.const_data_ptr(),
                                                                  logits.scalar_type(), pixels,
                                                                  weights, begin, end, planes, to);
                                   });
                   });
}

}  // namespace fassd::cpu
