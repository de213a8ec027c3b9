#include <array>

#include "memory.h"

namespace fassd::cpu {

// A channel has 256 possible values: each is computed once, in double, and looked up.
Tensor normalize(const Tensor& image, const std::vector<double>& mean,
                 const std::vector<double>& std, ScalarType dtype) {
  const ImageSize size = check_normalize(image, mean, std, dtype).size;
  return result_of(size, dtype, [&](auto type, Tensor& out) {
    using T = decltype(type);
    std::array<std::array<T, 256>, 3> table;
    for (int channel = 0; channel < 3; channel++) {
      for (int value = 0; value < 256; value++) {
        table[channel][value] = T((value - mean[channel]) / std[channel]);
      }
    }
    const uint8_t* const pixels = static_cast<const uint8_t*>(image.const_data_ptr());
    const int64_t stride_n = image.stride(0), stride_h = image.stride(1);
    const int64_t stride_w = image.stride(2), stride_c = image.stride(3);
    const Destination to = destination(out);
    const int64_t element = element_size(dtype);
    parallel_items<T>(size.batch * size.height, 3 * size.width, [&](T* scratch, int64_t item) {
      const int64_t n = item / size.height, y = item % size.height;
      const uint8_t* row = pixels + n * stride_n + y * stride_h;
      for (int64_t x = 0; x < size.width; x++) {
        for (int channel = 0; channel < 3; channel++) {  // RGB in, BGR out
          const uint8_t value = row[x * stride_w + (2 - channel) * stride_c];
          scratch[3 * x + channel] = table[channel][value];
        }
      }
      kernels<T>().store(scratch, static_cast<char*>(to.data) + to.offset(n, y, 0) * element, dtype,
                         3 * size.width);
    });
  });
}

Tensor normalize_conv_act(const Tensor& image, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& slope, const OptionalTensor& packed,
                          const std::vector<double>& mean, const std::vector<double>& std,
                          const Integers& stride, const Integers& dilation,
                          const std::string& activation) {
  check_normalize_conv_act(image, weight, bias, slope, packed, mean, std, stride, dilation,
                           activation);
  return conv_act({normalize(image, mean, std, weight.scalar_type())}, weight, bias, slope,
                  std::nullopt, packed, stride, dilation, activation, 1);
}

}  // namespace fassd::cpu
