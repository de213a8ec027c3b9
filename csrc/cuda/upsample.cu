// upsample and upsample_argmax: bilinear, align_corners; labels without the enlarged logits.

#include <algorithm>

#include "conv_act.cuh"

namespace fassd::cuda {

namespace {

constexpr int block_threads = 256;
constexpr int64_t most_blocks = int64_t(1) << 20;  // more pixels are walked in strides

unsigned blocks_of(int64_t items) {
  return static_cast<unsigned>(std::min(divide_up(items, block_threads), most_blocks));
}

// A thread takes eight channels of one pixel of the result.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    upsample_kernel(Source source, Target out, int height, int width, int64_t items) {
  ptx::wait_for_previous_kernels();
  const int parts = (source.channels + lanes - 1) / lanes;
  const int64_t step = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < items; i += step) {
    const int64_t pixel = i / parts;
    const int channel = static_cast<int>(i - pixel * parts) * lanes;
    const int64_t row = pixel / width, n = row / height;
    const int x = static_cast<int>(pixel - row * width), y = static_cast<int>(row - n * height);
    float values[lanes];
    load_resized<T>(source, static_cast<int>(n), neighbours_of(y, source.height, height),
                    neighbours_of(x, source.width, width), channel, values);
    store_lanes<T>(out, n * out.stride_n + y * out.stride_h + x * out.stride_w, channel, values);
  }
}

// A thread takes one pixel and all its channels, eight at a time. As the reference: values are
// rounded to the input's type, the first of the largest wins, and NaN is larger than all.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    upsample_argmax_kernel(Source source, uint8_t* labels, int height, int width, int64_t pixels) {
  ptx::wait_for_previous_kernels();
  const int64_t step = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < pixels; i += step) {
    const int64_t row = i / width, n = row / height;
    const Neighbours rows =
        neighbours_of(static_cast<int>(row - n * height), source.height, height);
    const Neighbours columns =
        neighbours_of(static_cast<int>(i - row * width), source.width, width);
    float best = 0.0f;
    int label = -1;
    for (int channel = 0; channel < source.channels; channel += lanes) {
      float values[lanes];
      load_resized<T>(source, static_cast<int>(n), rows, columns, channel, values);
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        const float value = to_float(from_float<T>(values[k]));
        const bool larger = label < 0 || value > best || (value != value && best == best);
        if (channel + k < source.channels && larger) {
          best = value;
          label = channel + k;
        }
      }
    }
    labels[i] = static_cast<uint8_t>(label);
  }
}

}  // namespace

Tensor upsample(const Tensor& input, const Integers& size) {
  const ImageSize result = check_upsample("upsample", input, size);
  const Context context("upsample", input, false);
  Tensor out =
      torch::stable::empty(result.sizes(), input.scalar_type(), std::nullopt, input.device(),
                           std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (result.numel() == 0) {
    return out;
  }
  const Source source = source_of("upsample", input);
  const Target target = target_of(out, 0, result.channels);
  const int64_t items =
      result.batch * result.height * result.width * divide_up(result.channels, lanes);
  with_type("upsample", context.dtype, [&](auto type) {
    context.queue.launch(&upsample_kernel<decltype(type)>, dim3(blocks_of(items)),
                         dim3(block_threads), 0, source, target, int(result.height),
                         int(result.width), items);
  });
  return out;
}

Tensor upsample_argmax(const Tensor& input, const Integers& size) {
  const ImageSize result = check_upsample_argmax(input, size);
  const Context context("upsample_argmax", input, false);
  Tensor out = torch::stable::empty({result.batch, result.height, result.width}, ScalarType::Byte,
                                    std::nullopt, input.device(), std::nullopt, std::nullopt);
  const int64_t pixels = out.numel();
  if (pixels == 0) {
    return out;
  }
  const Source source = source_of("upsample_argmax", input);
  with_type("upsample_argmax", context.dtype, [&](auto type) {
    context.queue.launch(&upsample_argmax_kernel<decltype(type)>, dim3(blocks_of(pixels)),
                         dim3(block_threads), 0, source,
                         static_cast<uint8_t*>(out.mutable_data_ptr()), int(result.height),
                         int(result.width), pixels);
  });
  return out;
}

}  // namespace fassd::cuda
