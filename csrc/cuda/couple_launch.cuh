// From the plan of a couple of layers to the kernel that it names.

#pragma once

#include "couple.cuh"

namespace fassd::cuda {

template <typename T>
void launch_couple(const Context& context, const CouplePlan& plan, const Couple& couple) {
  const dim3 grid = grid_of(context.op, "tiles", plan.cost.blocks);
  with_constant<8, 4>(context.op, plan.variant.warps, [&](auto warps) {
    with_constant<2, 3>(context.op, plan.odd_tiles, [&](auto odd) {
      with_constant<3, 4, 6, 8>(context.op, plan.variant.n_tiles, [&](auto even) {
        context.queue.launch(
            &couple_kernel<T, decltype(warps)::value, decltype(odd)::value, decltype(even)::value>,
            grid, dim3(warps * 32), {plan.layout.total, plan.cost.resident}, couple);
      });
    });
  });
}

}  // namespace fassd::cuda
