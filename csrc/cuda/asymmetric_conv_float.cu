#include "asymmetric_conv_launch.cuh"

template void fassd::cuda::launch_pair<float>(const Context&, const PairPlan&, const Pair&,
                                              const PairBoxes&);
