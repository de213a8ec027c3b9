#include "convolution_launch.cuh"

namespace fassd::cuda {

namespace {

template <typename Math>
void launch_float(const Context& context, const ConvolutionPlan& plan,
                  const Convolution& convolution, int64_t batch) {
  static constexpr Entry entries[] = {
      entry<Math, 8, 1, 8>(),
      entry<Math, 8, 1, 4>(),
      entry<Math, 8, 1, 2>(),
      entry<Math, 4, 1, 4>(),
  };
  launch_entry(entries, context, plan, convolution, batch);
}

}  // namespace

void launch_convolution(const Context& context, const ConvolutionPlan& plan,
                        const Convolution& convolution, int64_t batch, float) {
  if (context.arithmetic == Arithmetic::tf32) {
    launch_float<Tf32Math>(context, plan, convolution, batch);
  } else {
    launch_float<FloatMath>(context, plan, convolution, batch);
  }
}

}  // namespace fassd::cuda
