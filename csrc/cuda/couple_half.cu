#include "couple.cuh"

namespace fassd::cuda {

void launch_couple(const Context& context, const CouplePlan& plan, const Couple& couple, __half) {
  launch_couple_of<__half>(context, plan, couple);
}

}  // namespace fassd::cuda
