// The operators as C++ functions, one namespace per device: for each row of
// fassd_kernels/schemas.def a function with the operator's name and arguments.
// fassd_kernels/reference defines their meaning, shapes and errors.

#pragma once

#include <torch/csrc/stable/ops.h>

#include "schema.h"

namespace fassd {

// Arguments of each operator, as PyTorch's schemas write them.
namespace arguments {
#define OPERATOR(name, kind, text) inline constexpr std::string_view name = text;
#include "../fassd_kernels/schemas.def"
#undef OPERATOR
}  // namespace arguments

// Additional arguments of a CUDA kernel, by kind: if it multiplies, `allow_tf32`, which lets
// products of float32 round to TF32.
namespace kinds {
template <const std::string_view& text>
using multiplies = Signature<Tensor, text, bool>;
template <const std::string_view& text>
using maps = Signature<Tensor, text>;
template <const std::string_view& text>
using converts = Signature<Tensor, text>;
template <const std::string_view& text>
using labels = Signature<Tensor, text>;
template <const std::string_view& text>
using packs = Signature<Tensor, text>;
}  // namespace kinds

namespace cpu {
#define OPERATOR(name, kind, text) Signature<Tensor, arguments::name> name;
#include "../fassd_kernels/schemas.def"
#undef OPERATOR
}  // namespace cpu

// On images whose pixels may be padded to whole vectors.
namespace cuda {
#define OPERATOR(name, kind, text) kinds::kind<arguments::name> name;
#include "../fassd_kernels/schemas.def"
#undef OPERATOR
}  // namespace cuda

}  // namespace fassd
