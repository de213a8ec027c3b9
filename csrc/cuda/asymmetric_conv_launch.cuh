// Selects the kernel that a plan of a pair names.

#pragma once

#include <type_traits>

#include "asymmetric_conv.cuh"
#include "variants.cuh"

namespace fassd::cuda {

// The tables as types, as in convolution_launch.cuh.
struct HalfPairs {
  static constexpr const auto& list = half_pairs;
};
struct FloatPairs {
  static constexpr const auto& list = float_pairs;
};

template <typename T>
void launch_pair(const Context& context, const PairPlan& plan, const Pair& pair,
                 const PairBoxes& boxes) {
  const dim3 grid = grid_of(context.op, "tiles", plan.cost.blocks);
  with_math<T>(context, [&](auto math) {
    using List = std::conditional_t<sizeof(T) == 2, HalfPairs, FloatPairs>;
    with_entry<List>(context.op, plan.variant, [&](auto index) {
      constexpr Variant variant = List::list[decltype(index)::value];
      context.queue.launch(&pair_kernel<decltype(math), variant.warps, variant.n_tiles>, grid,
                           dim3(variant.warps * 32), {plan.layout.total, plan.cost.resident}, pair,
                           boxes);
    });
  });
}

}  // namespace fassd::cuda
