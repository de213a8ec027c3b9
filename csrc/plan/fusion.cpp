// The conditions for replacing several launches by one.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "plan.h"

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

}  // namespace

bool fuses(bool possible, double together, double apart) {
  const char* text = std::getenv(fusion_variable);
  const std::string asked = text == nullptr ? "" : text;
  if (!possible || asked == "never") {
    return false;
  }
  return asked == "always" || together <= apart;
}

std::vector<ConvolutionShape> convolutions_of(const PairShape& shape) {
  const auto of = [&](int in, int out, int kernel_h, int kernel_w) {
    return convolution_of(shape.batch, shape.height, shape.width, {in}, out, kernel_h, kernel_w,
                          shape.arithmetic);
  };
  if (shape.single) {
    return {of(shape.in_channels, shape.out_channels, 1, 1)};
  }
  std::vector<ConvolutionShape> both = {of(shape.in_channels, shape.middle_channels, 3, 1),
                                        of(shape.middle_channels, shape.out_channels, 1, 3)};
  both[0].dilation_h = both[1].dilation_w = shape.dilation;
  both[1].ending = shape.ending;
  return both;
}

PairsPlan plan_pairs(const std::vector<PairShape>& shapes, const DeviceLimits& limits) {
  PairsPlan plan;
  std::vector<ConvolutionShape> apart;
  // In one launch the pairs share the multiprocessors: it takes at least as long as the longest,
  // and as all their blocks, spread evenly.
  double longest = 0, spread = 0;
  bool possible = shapes.size() <= most_pairs;
  for (const PairShape& shape : shapes) {
    plan.pairs.push_back(plan_pair(shape, limits));
    const PairPlan& pair = plan.pairs.back();
    possible = possible && pair.possible && pair.variant == plan.pairs[0].variant;
    const double waves = double(pair.cost.blocks) / limits.multiprocessors;
    longest = std::max(longest, pair.cost.cycles);
    spread += pair.cost.cycles / std::ceil(waves) * waves;
    plan.rank += pair.cost.rank - pair.cost.cycles;
    for (ConvolutionShape& convolution : convolutions_of(shape)) {
      apart.push_back(std::move(convolution));
    }
  }
  plan.cycles = std::max(longest, spread);
  plan.rank += plan.cycles;
  plan.together = fuses(possible, plan.rank, rank_apart(apart, limits));
  return plan;
}

}  // namespace fassd::cuda
