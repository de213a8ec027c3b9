#include "kernels.h"

#include <algorithm>
#if defined(__linux__)
#include <unistd.h>
#endif

#include "capability.h"

namespace fassd::cpu {

namespace {

template <typename T>
const Kernels<T>& chosen(const Kernels<T>* avx512, const Kernels<T>* avx2,
                         const Kernels<T>& portable) {
  switch (capability()) {
    case Capability::avx512:
      return *avx512;
    case Capability::avx2:
      return *avx2;
    default:
      return portable;
  }
}

}  // namespace

// Other processors have the portable kernels alone, and capability() says so.
#if defined(__x86_64__)
#define FASSD_KERNELS(T) chosen(&avx512::T##_kernels, &avx2::T##_kernels, portable::T##_kernels)
#else
#define FASSD_KERNELS(T) chosen<T>(nullptr, nullptr, portable::T##_kernels)
#endif

template <>
const Kernels<float>& kernels<float>() {
  return FASSD_KERNELS(float);
}

template <>
const Kernels<double>& kernels<double>() {
  return FASSD_KERNELS(double);
}

int64_t second_level_cache() {
  static const int64_t bytes = [] {
    int64_t found = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return std::max<int64_t>(found, 1 << 20);
  }();
  return bytes;
}

}  // namespace fassd::cpu
