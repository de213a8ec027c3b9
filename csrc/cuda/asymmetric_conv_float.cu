#include "asymmetric_conv_launch.cuh"

template void fassd::cuda::launch_pairs<float>(const Context&, const std::vector<PairPlan>&,
                                               const Pairs&, const PairBoxes&);
