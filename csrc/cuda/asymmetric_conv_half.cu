#include "asymmetric_conv_launch.cuh"

template void fassd::cuda::launch_pair<__half>(const Context&, const PairPlan&, const Pair&,
                                               const PairBoxes&);
template void fassd::cuda::launch_pair<__nv_bfloat16>(const Context&, const PairPlan&, const Pair&,
                                                      const PairBoxes&);
