#include "asymmetric_conv_launch.cuh"

template void fassd::cuda::launch_pairs<__half>(const Context&, const std::vector<PairPlan>&,
                                                const Pairs&, const PairBoxes&);
template void fassd::cuda::launch_pairs<__nv_bfloat16>(const Context&, const std::vector<PairPlan>&,
                                                       const Pairs&, const PairBoxes&);
