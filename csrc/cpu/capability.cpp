#include "capability.h"

#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdlib>
#include <utility>
#if defined(FASSD_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fassd::cpu {

namespace {

constexpr std::array<std::pair<const char*, Capability>, 5> names = {{
    {"portable", Capability::portable},
    {"avx2", Capability::avx2},
    {"avx512", Capability::avx512},
    {"amx", Capability::amx},
    {"emulation", Capability::emulation},
}};

// Linux gives a process the tiles' registers, of 8 KB, when it asks for them.
bool offers_tiles() {
#if defined(FASSD_AMX)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned bfloat16 = 1u << 22, registers = 1u << 24, vectors = 1u << 5;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & bfloat16) || !(d & registers) ||
      !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & vectors)) {
    return false;
  }
  constexpr long request = 0x1023, data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, data) == 0;
#else
  return false;
#endif
}

bool offers(Capability wanted) {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  switch (wanted) {
    case Capability::amx:
      return avx512 && offers_tiles();
    case Capability::avx512:
      return avx512;
    case Capability::avx2:
      return avx2;
    default:
      return true;
  }
#endif
  return wanted == Capability::portable || wanted == Capability::emulation;
}

Capability decide() {
  const char* asked = std::getenv("FASSD_KERNELS_CPU");
  if (asked == nullptr || *asked == '\0') {
    for (Capability best : {Capability::amx, Capability::avx512, Capability::avx2}) {
      if (offers(best)) {
        return best;
      }
    }
    return Capability::portable;
  }
  for (const auto& [name, wanted] : names) {
    if (std::string(asked) == name) {
      STD_TORCH_CHECK(offers(wanted), "FASSD_KERNELS_CPU is '", name,
                      "', which this CPU does not offer");
      return wanted;
    }
  }
  STD_TORCH_CHECK(false, "FASSD_KERNELS_CPU is '", asked,
                  "'; expected portable, avx2, avx512 or amx");
}

}  // namespace

Capability capability() {
  static const Capability chosen = decide();
  return chosen;
}

std::string capability_name() {
  switch (capability()) {
    case Capability::amx:
      return "AVX-512 + AMX";
    case Capability::avx512:
      return "AVX-512";
    case Capability::avx2:
      return "AVX2 + FMA";
    case Capability::emulation:
      return "portable vectors, emulated tiles";
    case Capability::portable:
      break;
  }
  return "portable vectors";
}

}  // namespace fassd::cpu
