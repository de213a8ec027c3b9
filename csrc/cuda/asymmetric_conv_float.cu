#include "asymmetric_conv.cuh"

namespace fassd::cuda {

namespace {

template <typename Math>
void launch_float(const Context& context, const PairPlan& plan, const Pairs& pairs, int count,
                  int64_t blocks, int shared_bytes) {
  (plan.n_tiles == 4
       ? &launch_pair_kernel<Math, 8, 4>
       : &launch_pair_kernel<Math, 8, 8>)(context, pairs, count, blocks, shared_bytes);
}

}  // namespace

void launch_pairs(const Context& context, const PairPlan& plan, const Pairs& pairs, int count,
                  int64_t blocks, int shared_bytes, float) {
  (context.arithmetic == Arithmetic::tf32
       ? &launch_float<Tf32Math>
       : &launch_float<FloatMath>)(context, plan, pairs, count, blocks, shared_bytes);
}

}  // namespace fassd::cuda
