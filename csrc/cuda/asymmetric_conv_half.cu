#include "asymmetric_conv.cuh"

namespace fassd::cuda {

namespace {

template <typename T, int warps>
void launch_half(const Context& context, const PairPlan& plan, const Pairs& pairs, int count,
                 int64_t blocks, int shared_bytes) {
  using Math = HalfMath<T>;
  const auto launch = plan.n_tiles == 4   ? &launch_pair_kernel<Math, warps, 4>
                      : plan.n_tiles == 8 ? &launch_pair_kernel<Math, warps, 8>
                                          : &launch_pair_kernel<Math, warps, 16>;
  launch(context, pairs, count, blocks, shared_bytes);
}

}  // namespace

void launch_pairs(const Context& context, const PairPlan& plan, const Pairs& pairs, int count,
                  int64_t blocks, int shared_bytes, __half) {
  (plan.warps == 8 ? &launch_half<__half, 8> : &launch_half<__half, 4>)(context, plan, pairs, count,
                                                                        blocks, shared_bytes);
}

void launch_pairs(const Context& context, const PairPlan& plan, const Pairs& pairs, int count,
                  int64_t blocks, int shared_bytes, __nv_bfloat16) {
  (plan.warps == 8
       ? &launch_half<__nv_bfloat16, 8>
       : &launch_half<__nv_bfloat16, 4>)(context, plan, pairs, count, blocks, shared_bytes);
}

}  // namespace fassd::cuda
