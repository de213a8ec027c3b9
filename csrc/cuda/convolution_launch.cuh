// Selects the kernel that a plan names.

#pragma once

#include <type_traits>

#include "conv_act.cuh"
#include "convolution_kernel.cuh"
#include "variants.cuh"

namespace fassd::cuda {

// The tables as types: references to them as template arguments crash nvcc 13.0.
struct HalfVariants {
  static constexpr const auto& list = half_variants;
};
struct FloatVariants {
  static constexpr const auto& list = float_variants;
};

template <typename T>
void launch_convolution(const Context& context, const ConvolutionPlan& plan,
                        const Convolution& convolution, const Boxes& boxes) {
  const dim3 grid =
      grid_of(context.op, "tiles", convolution.tiles > 1 ? plan.grid : plan.cost.blocks);
  with_math<T>(context, [&](auto math) {
    using List = std::conditional_t<sizeof(T) == 2, HalfVariants, FloatVariants>;
    with_entry<List>(context.op, plan.variant, [&](auto index) {
      constexpr Variant one = List::list[decltype(index)::value];
      context.queue.launch(&convolution_kernel<decltype(math), one.warps, one.m_tiles, one.n_tiles,
                                               one.sliding, one.splits>,
                           grid, dim3(one.warps * 32), {plan.layout.total, plan.cost.resident},
                           convolution, boxes);
    });
  });
}

}  // namespace fassd::cuda
