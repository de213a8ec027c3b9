// AVX-512: 32 registers of 64 bytes hold 12 channels x 2 vectors of sums.

#if defined(__x86_64__)

#include "capability.h"
#include "kernels_includes.h"

// Headers are included above, for the baseline: a function of theirs compiled here for a wider
// instruction set could be the copy that the linker keeps for everybody.
// Only what is compiled for TileRegisters has the instructions of AMX and AVX512-BF16.
#if defined(FASSD_AMX) && defined(__clang__)
#pragma clang attribute push(                                                                        \
    __attribute__((target(                                                                           \
        "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,amx-tile,amx-bf16,amx-int8,avx512bf16"))), \
    apply_to = function)
#elif defined(FASSD_AMX)
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,amx-tile,amx-bf16,amx-int8,avx512bf16")
#elif defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#if defined(FASSD_AMX)
#define FASSD_TILES TileRegisters<uint16_t>, TileRegisters<uint8_t>
#endif
#define FASSD_F16C
#define FASSD_INSTRUCTION_SET avx512
#define FASSD_VECTOR_BYTES 64
#define FASSD_AVX512
#define FASSD_TILE_OUTPUTS 12
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
