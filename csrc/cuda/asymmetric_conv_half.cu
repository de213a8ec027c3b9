#include "asymmetric_conv_launch.cuh"

template void fassd::cuda::launch_pairs<__half>(const Context&, const Pairs&, int);
template void fassd::cuda::launch_pairs<__nv_bfloat16>(const Context&, const Pairs&, int);
