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
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace fassd::cpu {

namespace {

constexpr std::array<std::pair<const char*, Capability>, 7> names = {{
    {"portable", Capability::portable},
    {"avx2", Capability::avx2},
    {"avx512", Capability::avx512},
    {"amx", Capability::amx},
    {"neon", Capability::neon},
    {"neon_bf16", Capability::neon_bf16},
    {"emulation", Capability::emulation},
}};

#if defined(__x86_64__)
// Linux gives a process the tiles' registers, of 8 KB, when it asks for them.
bool offers_tiles() {
#if defined(FASSD_AMX)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned bfloat16 = 1u << 22, registers = 1u << 24, bytes = 1u << 25;
  constexpr unsigned all = bfloat16 | registers | bytes, vectors = 1u << 5;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & all) != all ||
      !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & vectors)) {
    return false;
  }
  constexpr long request = 0x1023, data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, data) == 0;
#else
  return false;
#endif
}
#endif

#if defined(__aarch64__)
// Products of matrices of bfloat16, as the operating system reports them.
bool offers_bfloat16() {
#if defined(FASSD_BF16) && defined(__linux__)
  constexpr unsigned long bfloat16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
  return getauxval(AT_HWCAP2) & bfloat16;
#elif defined(FASSD_BF16) && defined(__APPLE__)
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) == 0 && found;
#else
  return false;
#endif
}
#endif

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
    case Capability::neon:
    case Capability::neon_bf16:
      return false;
    default:
      return true;
  }
#elif defined(__aarch64__)
  if (wanted == Capability::neon || wanted == Capability::neon_bf16) {
    return wanted == Capability::neon || offers_bfloat16();
  }
#endif
  return wanted == Capability::portable || wanted == Capability::emulation;
}

Capability decide() {
  const char* asked = std::getenv("FASSD_KERNELS_CPU");
  if (asked == nullptr || *asked == '\0') {
    for (Capability best : {Capability::amx, Capability::avx512, Capability::avx2,
                            Capability::neon_bf16, Capability::neon}) {
      if (offers(best)) {
        return best;
      }
    }
    return Capability::portable;
  }
  for (const auto& [name, wanted] : names) {
    if (std::string(asked) == name) {
      STD_TORCH_CHECK(offers(wanted), "FASSD_KERNELS_CPU is '", name,
                      "', which this CPU does not offer; unset it for the best that it does");
      return wanted;
    }
  }
  STD_TORCH_CHECK(false, "FASSD_KERNELS_CPU is '", asked,
                  "'; expected portable, avx2, avx512 or amx; on aarch64 portable, neon or "
                  "neon_bf16");
}

}  // namespace

Capability capability() {
  static const Capability chosen = decide();
  return chosen;
}

bool has_byte_products() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

std::string capability_name() {
  switch (capability()) {
    case Capability::amx:
      return "AVX-512 + AMX";
    case Capability::avx512:
      return "AVX-512";
    case Capability::avx2:
      return "AVX2 + FMA";
    case Capability::neon_bf16:
      return "NEON + BF16";
    case Capability::neon:
      return "NEON";
    case Capability::emulation:
      return "portable vectors, emulated tiles";
    case Capability::portable:
      break;
  }
  return "portable vectors";
}

}  // namespace fassd::cpu
