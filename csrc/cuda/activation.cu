// The activations that no convolution has in its epilogue, because their registers and code would
// slow down all others: a separate launch activates the sums in place, or on their way to the means
// of 2 x 2.

#include <algorithm>

#include "activations.cuh"
#include "conv_act.cuh"

namespace fassd::cuda {

namespace {

constexpr int block_threads = 256;

// A thread takes eight channels of one pixel of the result.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    activation_kernel(Activation activation, Source source, Target target, int height, int width,
                      int pool, int64_t vectors) {
  ptx::wait_for_previous_kernels();
  const int parts = (source.channels + lanes - 1) / lanes;
  const int64_t step = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < vectors; i += step) {
    const int64_t pixel = i / parts;
    const int channel = static_cast<int>(i - pixel * parts) * lanes;
    const int64_t row = pixel / width, x = pixel - row * width;
    const int64_t n = row / height, y = row - n * height;
    float sums[lanes] = {};
#pragma unroll 1
    for (int at = 0; at < pool * pool; at++) {
      float values[lanes];
      load_lanes<T>(source,
                    n * source.stride_n + (y * pool + at / pool) * source.stride_h +
                        (x * pool + at % pool) * source.stride_w,
                    channel, values);
      activate_values(values, activation);
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        sums[k] += values[k];
      }
    }
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      sums[k] *= pool == 1 ? 1.0f : 0.25f;
    }
    store_lanes<T>(target, n * target.stride_n + y * target.stride_h + x * target.stride_w, channel,
                   sums);
  }
}

}  // namespace

void activate(const Context& context, Activation activation, const Source& source,
              const Target& target, int64_t batch, int pool) {
  const int height = source.height / pool, width = source.width / pool;
  const int64_t vectors = batch * height * width * divide_up(source.channels, lanes);
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(divide_up(vectors, block_threads), 4096));
  with_type(context.op, context.dtype, [&](auto type) {
    context.queue.launch(&activation_kernel<decltype(type)>, dim3(blocks), dim3(block_threads), 0,
                         activation, source, target, height, width, pool, vectors);
  });
}

}  // namespace fassd::cuda
