// From the plan of pairs to the kernel that it names.

#pragma once

#include <algorithm>

#include "asymmetric_conv.cuh"

namespace fassd::cuda {

template <typename T>
void launch_pairs(const Context& context, const std::vector<PairPlan>& plans, const Pairs& pairs) {
  int64_t blocks = 0;
  int shared_bytes = 0, resident = 1;
  for (const PairPlan& plan : plans) {
    blocks = std::max(blocks, plan.cost.blocks);
    shared_bytes = std::max(shared_bytes, plan.layout.total);
    resident = std::max(resident, plan.cost.resident);
  }
  const dim3 grid = grid_of(context.op, "tiles", blocks, int64_t(plans.size()));
  const Variant& variant = plans[0].variant;
  with_math<T>(context, [&](auto math) {
    const auto launch = [&](auto warps, auto n_tiles) {
      context.queue.launch(
          &pair_kernel<decltype(math), decltype(warps)::value, decltype(n_tiles)::value>, grid,
          dim3(warps * 32), {shared_bytes, resident}, pairs);
    };
    if constexpr (sizeof(T) == 2) {
      with_constant<8, 4>(context.op, variant.warps, [&](auto warps) {
        with_constant<4, 8, 16>(context.op, variant.n_tiles,
                                [&](auto n_tiles) { launch(warps, n_tiles); });
      });
    } else {
      with_constant<4, 8>(context.op, variant.n_tiles,
                          [&](auto n_tiles) { launch(std::integral_constant<int, 8>(), n_tiles); });
    }
  });
}

}  // namespace fassd::cuda
