#include "couple.cuh"

namespace fassd::cuda {

void launch_couple(const Context& context, const CouplePlan& plan, const Couple& couple,
                   __nv_bfloat16) {
  launch_couple_of<__nv_bfloat16>(context, plan, couple);
}

}  // namespace fassd::cuda
