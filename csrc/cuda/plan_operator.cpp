#include "plan_operator.h"

#include <torch/csrc/stable/macros.h>

#include <optional>

#include "plan.h"

namespace fassd::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor numbers(const std::vector<double>& values) {
  Tensor tensor = torch::stable::empty({int64_t(values.size())}, ScalarType::Double, std::nullopt,
                                       std::nullopt, std::nullopt, std::nullopt);
  double* data = static_cast<double*>(tensor.mutable_data_ptr());
  for (size_t i = 0; i < values.size(); i++) {
    data[i] = values[i];
  }
  return tensor;
}

DeviceLimits limits_of(const std::vector<int64_t>& gpu) {
  STD_TORCH_CHECK(gpu.size() == 3, "gpu has ", gpu.size(), " numbers; expected 3");
  return {int(gpu[0]), int(gpu[1]), int(gpu[2])};
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
  asked.batch = shape[0];
  asked.height = int(shape[1]);
  asked.width = int(shape[2]);
  asked.out_height = int(shape[3]);
  asked.out_width = int(shape[4]);
  asked.channels.assign(channels.begin(), channels.end());
  asked.out_channels = int(shape[5]);
  asked.kernel_h = int(shape[6]);
  asked.kernel_w = int(shape[7]);
  asked.stride_h = int(shape[8]);
  asked.stride_w = int(shape[9]);
  asked.dilation_h = int(shape[10]);
  asked.dilation_w = int(shape[11]);
  asked.pool = int(shape[12]);
  asked.arithmetic = arithmetic_of(shape[13]);
  const ConvolutionPlan plan = plan_convolution(asked, limits_of(gpu));
  return numbers(describe(plan.variant, plan.tile, plan.taps.count, plan.chunk, plan.stages,
                          plan.layout, plan.cost));
}

Tensor pair_plan(const std::vector<int64_t>& shape, const std::vector<int64_t>& gpu) {
  STD_TORCH_CHECK(shape.size() == 9, "shape has ", shape.size(), " numbers; expected 9");
  PairShape asked;
  asked.batch = shape[0];
  asked.height = int(shape[1]);
  asked.width = int(shape[2]);
  asked.in_channels = int(shape[3]);
  asked.middle_channels = int(shape[4]);
  asked.out_channels = int(shape[5]);
  asked.dilation = int(shape[6]);
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
  asked.batch = shape[0];
  asked.height = int(shape[1]);
  asked.width = int(shape[2]);
  asked.channels.assign(channels.begin(), channels.end());
  asked.odd_channels = int(shape[3]);
  asked.even_channels = int(shape[4]);
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
