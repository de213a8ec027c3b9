// The extension fassd_kernels._C: operator schemas, and the CPU kernels behind them.

#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/batch_norm.h"
#include "cpu/capability.h"
#include "cpu/pixel_losses.h"
#include "cpu/pool.h"
#include "cpu/quantized.h"
#include "cpu/upsample.h"
#include "operators.h"

STABLE_TORCH_LIBRARY(fassd_kernels, m) {
#define OPERATOR(name, kind, text) m.def(#name "(" text ") -> Tensor");
#include "../fassd_kernels/schemas.def"
#undef OPERATOR
  m.def(
      "batch_norm_act(Tensor input, Tensor? weight, Tensor? bias, Tensor? slope, float eps, "
      "str activation) -> (Tensor, Tensor)");
  m.def(
      "batch_norm_act_backward(Tensor gradient, Tensor input, Tensor statistics, Tensor? weight, "
      "Tensor? bias, Tensor? slope, str activation) -> (Tensor, Tensor)");
  m.def("upsample_backward(Tensor gradient, int[2] size) -> Tensor");
  m.def("upsample_rows(Tensor input, int[2] size, int[4] rows) -> Tensor");
  m.def("upsample_argmax_rows(Tensor input, int[2] size, int[4] rows) -> Tensor");
  m.def(
      "upsample_confidence_rows(Tensor input, int[2] size, int[4] rows, str measure, "
      "float temperature) -> Tensor");
  m.def(
      "upsample_conv1x1_rows(Tensor[] low, Tensor[] skip, Tensor weight, Tensor? bias, "
      "Tensor? slope, Tensor[]? packed, str activation, int[4] rows) -> Tensor");
  m.def("pixel_losses(Tensor logits, Tensor labels, Tensor groups, int ignored) -> Tensor");
  m.def(
      "pixel_losses_backward(Tensor gradient, Tensor logits, Tensor labels, Tensor groups, "
      "int ignored) -> Tensor");
  m.def("quantize(Tensor input, float scale, int zero) -> Tensor");
  m.def(
      "quantized_conv_act(Tensor[] inputs, Tensor weight, Tensor factor, Tensor bias, "
      "Tensor? slope, Tensor? residual, Tensor packed, *, int[] zeros, float residual_scale=1., "
      "int residual_zero=0, float scale=0., int zero=0, ScalarType dtype, int[2] stride=1, "
      "int[2] dilation=1, str activation=\"none\", int pool=1) -> Tensor");
  m.def("pack_quantized_weight(Tensor weight, int[2] stride, int[2] dilation) -> Tensor");
  m.def("quantized_upsample(Tensor input, SymInt[2] size, bool align_corners) -> Tensor");
  m.def(
      "quantized_sum(Tensor[] inputs, Tensor factors, Tensor bias, Tensor? slope, *, float scale, "
      "int zero, str activation=\"none\") -> Tensor");
  m.def(
      "conv_act_quantized(Tensor[] inputs, Tensor weight, Tensor? bias, Tensor? slope, "
      "Tensor? packed, *, float scale, int zero, int[2] stride=1, int[2] dilation=1, "
      "str activation=\"none\") -> Tensor");
  m.def("cpu_capability() -> str");
  m.def("release_memory() -> int");
  m.def("held_memory() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fassd_kernels, CompositeImplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&fassd::cpu::capability_name));
  m.impl("release_memory", TORCH_BOX(&fassd::cpu::release_kept_memory));
  m.impl("held_memory", TORCH_BOX(&fassd::cpu::held_memory));
}

STABLE_TORCH_LIBRARY_IMPL(fassd_kernels, CPU, m) {
#define OPERATOR(name, kind, text) m.impl(#name, TORCH_BOX(&fassd::cpu::name));
#include "../fassd_kernels/schemas.def"
#undef OPERATOR
  m.impl("batch_norm_act", TORCH_BOX(&fassd::cpu::batch_norm_act));
  m.impl("batch_norm_act_backward", TORCH_BOX(&fassd::cpu::batch_norm_act_backward));
  m.impl("upsample_backward", TORCH_BOX(&fassd::cpu::upsample_backward));
  m.impl("upsample_rows", TORCH_BOX(&fassd::cpu::upsample_rows));
  m.impl("upsample_argmax_rows", TORCH_BOX(&fassd::cpu::upsample_argmax_rows));
  m.impl("upsample_confidence_rows", TORCH_BOX(&fassd::cpu::upsample_confidence_rows));
  m.impl("upsample_conv1x1_rows", TORCH_BOX(&fassd::cpu::upsample_conv1x1_rows));
  m.impl("quantize", TORCH_BOX(&fassd::cpu::quantize));
  m.impl("quantized_conv_act", TORCH_BOX(&fassd::cpu::quantized_conv_act));
  m.impl("pack_quantized_weight", TORCH_BOX(&fassd::cpu::pack_quantized_weight));
  m.impl("quantized_upsample", TORCH_BOX(&fassd::cpu::quantized_upsample));
  m.impl("quantized_sum", TORCH_BOX(&fassd::cpu::quantized_sum));
  m.impl("conv_act_quantized", TORCH_BOX(&fassd::cpu::conv_act_quantized));
  m.impl("pixel_losses", TORCH_BOX(&fassd::cpu::pixel_losses));
  m.impl("pixel_losses_backward", TORCH_BOX(&fassd::cpu::pixel_losses_backward));
}

// Importing the module runs the registrations above; it holds nothing else.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
