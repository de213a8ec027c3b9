// The work of a launch's warps, and the number of instructions that it takes.

#pragma once

#include <cstdint>

#include "plan.h"

namespace fassd::cuda {

enum class Part { copy, product, epilogue, other };

// Counts of a launch, in units that a warp carries out at a time: see instructions.def.
struct Work {
#define UNIT(name, part, instructions) double name = 0;
#include "instructions.def"
#undef UNIT

  // Calls function(name, part, amount, instructions of one) for each unit.
  template <typename Function>
  void for_each(const Function& function) const {
#define UNIT(name, part, instructions) function(#name, Part::part, name, double(instructions));
#include "instructions.def"
#undef UNIT
  }

  // Warp instructions.
  double instructions() const {
    double sum = 0;
    for_each([&](const char*, Part, double amount, double each) { sum += amount * each; });
    return sum;
  }
  double instructions(Part wanted) const {
    double sum = 0;
    for_each([&](const char*, Part part, double amount, double each) {
      sum += part == wanted ? amount * each : 0;
    });
    return sum;
  }

  void add(const Work& other, double times) {
#define UNIT(name, part, instructions) name += other.name * times;
#include "instructions.def"
#undef UNIT
  }
};

// The work of a block of each kind of launch, whose plan is complete except for its cost.
Work work_of(const ConvolutionPlan& plan, const ConvolutionShape& shape);
Work work_of(const PairPlan& plan, const PairShape& shape);
Work work_of(const StemPlan& plan, const ConvolutionShape& shape);

// The work of a whole launch of upsample_argmax.
Work work_of(const ArgmaxPlan& plan, int64_t batch, int channels, int height, int width);

}  // namespace fassd::cuda
