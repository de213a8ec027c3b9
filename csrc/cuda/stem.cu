#include <algorithm>
#include <cstring>
#include <type_traits>

#include "conv_act.cuh"
#include "stem.cuh"

namespace fassd::cuda {

namespace {

constexpr int wide_tiles = 4, narrow_tiles = 2;  // blocks of 32 or 16 output channels

int extent(int results, int stride, int dilation) {
  return (results - 1) * stride + 2 * dilation + 1;
}

// The tile and its places in shared memory; one that needs the fewest pixels of the picture.
Stem plan_stem(const ConvolutionCall& call, const ConvolutionShape& shape, int n_tiles) {
  Stem best;
  for (int width_log2 = 3; width_log2 <= 6; width_log2++) {
    Stem stem;
    const int width = 1 << width_log2, height = stem_pixels / width;
    stem.tile = {width_log2, height, int(divide_up(shape.out_width, width)),
                 int(divide_up(shape.out_height, height)),
                 int(divide_up(shape.out_channels, n_tiles * 8))};
    stem.patch_rows = extent(height, shape.stride_h, shape.dilation_h);
    stem.patch_columns = extent(width, shape.stride_w, shape.dilation_w);
    const auto pixels = [](const Stem& s) { return int64_t(s.patch_rows) * s.patch_columns; };
    if (best.patch_rows == 0 || pixels(stem) < pixels(best)) {
      best = stem;
    }
  }
  best.source = call.inputs[0];
  best.weight = call.filter.weight;
  best.out_height = shape.out_height;
  best.out_width = shape.out_width;
  best.stride_h = call.stride_h;
  best.stride_w = call.stride_w;
  best.dilation_h = call.dilation_h;
  best.dilation_w = call.dilation_w;
  best.epilogue = call.epilogue;
  best.matrix = int(round_up(best.patch_rows * best.patch_columns * stem_channels * 2, 16));
  best.weights = best.matrix + stem_pixels * stem_pitch;
  best.table = best.weights + stem_depth * weight_row(n_tiles * 8) * 2;
  const int staging = stem_pixels * staging_row(n_tiles * 8) * 4;
  best.shared_bytes = std::max(best.table + stem_channels * 256 * 2, staging);
  return best;
}

template <typename T, bool bytes>
void launch_stem(const Context& context, const ConvolutionCall& call,
                 const NormalizationTable& table) {
  const ConvolutionShape shape = shape_of(context, call);
  const bool wide = shape.out_channels > narrow_tiles * 8;
  const Stem stem = plan_stem(call, shape, wide ? wide_tiles : narrow_tiles);
  const int64_t blocks =
      call.batch * stem.tile.across * int64_t(stem.tile.down) * int64_t(stem.tile.columns);
  const auto kernel =
      wide ? &stem_kernel<T, bytes, wide_tiles> : &stem_kernel<T, bytes, narrow_tiles>;
  context.queue.launch(kernel, grid_of(context.op, "tiles", blocks), dim3(stem_warps * 32),
                       stem.shared_bytes, stem, table);
}

}  // namespace

bool is_stem(const Context& context, const ConvolutionCall& call) {
  const int largest = 8;  // beyond, a tile's pixels of the picture would fill shared memory
  return context.arithmetic == Arithmetic::half && call.inputs.size() == 1 &&
         call.inputs[0].channels == stem_channels && call.filter.kernel_h == 3 &&
         call.filter.kernel_w == 3 && call.prologue.scale == nullptr && call.stride_h <= 3 &&
         call.stride_w <= 3 && call.dilation_h <= largest && call.dilation_w <= largest;
}

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

// Each value of each channel, computed in double and rounded once, as `normalize` has them.
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

// N x H x W x 3 bytes as an image of three channels, as they lie.
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
  const char* op = "normalize_conv_act";
  ImageSize size;
  const Integers steps = expand_pair(op, "stride", stride);
  const Integers dilations = expand_pair(op, "dilation", dilation);
  const Activation act = check_normalize_conv_act(image, weight, bias, slope, packed, mean, std,
                                                  steps, dilations, activation, size);
  const Context context(op, weight, allow_tf32);
  if (size.numel() > 0) {
    const Filter filter = filter_of(context, "weight", weight, packed);
    const Tensor out = empty_image(weight, size);
    const Vectors vectors({bias, slope});
    ConvolutionCall call =
        call_on(source_of_picture(image), filter, size.batch, vectors[0], act, target_of(out));
    call.stride_h = limited(steps[0]);
    call.stride_w = limited(steps[1]);
    call.dilation_h = limited(dilations[0]);
    call.dilation_w = limited(dilations[1]);
    call.epilogue.slope = vectors[1];
    if (is_stem(context, call)) {
      const NormalizationTable table = context.dtype == ScalarType::Half
                                           ? table_of<__half>(mean, std)
                                           : table_of<__nv_bfloat16>(mean, std);
      run_stem(context, call, &table);
      return out;
    }
  }
  return conv_act({normalize(image, mean, std, weight.scalar_type())}, weight, bias, slope,
                  std::nullopt, packed, stride, dilation, activation, 1, allow_tf32);
}

}  // namespace fassd::cuda
