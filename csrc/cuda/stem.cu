#include <algorithm>

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
  best.table = best.weights + stem_depth * weight_row_bytes<HalfMath<__half>>(n_tiles * 8);
  const int staging = stem_pixels * (n_tiles * 8 + staging_padding) * 4;
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
  STD_TORCH_CHECK(blocks < int64_t(1) << 31, context.op, ": the result has ", blocks,
                  " tiles; the cuda backend takes at most 2^31 - 1");
  const auto kernel =
      wide ? &stem_kernel<T, bytes, wide_tiles> : &stem_kernel<T, bytes, narrow_tiles>;
  context.queue.launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(stem_warps * 32),
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

}  // namespace fassd::cuda
