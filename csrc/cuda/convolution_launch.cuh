// From a plan to the kernel that it names.

#pragma once

#include "conv_act.cuh"
#include "convolution_kernel.cuh"

namespace fassd::cuda {

template <typename Math, int warps, int m_tiles, int n_tiles, bool sliding>
void launch_variant(const Context& context, const ConvolutionPlan& plan,
                    const Convolution& convolution, int64_t batch) {
  const int64_t blocks =
      batch * plan.tile.across * int64_t(plan.tile.down) * int64_t(plan.tile.columns);
  context.queue.launch(&convolution_kernel<Math, warps, m_tiles, n_tiles, sliding>,
                       grid_of(context.op, "tiles", blocks), dim3(warps * 32), plan.layout.total,
                       convolution);
}

using Launcher = void (*)(const Context&, const ConvolutionPlan&, const Convolution&, int64_t);

struct Entry {
  Variant variant;
  Launcher launch;
};

template <typename Math, int warps, int m_tiles, int n_tiles, bool sliding = false>
constexpr Entry entry() {
  return {{warps, m_tiles, n_tiles, sliding},
          &launch_variant<Math, warps, m_tiles, n_tiles, sliding>};
}

template <size_t count>
void launch_entry(const Entry (&entries)[count], const Context& context,
                  const ConvolutionPlan& plan, const Convolution& convolution, int64_t batch) {
  for (const Entry& entry : entries) {
    if (entry.variant.warps == plan.variant.warps &&
        entry.variant.m_tiles == plan.variant.m_tiles &&
        entry.variant.n_tiles == plan.variant.n_tiles &&
        entry.variant.sliding == plan.variant.sliding) {
      return entry.launch(context, plan, convolution, batch);
    }
  }
  STD_TORCH_CHECK(false, context.op, ": no kernel of ", plan.variant.warps, " warps and ",
                  plan.variant.m_tiles, " x ", plan.variant.n_tiles, " tiles was compiled");
}

template <typename T>
void launch_half(const Context& context, const ConvolutionPlan& plan,
                 const Convolution& convolution, int64_t batch) {
  using Math = HalfMath<T>;
  static constexpr Entry entries[] = {
      entry<Math, 8, 2, 8>(),       entry<Math, 8, 2, 7>(),       entry<Math, 8, 2, 6>(),
      entry<Math, 8, 2, 5>(),       entry<Math, 8, 2, 4>(),       entry<Math, 8, 2, 3>(),
      entry<Math, 8, 2, 2>(),       entry<Math, 4, 1, 8>(),       entry<Math, 4, 1, 7>(),
      entry<Math, 4, 1, 6>(),       entry<Math, 4, 1, 5>(),       entry<Math, 4, 1, 4>(),
      entry<Math, 4, 1, 3>(),       entry<Math, 4, 1, 2>(),       entry<Math, 4, 4, 6, true>(),
      entry<Math, 4, 4, 5, true>(), entry<Math, 4, 4, 4, true>(), entry<Math, 4, 4, 3, true>(),
      entry<Math, 4, 4, 2, true>(), entry<Math, 4, 2, 8, true>(), entry<Math, 4, 2, 7, true>(),
      entry<Math, 4, 2, 6, true>(), entry<Math, 4, 2, 5, true>(), entry<Math, 4, 2, 4, true>(),
      entry<Math, 4, 2, 3, true>(), entry<Math, 4, 2, 2, true>(),
  };
  launch_entry(entries, context, plan, convolution, batch);
}

}  // namespace fassd::cuda
