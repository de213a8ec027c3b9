// upsample and upsample_argmax: bilinear, align_corners; labels without the enlarged logits.

#include <algorithm>

#include "conv_act.cuh"

namespace fassd::cuda {

namespace {

constexpr int block_threads = argmax_threads;
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
    load_resized<T>(source, n, neighbours_of(y, source.height, height),
                    neighbours_of(x, source.width, width), channel, values);
    store_lanes<T>(out, n * out.stride_n + y * out.stride_h + x * out.stride_w, channel, values);
  }
}

// The label so far. As the reference: values are rounded to the input's type, the first of the
// largest wins, and NaN is larger than all.
template <typename T>
struct Best {
  float value = 0.0f;
  int label = -1;

  __device__ __forceinline__ void offer(float exact, int channel) {
    const float rounded = to_float(from_float<T>(exact));
    if (label < 0 || rounded > value || (rounded != rounded && value == value)) {
      value = rounded;
      label = channel;
    }
  }
};

// A thread takes one pixel and all its channels, eight at a time.
template <typename T>
__global__ void __launch_bounds__(block_threads, 4)
    upsample_argmax_kernel(Source source, uint8_t* labels, int height, int width, int64_t pixels) {
  ptx::wait_for_previous_kernels();
  const int64_t step = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < pixels; i += step) {
    const int64_t row = i / width, n = row / height;
    const Neighbours rows =
        neighbours_of(static_cast<int>(row - n * height), source.height, height);
    const Neighbours columns =
        neighbours_of(static_cast<int>(i - row * width), source.width, width);
    Best<T> best;
    for (int channel = 0; channel < source.channels; channel += lanes) {
      float values[lanes];
      load_resized<T>(source, n, rows, columns, channel, values);
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        if (channel + k < source.channels) {
          best.offer(values[k], channel + k);
        }
      }
    }
    labels[i] = static_cast<uint8_t>(best.label);
  }
}

// The same for a picture that grows: a block takes 256 pixels of one row. It blends the two rows of
// logits above and below once for each of their own columns, in shared memory, four of which serve
// sixteen pixels of a picture four times as wide; then each thread blends two of these columns.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    upsample_argmax_row_kernel(Source source, uint8_t* labels, int64_t rows_of_all, int height,
                               int width, int pitch) {
  float* blended = reinterpret_cast<float*>(ptx::dynamic_shared());  // [column][pitch]
  ptx::wait_for_previous_kernels();
  const int64_t row = blockIdx.y + int64_t(blockIdx.z) * gridDim.y, n = row / height;
  if (row >= rows_of_all) {
    return;
  }
  const int first = static_cast<int>(blockIdx.x) * block_threads;
  const int last = first + block_threads < width ? first + block_threads - 1 : width - 1;
  const Neighbours rows = neighbours_of(static_cast<int>(row - n * height), source.height, height);
  const int begin = neighbours_of(first, source.width, width).before;
  const int count = neighbours_of(last, source.width, width).after - begin + 1;
  const int parts = (source.channels + lanes - 1) / lanes;
  for (int i = threadIdx.x; i < count * parts; i += block_threads) {
    const int column = i / parts, channel = (i - column * parts) * lanes;
    const int64_t at = n * source.stride_n + (begin + column) * source.stride_w;
    float above[lanes], below[lanes];
    load_lanes<T>(source, at + rows.before * source.stride_h, channel, above);
    load_lanes<T>(source, at + rows.after * source.stride_h, channel, below);
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      blended[column * pitch + channel + k] = above[k] * (1 - rows.weight) + below[k] * rows.weight;
    }
  }
  __syncthreads();
  const int x = first + static_cast<int>(threadIdx.x);
  if (x >= width) {
    return;
  }
  const Neighbours columns = neighbours_of(x, source.width, width);
  const float* left = blended + (columns.before - begin) * pitch;
  const float* right = blended + (columns.after - begin) * pitch;
  Best<T> best;
  for (int channel = 0; channel < source.channels; channel += 4) {
    const float4 a = *reinterpret_cast<const float4*>(left + channel);
    const float4 b = *reinterpret_cast<const float4*>(right + channel);
    const float values[4] = {a.x * (1 - columns.weight) + b.x * columns.weight,
                             a.y * (1 - columns.weight) + b.y * columns.weight,
                             a.z * (1 - columns.weight) + b.z * columns.weight,
                             a.w * (1 - columns.weight) + b.w * columns.weight};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (channel + k < source.channels) {
        best.offer(values[k], channel + k);
      }
    }
  }
  labels[row * width + x] = static_cast<uint8_t>(best.label);
}

}  // namespace

Tensor upsample(const Tensor& input, const Integers& size) {
  const ImageSize result = check_upsample(input, size).size;
  const Context context("upsample", input, false);
  const int height = position_count("upsample", result.height);
  const int width = position_count("upsample", result.width);
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
                         dim3(block_threads), 0, source, target, height, width, items);
  });
  return out;
}

Tensor upsample_argmax(const Tensor& input, const Integers& size) {
  const ImageSize result = check_upsample_argmax(input, size).size;
  const Context context("upsample_argmax", input, false);
  const int height = position_count("upsample_argmax", result.height);
  const int width = position_count("upsample_argmax", result.width);
  Tensor out = torch::stable::empty({result.batch, result.height, result.width}, ScalarType::Byte,
                                    std::nullopt, input.device(), std::nullopt, std::nullopt);
  const int64_t pixels = out.numel();
  if (pixels == 0) {
    return out;
  }
  const Source source = source_of("upsample_argmax", input);
  uint8_t* labels = static_cast<uint8_t*>(out.mutable_data_ptr());
  const ArgmaxPlan plan = plan_argmax(result.batch, source.channels, source.width, height, width);
  const int64_t rows = result.batch * result.height;
  with_type("upsample_argmax", context.dtype, [&](auto type) {
    using T = decltype(type);
    if (plan.by_rows) {
      const int64_t down = std::min(rows, most_argmax_rows);
      const dim3 grid = grid_of("upsample_argmax", "parts of rows", divide_up(width, block_threads),
                                down, divide_up(rows, down));
      context.queue.launch(&upsample_argmax_row_kernel<T>, grid, dim3(block_threads),
                           plan.shared_bytes, source, labels, rows, height, width, plan.pitch);
    } else {
      context.queue.launch(&upsample_argmax_kernel<T>, dim3(blocks_of(pixels)), dim3(block_threads),
                           0, source, labels, height, width, pixels);
    }
  });
  return out;
}

}  // namespace fassd::cuda
