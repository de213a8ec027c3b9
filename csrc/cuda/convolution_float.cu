#include "convolution_launch.cuh"

template void fassd::cuda::launch_convolution<float>(const Context&, const ConvolutionPlan&,
                                                     const Convolution&, const Boxes&);
