// From the plan of a couple of layers to the kernel that it names.

#pragma once

#include "couple.cuh"

namespace fassd::cuda {

template <typename T>
void launch_couple(const Context& context, const Couple& couple) {
  const dim3 grid = grid_of(context.op, "tiles", couple.cost.blocks);
  with_constant<8, 4>(context.op, couple.variant.warps, [&](auto warps) {
    with_constant<2, 3>(context.op, couple.odd_tiles, [&](auto odd) {
      with_constant<3, 4, 6, 8>(context.op, couple.variant.n_tiles, [&](auto even) {
        context.queue.launch(
            &couple_kernel<T, decltype(warps)::value, decltype(odd)::value, decltype(even)::value>,
            grid, dim3(warps * 32), couple.layout.total, couple);
      });
    });
  });
}

}  // namespace fassd::cuda
