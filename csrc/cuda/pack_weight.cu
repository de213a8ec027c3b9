#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "conv_act.cuh"
#include "pack_weight.cuh"

namespace fassd::cuda {

namespace {

constexpr int block_threads = 256;
constexpr int64_t most_blocks = 1024;

struct Original {
  const void* data;
  int64_t out_channels, in_channels, kernel_w;
  int64_t stride_o, stride_i, stride_h, stride_w;
};

// A thread writes one element at a time; consecutive ones are adjacent.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    pack_kernel(Original weight, T* out, int64_t row, int64_t rows, int64_t count) {
  ptx::wait_for_previous_kernels();
  const int64_t step = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < count; i += step) {
    const int64_t at = i / row, o = i - at * row;
    const int64_t tap = at / weight.in_channels, channel = at - tap * weight.in_channels;
    const int64_t y = tap / weight.kernel_w, x = tap - y * weight.kernel_w;
    T value = from_float<T>(0.0f);
    if (at < rows && o < weight.out_channels) {
      value = static_cast<const T*>(weight.data)[o * weight.stride_o + channel * weight.stride_i +
                                                 y * weight.stride_h + x * weight.stride_w];
    }
    out[i] = value;
  }
}

}  // namespace

int64_t packed_elements(int64_t out_channels, int64_t in_channels, int64_t taps) {
  const int64_t row = row_elements(out_channels);
  return checked_sum(checked_product({in_channels, taps, row}), row - out_channels);
}

Tensor pack(const Queue& queue, const Tensor& weight, int64_t first, int64_t count) {
  const int64_t row = row_elements(weight.size(0));
  const int64_t rows = count * weight.size(2) * weight.size(3);
  const int64_t elements = packed_elements(weight.size(0), count, weight.size(2) * weight.size(3));
  Tensor packed = torch::stable::empty({elements}, weight.scalar_type(), std::nullopt,
                                       weight.device(), std::nullopt, std::nullopt);
  if (elements == 0) {
    return packed;
  }
  const Original original = {static_cast<const char*>(weight.const_data_ptr()) +
                                 first * weight.stride(1) * int64_t(weight.element_size()),
                             weight.size(0),
                             std::max<int64_t>(count, 1),
                             weight.size(3),
                             weight.stride(0),
                             weight.stride(1),
                             weight.stride(2),
                             weight.stride(3)};
  const int64_t blocks = std::min(divide_up(elements, block_threads), most_blocks);
  with_type("pack_weight", weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    queue.launch(&pack_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(block_threads), 0,
                 original, static_cast<T*>(packed.mutable_data_ptr()), std::max<int64_t>(row, 1),
                 rows, elements);
  });
  return packed;
}

Tensor pack_weight(const Tensor& weight, const Integers& stride, const Integers& dilation) {
  check_pack_weight(weight, stride, dilation);
  const Context context("pack_weight", weight, false);
  return pack(context.queue, weight, 0, weight.size(1));
}

}  // namespace fassd::cuda
