#include "couple_launch.cuh"

template void fassd::cuda::launch_couple<__nv_bfloat16>(const Context&, const CouplePlan&,
                                                        const Couple&);
