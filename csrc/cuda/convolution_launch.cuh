// From a plan to the kernel that it names.

#pragma once

#include <iterator>
#include <utility>

#include "conv_act.cuh"
#include "convolution_kernel.cuh"

namespace fassd::cuda {

template <typename Math, const auto& variants, size_t index>
void launch_variant(const Context& context, const Convolution& convolution) {
  constexpr Variant variant = variants[index];
  context.queue.launch(
      &convolution_kernel<Math, variant.warps, variant.m_tiles, variant.n_tiles, variant.sliding>,
      grid_of(context.op, "tiles", convolution.cost.blocks), dim3(variant.warps * 32),
      convolution.layout.total, convolution);
}

template <typename Math, const auto& variants, size_t... index>
void launch_one_of(const Context& context, const Convolution& convolution,
                   std::index_sequence<index...>) {
  const bool compiled = ((convolution.variant == variants[index] &&
                          (launch_variant<Math, variants, index>(context, convolution), true)) ||
                         ...);
  STD_TORCH_CHECK(compiled, context.op, ": no kernel of ", convolution.variant.warps, " warps and ",
                  convolution.variant.m_tiles, " x ", convolution.variant.n_tiles,
                  " tiles was compiled");
}

template <typename T>
void launch_convolution(const Context& context, const Convolution& convolution) {
  constexpr const auto& variants = []() -> const auto& {
    if constexpr (sizeof(T) == 2) {
      return half_variants;
    } else {
      return float_variants;
    }
  }();
  with_math<T>(context, [&](auto math) {
    launch_one_of<decltype(math), variants>(context, convolution,
                                            std::make_index_sequence<std::size(variants)>());
  });
}

}  // namespace fassd::cuda
