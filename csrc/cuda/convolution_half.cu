#include "convolution_launch.cuh"

template void fassd::cuda::launch_convolution<__half>(const Context&, const ConvolutionPlan&,
                                                      const Convolution&, const Boxes&);
