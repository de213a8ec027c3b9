#include "memory.h"

namespace fassd::cpu {

Tensor max_pool(const Tensor& input, const Integers& kernel, const Integers& stride,
                const Integers& padding) {
  const Checked checked = check_max_pool(input, kernel, stride, padding);
  const Window window = {kernel.front(), kernel.back(),   stride.front(),
                         stride.back(),  padding.front(), padding.back()};
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    using T = decltype(type);
    const Adjacent<T> image(input);
    const Destination to = destination(out);
    const ImageSize& size = checked.size;
    parallel(checked_product({size.batch, size.height}), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        kernels<T>().max_pool(image.image(), window, to, size.width, row / size.height,
                              row % size.height);
      }
    });
  });
}

}  // namespace fassd::cpu
