#include "convolution_launch.cuh"

namespace fassd::cuda {

void launch_convolution(const Context& context, const ConvolutionPlan& plan,
                        const Convolution& convolution, int64_t batch, __half) {
  launch_half<__half>(context, plan, convolution, batch);
}

}  // namespace fassd::cuda
