#include "asymmetric_conv.h"

namespace fassd::cpu {

Tensor asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                       const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                       const OptionalTensor& horizontal_bias, const OptionalTensor& vertical_slope,
                       const OptionalTensor& horizontal_slope, const OptionalTensors& packed,
                       int64_t dilation, const std::string& activation) {
  const Checked checked = check_asymmetric_conv(input, vertical_weight, horizontal_weight,
                                                vertical_bias, horizontal_bias, vertical_slope,
                                                horizontal_slope, packed, dilation, activation);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    using T = decltype(type);
    const AsymmetricPair<T> pair("asymmetric_conv", image_of(input), vertical_weight,
                                 horizontal_weight, vertical_bias, horizontal_bias, vertical_slope,
                                 horizontal_slope, packed_at(packed, 0), packed_at(packed, 1),
                                 dilation, checked.activation);
    const Destination to = destination(out);
    parallel_bands<T>(checked.size.batch, checked.size.height, pair.scratch_per_row(),
                      pair.extra_scratch(),
                      [&](T* scratch, int64_t n, int64_t first, int64_t last) {
                        pair.run(scratch, n, first, last, to);
                      });
  });
}

}  // namespace fassd::cpu
