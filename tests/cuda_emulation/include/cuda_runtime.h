// CUDA's C++ for the CPU: what the kernels of this project use of it, with the checks that a GPU
// does not make. See tests/cuda_emulation/README.md.

#pragma once

#include "fassd_emulation/types.h"
// The order matters: the words come before their users.
#include "fassd_emulation/device.h"
#include "fassd_emulation/intrinsics.h"
