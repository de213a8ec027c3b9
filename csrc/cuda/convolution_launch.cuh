// From a plan to the kernel that it names.

#pragma once

#include <iterator>
#include <type_traits>
#include <utility>

#include "conv_act.cuh"
#include "convolution_kernel.cuh"

namespace fassd::cuda {

// The tables as types: references to them as template arguments crash nvcc 13.0.
struct HalfVariants {
  static constexpr const auto& list = half_variants;
};
struct FloatVariants {
  static constexpr const auto& list = float_variants;
};

template <typename Math, typename Variants, size_t index>
void launch_variant(const Context& context, const ConvolutionPlan& plan,
                    const Convolution& convolution) {
  constexpr Variant variant = Variants::list[index];
  context.queue.launch(
      &convolution_kernel<Math, variant.warps, variant.m_tiles, variant.n_tiles, variant.sliding>,
      grid_of(context.op, "tiles", plan.cost.blocks), dim3(variant.warps * 32),
      {plan.layout.total, plan.cost.resident}, convolution);
}

template <typename Math, typename Variants, size_t... index>
void launch_one_of(const Context& context, const ConvolutionPlan& plan,
                   const Convolution& convolution, std::index_sequence<index...>) {
  const bool compiled =
      ((plan.variant == Variants::list[index] &&
        (launch_variant<Math, Variants, index>(context, plan, convolution), true)) ||
       ...);
  STD_TORCH_CHECK(compiled, context.op, ": no kernel of ", plan.variant.warps, " warps and ",
                  plan.variant.m_tiles, " x ", plan.variant.n_tiles, " tiles was compiled");
}

template <typename T>
void launch_convolution(const Context& context, const ConvolutionPlan& plan,
                        const Convolution& convolution) {
  using Variants = std::conditional_t<sizeof(T) == 2, HalfVariants, FloatVariants>;
  with_math<T>(context, [&](auto math) {
    launch_one_of<decltype(math), Variants>(context, plan, convolution,
                                            std::make_index_sequence<std::size(Variants::list)>());
  });
}

}  // namespace fassd::cuda
