#include "couple_launch.cuh"

template void fassd::cuda::launch_couple<__half>(const Context&, const CouplePlan&, const Couple&);
