// max_pool: a thread takes eight channels of one pixel of the result.

#include <algorithm>
#include <limits>

#include "conv_act.cuh"

namespace fassd::cuda {

namespace {

constexpr int block_threads = 256;

// One axis: size of a window, step, and distance of the first window from the inside.
struct Window {
  int64_t side, step, padding;

  // The pixels of window `at` that are inside a picture of that size.
  __device__ __forceinline__ void clip(int64_t at, int size, int& first, int& end) const {
    const int64_t begin = at * step - padding, behind = begin + side;
    first = static_cast<int>(begin > 0 ? begin : 0);
    end = static_cast<int>(behind < size ? behind : size);
  }
};

template <typename T>
__global__ void __launch_bounds__(block_threads)
    max_pool_kernel(Source source, Target target, Window rows, Window columns, int height,
                    int width, int64_t vectors) {
  ptx::wait_for_previous_kernels();
  const int parts = (source.channels + lanes - 1) / lanes;
  const int64_t step = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < vectors; i += step) {
    const int64_t pixel = i / parts;
    const int channel = static_cast<int>(i - pixel * parts) * lanes;
    const int64_t row = pixel / width, x = pixel - row * width;
    const int64_t n = row / height, y = row - n * height;
    int top, bottom, left, right;
    rows.clip(y, source.height, top, bottom);
    columns.clip(x, source.width, left, right);
    float largest[lanes];
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      largest[k] = -std::numeric_limits<float>::infinity();
    }
#pragma unroll 1
    for (int from_y = top; from_y < bottom; from_y++) {
#pragma unroll 1
      for (int from_x = left; from_x < right; from_x++) {
        float values[lanes];
        load_lanes<T>(source,
                      n * source.stride_n + from_y * source.stride_h + from_x * source.stride_w,
                      channel, values);
#pragma unroll
        for (int k = 0; k < lanes; k++) {  // NaN is larger than anything
          largest[k] = values[k] > largest[k] || values[k] != values[k] ? values[k] : largest[k];
        }
      }
    }
    store_lanes<T>(target, n * target.stride_n + y * target.stride_h + x * target.stride_w, channel,
                   largest);
  }
}

}  // namespace

Tensor max_pool(const Tensor& input, const Integers& kernel, const Integers& stride,
                const Integers& padding) {
  const char* op = "max_pool";
  const Checked checked = check_max_pool(input, kernel, stride, padding);
  const ImageSize& size = checked.size;
  const Context context(op, input, false);
  Tensor out = torch::stable::empty(size.sizes(), input.scalar_type(), std::nullopt, input.device(),
                                    std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (size.numel() == 0) {
    return out;
  }
  const Source source = source_of(op, input);
  const Window rows = {kernel.front(), checked.stride[0], padding.front()};
  const Window columns = {kernel.back(), checked.stride[1], padding.back()};
  const int height = position_count(op, size.height), width = position_count(op, size.width);
  const int64_t items = size.batch * size.height * size.width * divide_up(size.channels, lanes);
  const int64_t blocks = std::min<int64_t>(divide_up(items, block_threads), 1 << 16);
  with_type(op, context.dtype, [&](auto type) {
    context.queue.launch(&max_pool_kernel<decltype(type)>, dim3(unsigned(blocks)),
                         dim3(block_threads), 0, source, target_of(out, 0, size.channels), rows,
                         columns, height, width, items);
  });
  return out;
}

}  // namespace fassd::cuda
