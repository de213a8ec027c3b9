// Which instruction set the CPU kernels run on.

#pragma once

#include <string>

// Whether the compiler knows AMX: GCC from 11 on, Clang from 12 on.
#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define FASSD_AMX
#endif

// Whether the compiler knows bfloat16 of Armv8.6: GCC from 10 on, Clang from 16 on.
#if defined(__aarch64__) && \
    ((defined(__clang__) && __clang_major__ >= 16) || (!defined(__clang__) && __GNUC__ >= 10))
#define FASSD_BF16
#endif

namespace fassd::cpu {

// amx: AVX-512, and bfloat16 by its tiles. neon_bf16: NEON, and bfloat16 by products of matrices.
// emulation: portable, with tiles in plain C++; for tests.
enum class Capability { portable, avx2, avx512, amx, neon, neon_bf16, emulation };

// The best that was compiled in and that this CPU and operating system offer, or the one that the
// environment variable FASSD_KERNELS_CPU names (portable, avx2, avx512, amx, neon, neon_bf16,
// emulation). Decided once per process. Throws where the one named is unknown or not offered.
Capability capability();

// Whether the CPU adds up products of bytes (AVX512-VNNI).
bool has_byte_products();

// Its name, for people: "AVX-512 + AMX", "AVX-512", "AVX2 + FMA", "NEON + BF16", "NEON" or
// "portable vectors".
std::string capability_name();

}  // namespace fassd::cpu
