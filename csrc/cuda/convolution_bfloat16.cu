#include "convolution_launch.cuh"

namespace fassd::cuda {

void launch_convolution(const Context& context, const ConvolutionPlan& plan,
                        const Convolution& convolution, int64_t batch, __nv_bfloat16) {
  launch_half<__nv_bfloat16>(context, plan, convolution, batch);
}

}  // namespace fassd::cuda
