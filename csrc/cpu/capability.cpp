#include "capability.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>

namespace fassd::cpu {

namespace {

bool offers(Capability wanted) {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  switch (wanted) {
    case Capability::avx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Capability::avx2:
      return avx2;
    case Capability::portable:
      return true;
  }
#endif
  return wanted == Capability::portable;
}

Capability decide() {
  const char* asked = std::getenv("FASSD_KERNELS_CPU");
  if (asked == nullptr || *asked == '\0') {
    for (Capability best : {Capability::avx512, Capability::avx2}) {
      if (offers(best)) {
        return best;
      }
    }
    return Capability::portable;
  }
  const std::string name = asked;
  STD_TORCH_CHECK(name == "portable" || name == "avx2" || name == "avx512",
                  "FASSD_KERNELS_CPU is '", name, "'; expected portable, avx2 or avx512");
  const Capability wanted = name == "portable" ? Capability::portable
                            : name == "avx2"   ? Capability::avx2
                                               : Capability::avx512;
  STD_TORCH_CHECK(offers(wanted), "FASSD_KERNELS_CPU is '", name,
                  "', which this CPU does not offer");
  return wanted;
}

}  // namespace

Capability capability() {
  static const Capability chosen = decide();
  return chosen;
}

std::string capability_name() {
  switch (capability()) {
    case Capability::avx512:
      return "AVX-512";
    case Capability::avx2:
      return "AVX2 + FMA";
    case Capability::portable:
      break;
  }
  return "portable vectors";
}

}  // namespace fassd::cpu
