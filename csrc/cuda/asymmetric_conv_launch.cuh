// Selects the kernel that a plan of pairs names.

#pragma once

#include <algorithm>
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
void launch_pairs(const Context& context, const std::vector<PairPlan>& plans, const Pairs& pairs,
                  const PairBoxes& boxes) {
  int64_t blocks = 0;
  int shared_bytes = 0, resident = 1;
  for (const PairPlan& plan : plans) {
    blocks = std::max(blocks, plan.cost.blocks);
    shared_bytes = std::max(shared_bytes, plan.layout.total);
    resident = std::max(resident, plan.cost.resident);
  }
  const dim3 grid = grid_of(context.op, "tiles", blocks, int64_t(plans.size()));
  with_math<T>(context, [&](auto math) {
    using List = std::conditional_t<sizeof(T) == 2, HalfPairs, FloatPairs>;
    with_entry<List>(context.op, plans[0].variant, [&](auto index) {
      constexpr Variant variant = List::list[decltype(index)::value];
      context.queue.launch(&pair_kernel<decltype(math), variant.warps, variant.n_tiles>, grid,
                           dim3(variant.warps * 32), {shared_bytes, resident}, pairs, boxes);
    });
  });
}

}  // namespace fassd::cuda
