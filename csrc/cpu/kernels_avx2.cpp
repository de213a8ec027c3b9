// AVX2 + FMA: 16 registers of 32 bytes hold 6 channels x 2 vectors of sums.

#if defined(__x86_64__)

#include "kernels_includes.h"

// Headers are included above, for the baseline: a function of theirs compiled here for a wider
// instruction set could be the copy that the linker keeps for everybody.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASSD_F16C
#define FASSD_INSTRUCTION_SET avx2
#define FASSD_VECTOR_BYTES 32
#define FASSD_TILE_OUTPUTS 6
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
