// The compiler's baseline, whatever it is: vectors of 16 bytes, 6 channels x 2 of sums.

#include "kernels_includes.h"

#define FASSD_INSTRUCTION_SET portable
#define FASSD_VECTOR_BYTES 16
#define FASSD_TILE_OUTPUTS 6
#define FASSD_TILES TileEmulation<uint16_t>
#include "kernels_impl.h"
