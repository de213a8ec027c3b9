// From a plan to the kernel that it names.

#pragma once

#include <iterator>
#include <utility>

#include "conv_act.cuh"
#include "convolution_kernel.cuh"

namespace fassd::cuda {

template <typename Math, const auto& variants, size_t index>
void launch_variant(const Context& context, const ConvolutionPlan& plan,
                    const Convolution& convolution) {
  constexpr Variant variant = variants[index];
  context.queue.launch(
      &convolution_kernel<Math, variant.warps, variant.m_tiles, variant.n_tiles, variant.sliding>,
      grid_of(context.op, "tiles", plan.cost.blocks), dim3(variant.warps * 32), plan.layout.total,
      convolution);
}

template <typename Math, const auto& variants, size_t... index>
void launch_one_of(const Context& context, const ConvolutionPlan& plan,
                   const Convolution& convolution, std::index_sequence<index...>) {
  const bool compiled =
      ((plan.variant == variants[index] &&
        (launch_variant<Math, variants, index>(context, plan, convolution), true)) ||
       ...);
  STD_TORCH_CHECK(compiled, context.op, ": no kernel of ", plan.variant.warps, " warps and ",
                  plan.variant.m_tiles, " x ", plan.variant.n_tiles, " tiles was compiled");
}

template <typename T>
void launch_convolution(const Context& context, const ConvolutionPlan& plan,
                        const Convolution& convolution) {
  constexpr const auto& variants = []() -> const auto& {
    if constexpr (sizeof(T) == 2) {
      return half_variants;
    } else {
      return float_variants;
    }
  }();
  with_math<T>(context, [&](auto math) {
    launch_one_of<decltype(math), variants>(context, plan, convolution,
                                            std::make_index_sequence<std::size(variants)>());
  });
}

}  // namespace fassd::cuda
