#include "asymmetric_conv.h"

namespace fassd::cpu {

Tensor asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                       const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                       const OptionalTensor& horizontal_bias, const OptionalTensor& vertical_slope,
                       const OptionalTensor& horizontal_slope, const OptionalTensors& packed,
                       int64_t dilation, const std::string& activation) {
  ImageSize size;
  const Activation parsed = check_asymmetric_conv(
      input, vertical_weight, horizontal_weight, vertical_bias, horizontal_bias, vertical_slope,
      horizontal_slope, packed, dilation, activation, size);
  Tensor out = empty_image(size, input.scalar_type());
  if (size.numel() > 0) {
    with_arithmetic(input.scalar_type(), [&](auto type) {
      using T = decltype(type);
      const AsymmetricPair<T> pair("asymmetric_conv", image_of(input), vertical_weight,
                                   horizontal_weight, vertical_bias, horizontal_bias,
                                   vertical_slope, horizontal_slope, packed_at(packed, 0),
                                   packed_at(packed, 1), dilation, parsed);
      const Destination to = destination(out);
      parallel_bands<T>(size.batch, size.height, pair.scratch_per_row(), pair.extra_scratch(),
                        [&](T* scratch, int64_t n, int64_t first, int64_t last) {
                          pair.run(scratch, n, first, last, to);
                        });
    });
  }
  return out;
}

}  // namespace fassd::cpu
