// What kernel-builder compiles as the binding: the operators of fassd_kernels._C and, where it
// builds for CUDA, of fassd_kernels._C_cuda, in one module that has the builder's name.

#include "../csrc/registration.cpp"
#if defined(CUDA_KERNEL)
#include "../csrc/cuda/registration.cpp"
#endif

#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
