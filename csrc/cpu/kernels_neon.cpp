// NEON, which every Armv8-A has: 32 registers of 16 bytes hold 12 channels x 2 vectors of sums, two
// vectors of pixels and three of weights.

#if defined(__aarch64__)

#include "capability.h"
#include "kernels_includes.h"

// Only TileMatrices has the instructions of bfloat16.
#if defined(FASSD_BF16)
#define FASSD_TILES TileMatrices
#endif
#define FASSD_INSTRUCTION_SET neon
#define FASSD_VECTOR_BYTES 16
#define FASSD_NEON
#define FASSD_TILE_OUTPUTS 12
#include "kernels_impl.h"

#endif  // __aarch64__
