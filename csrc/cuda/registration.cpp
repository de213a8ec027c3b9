// The extension fassd_kernels._C_cuda: CUDA kernels for the operators of
// torch.ops.fassd_kernels_cuda, which fassd_kernels/ops.py defines.

#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "../operators.h"

STABLE_TORCH_LIBRARY_IMPL(fassd_kernels_cuda, CUDA, m) {
#define OPERATOR(name, kind, text) m.impl(#name, TORCH_BOX(&fassd::cuda::name));
#include "../../fassd_kernels/schemas.def"
#undef OPERATOR
}

// Importing the module runs the registrations above; it holds nothing else.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
