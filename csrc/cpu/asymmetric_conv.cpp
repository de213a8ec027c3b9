#include "asymmetric_conv.h"

namespace fassd::cpu {

Tensor asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                       const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                       const OptionalTensor& horizontal_bias, const OptionalTensor& vertical_slope,
                       const OptionalTensor& horizontal_slope, int64_t dilation,
                       const std::string& activation) {
  ImageSize size;
  const Activation parsed = check_asymmetric_conv(input, vertical_weight, horizontal_weight,
                                                  vertical_bias, horizontal_bias, vertical_slope,
                                                  horizontal_slope, dilation, activation, size);
  Tensor out = empty_image(size, input.scalar_type());
  if (size.numel() == 0) {
    return out;
  }
  with_arithmetic(input.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const ImageSource<T> source(input);
    const AsymmetricPair<T> pair(source.image(), vertical_weight, horizontal_weight, vertical_bias,
                                 horizontal_bias, vertical_slope, horizontal_slope, dilation,
                                 parsed);
    const Destination to = destination(out);
    parallel_bands<T>(size.batch, size.height, pair.scratch_per_row(),
                      [&](T* scratch, int64_t n, int64_t first, int64_t last) {
                        pair.run(scratch, n, first, last, to);
                      });
  });
  return out;
}

}  // namespace fassd::cpu
