#include <cstring>
#include <type_traits>

#include "conv_act.cuh"
#include "stem.cuh"

namespace fassd::cuda {

namespace {

template <typename T, bool bytes>
void launch_stem(const Context& context, const ConvolutionCall& call,
                 const NormalizationTable& table) {
  const ConvolutionShape shape = shape_of(context, call);
  const StemPlan plan = plan_stem(shape, context.queue.limits);
  Stem stem;
  stem.source = call.inputs[0];
  stem.packed = bytes && stem.source.stride_c == 1 && stem.source.stride_w == stem_channels;
  stem.weight = call.filter.weight;
  stem.out_height = shape.out_height;
  stem.out_width = shape.out_width;
  stem.stride_h = call.stride_h;
  stem.stride_w = call.stride_w;
  stem.dilation_h = call.dilation_h;
  stem.dilation_w = call.dilation_w;
  stem.tile = plan.tile;
  stem.patch_rows = plan.patch_rows;
  stem.patch_groups = plan.patch_groups;
  stem.inverse = (1u << stem_inverse_log2) / plan.patch_groups + 1;
  const int pixel_bytes = int(sizeof(PixelGroup)) / stem_group;
  for (int i = 0; i < stem_m_tiles * 2; i++) {
    const int row = 8 * i >> plan.tile.width_log2, within = 8 * i - (row << plan.tile.width_log2);
    stem.eighths[i] =
        (row * stem.stride_h * plan.patch_groups * stem_group + within * stem.stride_w) *
        pixel_bytes;
  }
  stem.zeros = plan.zeros;
  stem.weights = plan.weights;
  stem.table = plan.table;
  stem.epilogue = call.epilogue;
  stem.epilogue.finish = finish_of(call.epilogue);
  with_constant<4, 2>(context.op, plan.variant.n_tiles, [&](auto n_tiles) {
    context.queue.launch(&stem_kernel<T, bytes, decltype(n_tiles)::value>,
                         grid_of(context.op, "tiles", plan.cost.blocks), dim3(stem_warps * 32),
                         {plan.layout.total, plan.cost.resident}, stem, table);
  });
}

}  // namespace

void run_stem(const Context& context, const ConvolutionCall& call,
              const NormalizationTable* table) {
  static const NormalizationTable none = {};
  const auto launch = [&](auto type) {
    using T = decltype(type);
    if (table != nullptr) {
      launch_stem<T, true>(context, call, *table);
    } else {
      launch_stem<T, false>(context, call, none);
    }
  };
  if (context.dtype == ScalarType::Half) {
    launch(__half());
  } else {
    launch(__nv_bfloat16());
  }
}

// The result of `normalize` for each value of each channel, computed in double and rounded once.
template <typename T>
NormalizationTable table_of(const std::vector<double>& mean, const std::vector<double>& std) {
  NormalizationTable table;
  for (int channel = 0; channel < stem_channels; channel++) {
    for (int value = 0; value < 256; value++) {
      const double exact = (value - mean[channel]) / std[channel];
      T rounded;
      if constexpr (std::is_same_v<T, __half>) {
        rounded = __double2half(exact);
      } else {
        rounded = __double2bfloat16(exact);
      }
      std::memcpy(&table.values[channel][value], &rounded, sizeof(uint16_t));
    }
  }
  return table;
}

// N x H x W x 3 bytes as an image of three channels, without a copy.
Source source_of_picture(const Tensor& image) {
  Source source;
  source.data = image.const_data_ptr();
  source.stride_n = image.stride(0);
  source.stride_h = image.stride(1);
  source.stride_w = image.stride(2);
  source.stride_c = image.stride(3);
  source.height = position_count("normalize_conv_act", image.size(1));
  source.width = position_count("normalize_conv_act", image.size(2));
  source.channels = stem_channels;
  return source;
}

Tensor normalize_conv_act(const Tensor& image, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& slope, const OptionalTensor& packed,
                          const std::vector<double>& mean, const std::vector<double>& std,
                          const Integers& stride, const Integers& dilation,
                          const std::string& activation, bool allow_tf32) {
  const Checked checked = check_normalize_conv_act(image, weight, bias, slope, packed, mean, std,
                                                   stride, dilation, activation);
  const Context context("normalize_conv_act", weight, allow_tf32);
  if (checked.size.numel() > 0) {
    const Filter filter = filter_of(context, "weight", weight, packed);
    const Tensor out = empty_image(weight, checked.size);
    const Vectors vectors({bias, slope});
    const ConvolutionCall call =
        call_on(source_of_picture(image), filter, checked, vectors, target_of(out));
    if (is_stem(shape_of(context, call))) {
      const NormalizationTable table = context.dtype == ScalarType::Half
                                           ? table_of<__half>(mean, std)
                                           : table_of<__nv_bfloat16>(mean, std);
      run_activated(context, call, out,
                    [&](const ConvolutionCall& part) { run_stem(context, part, &table); });
      return out;
    }
  }
  return conv_act({normalize(image, mean, std, weight.scalar_type())}, weight, bias, slope,
                  std::nullopt, packed, stride, dilation, activation, 1, allow_tf32);
}

}  // namespace fassd::cuda
