#include "plan_operator.h"

#include <torch/csrc/stable/macros.h>

#include <optional>

#include "../checks.h"
#include "plan.h"

namespace fassd::cuda {

namespace {

Tensor numbers(const std::vector<double>& values) {
  Tensor tensor = torch::stable::empty({int64_t(values.size())}, ScalarType::Double, std::nullopt,
                                       std::nullopt, std::nullopt, std::nullopt);
  double* data = static_cast<double*>(tensor.mutable_data_ptr());
  for (size_t i = 0; i < values.size(); i++) {
    data[i] = values[i];
  }
  return tensor;
}

// A number of a plan, from `least` to `most`: beyond, the plan's own sums would not fit an int.
int number_of(const char* name, int64_t value, int64_t least = 1, int64_t most = int64_t(1) << 30) {
  STD_TORCH_CHECK(value >= least && value <= most, name, " is ", value, "; expected ", least,
                  " to ", most);
  return int(value);
}

std::vector<int> channels_of(const std::vector<int64_t>& channels) {
  int64_t total = 0;
  for (int64_t count : channels) {
    total = number_of("channels", total + number_of("channels", count, 0), 0);
  }
  return std::vector<int>(channels.begin(), channels.end());
}

// Throws where a plan's blocks could not be counted.
void check_result(int64_t batch, int64_t channels, int64_t height, int64_t width) {
  ImageSize{batch, channels, height, width}.numel();
}

DeviceLimits limits_of(const std::vector<int64_t>& gpu) {
  STD_TORCH_CHECK(gpu.size() == 3, "gpu has ", gpu.size(), " numbers; expected 3");
  return {number_of("multiprocessors", gpu[0]), number_of("shared memory", gpu[1]),
          number_of("capability", gpu[2])};
}

Arithmetic arithmetic_of(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value <= 2, "arithmetic is ", value, "; expected 0 to 2");
  return static_cast<Arithmetic>(value);
}

std::vector<double> describe(const Variant& variant, const Tile& tile, int taps, int chunk,
                             int stages, const SharedLayout& layout, const Cost& cost) {
  return {double(variant.warps),   double(variant.m_tiles),
          double(variant.n_tiles), double(1 << tile.width_log2),
          double(tile.height),     double(taps),
          double(chunk),           double(stages),
          double(layout.total),    double(cost.blocks),
          double(cost.resident),   cost.products,
          cost.shared_bytes,       cost.loaded_bytes,
          cost.stored_bytes,       cost.cycles};
}

}  // namespace

Tensor convolution_plan(const std::vector<int64_t>& shape, const std::vector<int64_t>& channels,
                        const std::vector<int64_t>& gpu) {
  STD_TORCH_CHECK(shape.size() == 14, "shape has ", shape.size(), " numbers; expected 14");
  ConvolutionShape asked;
  asked.batch = number_of("batch", shape[0]);
  asked.height = number_of("height", shape[1]);
  asked.width = number_of("width", shape[2]);
  asked.out_height = number_of("height of the result", shape[3]);
  asked.out_width = number_of("width of the result", shape[4]);
  asked.channels = channels_of(channels);
  asked.out_channels = number_of("channels of the result", shape[5]);
  asked.kernel_h = number_of("height of the kernel", shape[6], 1, 3);
  asked.kernel_w = number_of("width of the kernel", shape[7], 1, 3);
  asked.stride_h = number_of("stride", shape[8]);
  asked.stride_w = number_of("stride", shape[9]);
  asked.dilation_h = number_of("dilation", shape[10]);
  asked.dilation_w = number_of("dilation", shape[11]);
  asked.pool = number_of("pool", shape[12], 1, 2);
  check_result(asked.batch, asked.out_channels, asked.out_height, asked.out_width);
  asked.arithmetic = arithmetic_of(shape[13]);
  const ConvolutionPlan plan = plan_convolution(asked, limits_of(gpu));
  return numbers(describe(plan.variant, plan.tile, plan.taps.count, plan.chunk, plan.stages,
                          plan.layout, plan.cost));
}

Tensor pair_plan(const std::vector<int64_t>& shape, const std::vector<int64_t>& gpu) {
  STD_TORCH_CHECK(shape.size() == 9, "shape has ", shape.size(), " numbers; expected 9");
  PairShape asked;
  asked.batch = number_of("batch", shape[0]);
  asked.height = number_of("height", shape[1]);
  asked.width = number_of("width", shape[2]);
  asked.in_channels = number_of("channels", shape[3]);
  asked.middle_channels = number_of("channels between", shape[4]);
  asked.out_channels = number_of("channels of the result", shape[5]);
  asked.dilation = number_of("dilation", shape[6]);
  check_result(asked.batch, asked.out_channels, asked.height, asked.width);
  asked.single = shape[7] != 0;
  asked.arithmetic = arithmetic_of(shape[8]);
  const PairPlan plan = plan_pair(asked, limits_of(gpu));
  if (!plan.possible) {
    return numbers({});
  }
  return numbers(describe({plan.warps, pair_m_tiles, plan.n_tiles}, plan.tile,
                          plan.first.count + plan.second.count, plan.chunk, plan.stages,
                          plan.layout, plan.cost));
}

Tensor couple_plan(const std::vector<int64_t>& shape, const std::vector<int64_t>& channels,
                   const std::vector<int64_t>& gpu) {
  STD_TORCH_CHECK(shape.size() == 6, "shape has ", shape.size(), " numbers; expected 6");
  CoupleShape asked;
  asked.batch = number_of("batch", shape[0]);
  asked.height = number_of("height", shape[1]);
  asked.width = number_of("width", shape[2]);
  asked.channels = channels_of(channels);
  asked.odd_channels = number_of("channels of the odd layer", shape[3]);
  asked.even_channels = number_of("channels of the even layer", shape[4]);
  check_result(asked.batch, asked.even_channels, asked.height, asked.width);
  asked.arithmetic = arithmetic_of(shape[5]);
  const CouplePlan plan = plan_couple(asked, limits_of(gpu));
  if (!plan.possible) {
    return numbers({});
  }
  const Tile tile = {couple_columns_log2, couple_rows * plan.warps, plan.across, plan.down,
                     plan.columns};
  return numbers(describe({plan.warps, couple_rows, plan.even_tiles}, tile, 18, plan.chunk,
                          plan.stages, plan.layout, plan.cost));
}

Tensor convolution_variants(int64_t arithmetic) {
  std::vector<double> values;
  for (const Variant& variant : variants_of(arithmetic_of(arithmetic))) {
    for (int value : {variant.warps, variant.m_tiles, variant.n_tiles, int(variant.sliding)}) {
      values.push_back(value);
    }
  }
  return torch::stable::view(numbers(values), {int64_t(values.size()) / 4, 4});
}

}  // namespace fassd::cuda
