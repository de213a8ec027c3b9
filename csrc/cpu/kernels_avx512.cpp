// AVX-512: 32 registers of 64 bytes hold 12 channels x 2 vectors of sums.

#if defined(__x86_64__)

#include "kernels_includes.h"

// Headers are included above, for the baseline: a function of theirs compiled here for a wider
// instruction set could be the copy that the linker keeps for everybody.
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((                                                                                \
        target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,amx-tile,amx-bf16,avx512bf16"))), \
    apply_to = function)
#else
// Only what is compiled for TileRegisters has the instructions of the last three.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,amx-tile,amx-bf16,avx512bf16")
#endif
#define FASSD_F16C
#define FASSD_INSTRUCTION_SET avx512
#define FASSD_VECTOR_BYTES 64
#define FASSD_AVX512
#define FASSD_TILE_OUTPUTS 12
#define FASSD_TILES TileRegisters
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
