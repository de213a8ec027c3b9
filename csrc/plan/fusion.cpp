// The conditions for replacing several launches by one.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>

#include "plan.h"
#include "rounding.h"

namespace fassd::cuda {

namespace {

// A convolution of stride 1 on one kind of image.
ConvolutionShape convolution_of(int64_t batch, int height, int width, std::vector<int> channels,
                                int out_channels, int kernel_h, int kernel_w,
                                Arithmetic arithmetic) {
  ConvolutionShape shape;
  shape.batch = batch;
  shape.height = shape.out_height = height;
  shape.width = shape.out_width = width;
  shape.channels = std::move(channels);
  shape.out_channels = out_channels;
  shape.kernel_h = kernel_h;
  shape.kernel_w = kernel_w;
  shape.arithmetic = arithmetic;
  return shape;
}

// The cost of separate launches.
double rank_apart(const std::vector<ConvolutionShape>& shapes, const DeviceLimits& limits) {
  double rank = launch_gap_cycles * double(shapes.size() - 1);
  for (const ConvolutionShape& shape : shapes) {
    rank += plan_convolution(shape, limits).cost.rank;
  }
  return rank;
}

// The plans of a group's convolutions with one kernel; none if one of them does not fit.
std::vector<ConvolutionPlan> plans_with(const Variant& variant,
                                        const std::vector<ConvolutionShape>& shapes,
                                        const DeviceLimits& limits) {
  std::vector<ConvolutionPlan> plans;
  for (const ConvolutionShape& shape : shapes) {
    ConvolutionPlan plan = plan_with(variant, shape, limits);
    if (plan.cost.blocks == 0 && variant.sliding) {
      Variant still = variant;
      still.sliding = false;
      plan = plan_with(still, shape, limits);
    }
    if (plan.cost.blocks == 0 || shape.channels.size() != 1) {
      return {};
    }
    plans.push_back(plan);
  }
  return plans;
}

// The cost of a launch of all these blocks: that of as many average ones, but not less than that of
// the longest convolution alone.
Cost cost_of(const std::vector<ConvolutionPlan>& plans, const std::vector<ConvolutionShape>& shapes,
             const DeviceLimits& limits) {
  static constexpr double Cost::* amounts[] = {&Cost::products,     &Cost::shared_bytes,
                                               &Cost::loaded_bytes, &Cost::stored_bytes,
                                               &Cost::instructions, &Cost::uneven};
  Cost cost;
  int chunks = 0, stages = most_stages;
  double longest = 0;
  for (size_t i = 0; i < plans.size(); i++) {
    const ConvolutionPlan& plan = plans[i];
    cost.blocks += plan.cost.blocks;
    for (double Cost::* amount : amounts) {
      cost.*amount += double(plan.cost.blocks) * plan.cost.*amount;
    }
    chunks = std::max(chunks, chunks_of(shapes[i].channels, plan.chunk));
    stages = std::min(stages, plan.stages);
    longest = std::max(longest, plan.cost.cycles);
    cost.resident = std::min(i > 0 ? cost.resident : plan.cost.resident, plan.cost.resident);
  }
  for (double Cost::* amount : amounts) {
    cost.*amount /= double(cost.blocks);
  }
  predict(cost, plans[0].variant.warps, chunks, stages, shapes[0].arithmetic, limits);
  cost.rank += std::max(longest - cost.cycles, 0.0);
  cost.cycles = std::max(longest, cost.cycles);
  return cost;
}

}  // namespace

bool fuses(const char* kind, bool possible, double together, double apart) {
  const char* text = std::getenv(fusion_variable);
  const std::string asked = text == nullptr ? "" : text;
  return possible && (asked.empty() ? together <= apart : asked == "always" || asked == kind);
}

std::vector<ConvolutionShape> convolutions_of(const PairShape& shape) {
  const auto of = [&](int in, int out, int kernel_h, int kernel_w) {
    return convolution_of(shape.batch, shape.height, shape.width, {in}, out, kernel_h, kernel_w,
                          shape.arithmetic);
  };
  std::vector<ConvolutionShape> both = {of(shape.in_channels, shape.middle_channels, 3, 1),
                                        of(shape.middle_channels, shape.out_channels, 1, 3)};
  both[0].dilation_h = both[1].dilation_w = shape.dilation;
  both[1].ending = shape.ending;
  return both;
}

ConvolutionShape addend_of(const PairShape& shape) {
  return convolution_of(shape.batch, shape.height, shape.width, {shape.in_channels},
                        shape.out_channels, 3, 3, shape.arithmetic);
}

GroupPlan plan_group(const std::vector<ConvolutionShape>& shapes, const DeviceLimits& limits) {
  GroupPlan plan;
  double together = std::numeric_limits<double>::infinity();
  bool found = false;
  for (const Variant& variant : groups_of(shapes[0].arithmetic)) {
    const bool asked_for = is_asked_for(variant);
    std::vector<ConvolutionPlan> plans = plans_with(variant, shapes, limits);
    if (plans.empty()) {
      continue;
    }
    const Cost cost = cost_of(plans, shapes, limits);
    if (asked_for != found ? asked_for : cost.rank < together) {
      together = cost.rank;
      found = asked_for;
      plan.variant = variant;
      plan.plans = std::move(plans);
      plan.cycles = cost.cycles;
    }
  }
  const bool possible = !plan.plans.empty() && shapes.size() > 1 && shapes.size() <= most_grouped;
  const double apart = rank_apart(shapes, limits);
  plan.together = fuses("groups", possible, together, apart);
  plan.rank = plan.together ? together : apart;
  return plan;
}

PairPlan plan_asymmetric(const PairShape& shape, const DeviceLimits& limits) {
  PairPlan plan = plan_pair(shape, limits);
  const std::vector<ConvolutionShape> both = convolutions_of(shape);
  double together = plan.cost.rank, apart = rank_apart({both[1]}, limits) + launch_gap_cycles;
  if (shape.ending == Ending::addend) {
    together += rank_apart({addend_of(shape)}, limits) + launch_gap_cycles;
    apart += plan_group({addend_of(shape), both[0]}, limits).rank;
  } else {
    apart += rank_apart({both[0]}, limits);
  }
  plan.together = fuses("pairs", plan.possible, together, apart);
  return plan;
}

}  // namespace fassd::cuda
