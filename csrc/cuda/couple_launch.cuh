// From the plan of a couple of layers to the kernel that it names.

#pragma once

#include "couple.cuh"
#include "variants.cuh"

namespace fassd::cuda {

// The table as a type, as in convolution_launch.cuh.
struct HalfCouples {
  static constexpr const auto& list = half_couples;
};

template <typename T>
void launch_couple(const Context& context, const CouplePlan& plan, const Couple& couple) {
  const dim3 grid = grid_of(context.op, "tiles", plan.cost.blocks);
  const CoupleVariant variant = {plan.variant.warps, plan.odd_tiles, plan.variant.n_tiles};
  with_entry<HalfCouples>(context.op, variant, [&](auto index) {
    constexpr CoupleVariant one = HalfCouples::list[decltype(index)::value];
    context.queue.launch(&couple_kernel<T, one.warps, one.odd_tiles, one.even_tiles>, grid,
                         dim3(one.warps * 32), {plan.layout.total, plan.cost.resident}, couple);
  });
}

}  // namespace fassd::cuda
