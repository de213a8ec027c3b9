// The CUDA backend's operators for tensors of the CPU, where the executor finds their memory. It
// takes the place of csrc/cuda/registration.cpp.

#include <torch/csrc/stable/library.h>

#include "csrc/operators.h"

STABLE_TORCH_LIBRARY_IMPL(fassd_kernels_cuda, CPU, m) {
#define OPERATOR(name, kind, text) m.impl(#name, TORCH_BOX(&fassd::cuda::name));
#include "fassd_kernels/schemas.def"
#undef OPERATOR
}
