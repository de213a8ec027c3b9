#include "kernels.h"

#include <algorithm>
#if defined(__linux__)
#include <unistd.h>
#endif

#include "capability.h"

namespace fassd::cpu {

// Other processors have the portable kernels alone, and capability() says so.
template <>
const Kernels<float>& kernels<float>() {
  switch (capability()) {
#if defined(FASSD_AMX)
    case Capability::amx:
      return avx512::tile_kernels;
#endif
#if defined(__x86_64__)
    case Capability::avx512:
      return has_byte_products() ? avx512::vector_kernels : avx512::float_kernels;
    case Capability::avx2:
      return avx2::float_kernels;
#endif
#if defined(FASSD_BF16)
    case Capability::neon_bf16:
      return neon::tile_kernels;
#endif
#if defined(__aarch64__)
    case Capability::neon:
      return neon::float_kernels;
#endif
    case Capability::emulation:
      return portable::tile_kernels;
    default:
      return portable::float_kernels;
  }
}

template <>
const Kernels<double>& kernels<double>() {
  switch (capability()) {
#if defined(__x86_64__)
    case Capability::amx:
    case Capability::avx512:
      return avx512::double_kernels;
    case Capability::avx2:
      return avx2::double_kernels;
#endif
#if defined(__aarch64__)
    case Capability::neon_bf16:
    case Capability::neon:
      return neon::double_kernels;
#endif
    default:
      return portable::double_kernels;
  }
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
