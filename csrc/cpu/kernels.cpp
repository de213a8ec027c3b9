#include "kernels.h"

#include "capability.h"

namespace fassd::cpu {

template <>
const Kernels<float>& kernels<float>() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::float_kernels;
    case Capability::avx2:
      return avx2::float_kernels;
    case Capability::portable:
      break;
  }
#endif
  return portable::float_kernels;
}

template <>
const Kernels<double>& kernels<double>() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::double_kernels;
    case Capability::avx2:
      return avx2::double_kernels;
    case Capability::portable:
      break;
  }
#endif
  return portable::double_kernels;
}

}  // namespace fassd::cpu
