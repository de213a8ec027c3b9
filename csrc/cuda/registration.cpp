// The extension fassd_kernels._C_cuda: CUDA kernels for the operators of
// torch.ops.fassd_kernels_cuda, which fassd_kernels/ops.py defines.

#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "../operators.h"

STABLE_TORCH_LIBRARY_IMPL(fassd_kernels_cuda, CUDA, m) {
  m.impl("conv_act", TORCH_BOX(&fassd::cuda::conv_act));
  m.impl("asymmetric_conv", TORCH_BOX(&fassd::cuda::asymmetric_conv));
  m.impl("dapf", TORCH_BOX(&fassd::cuda::dapf));
  m.impl("aspp", TORCH_BOX(&fassd::cuda::aspp));
  m.impl("hardblock", TORCH_BOX(&fassd::cuda::hardblock));
  m.impl("mda", TORCH_BOX(&fassd::cuda::mda));
  m.impl("upsample_conv1x1", TORCH_BOX(&fassd::cuda::upsample_conv1x1));
  m.impl("pack_weight", TORCH_BOX(&fassd::cuda::pack_weight));
  m.impl("upsample", TORCH_BOX(&fassd::cuda::upsample));
  m.impl("upsample_argmax", TORCH_BOX(&fassd::cuda::upsample_argmax));
  m.impl("normalize", TORCH_BOX(&fassd::cuda::normalize));
  m.impl("normalize_conv_act", TORCH_BOX(&fassd::cuda::normalize_conv_act));
}

// Importing the module runs the registrations above; it holds nothing else.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
