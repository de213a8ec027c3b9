#include "convolution_launch.cuh"

template void fassd::cuda::launch_convolution<__nv_bfloat16>(const Context&, const ConvolutionPlan&,
                                                             const Convolution&, const Boxes&);
