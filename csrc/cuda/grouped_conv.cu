// grouped_conv_act. A depthwise convolution reads each pixel for side x side products of a channel,
// so it is bound by memory: a thread takes eight channels of a run of pixels, so that the weights,
// in shared memory, are read once for all of them. All other groups, and dense convolutions with
// large kernels, are correct, but not optimised.

#include <algorithm>

#include "activations.cuh"
#include "conv_act.cuh"

namespace fassd::cuda {

namespace {

constexpr int block_channels = grouped_vectors * lanes;
constexpr int pitch = block_channels + 4;  // of a tap's weights: neighbours are in other banks

struct Grouped {
  Source input, residual;  // the latter without data if there is none
  Target out;
  const void *weight, *bias, *slope;
  int64_t weight_o, weight_i, weight_h, weight_w;  // strides
  Activation activation;
  int side, stride_h, stride_w, dilation_h, dilation_w;
  int height, width, channels;  // of the result
  int group_inputs, group_outputs;
};

// Finishes channels [channel, channel + 8) of a pixel of the result, whose products are `sums`.
template <typename T>
__device__ __forceinline__ void finish(const Grouped& conv, int64_t n, int y, int x, int channel,
                                       float (&sums)[lanes]) {
  float values[lanes];
  if (conv.bias != nullptr) {
    load_eight<T>(static_cast<const T*>(conv.bias) + channel, values);
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      sums[k] += values[k];
    }
  }
  if (conv.residual.data != nullptr) {
    const Source& from = conv.residual;
    load_lanes<T>(from, n * from.stride_n + y * from.stride_h + x * from.stride_w, channel, values);
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      sums[k] += values[k];
    }
  }
  if (conv.activation > Activation::prelu) {
    activate_values(sums, conv.activation);
  } else if (conv.activation != Activation::none) {
    const bool relu = conv.activation == Activation::relu;
    if (!relu) {
      load_eight<T>(static_cast<const T*>(conv.slope) + channel, values);
    }
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      const float below = relu ? 0.0f : sums[k] * values[k];
      sums[k] = relu ? (sums[k] < 0.0f ? below : sums[k]) : (sums[k] > 0.0f ? sums[k] : below);
    }
  }
  const Target& out = conv.out;
  store_lanes<T>(out, n * out.stride_n + y * out.stride_h + x * out.stride_w, channel, sums);
}

template <typename T, int side>
__global__ void __launch_bounds__(grouped_threads)
    depthwise_kernel(Grouped conv, unsigned across, unsigned runs) {
  constexpr int taps = side * side;
  float* weights = reinterpret_cast<float*>(ptx::dynamic_shared());
  ptx::wait_for_previous_kernels();
  const int first = blockIdx.y * block_channels;
  for (int i = threadIdx.x; i < taps * block_channels; i += grouped_threads) {
    const int c = i / taps, tap = i - c * taps, row = tap / side;
    const int64_t at =
        (first + c) * conv.weight_o + row * conv.weight_h + (tap - row * side) * conv.weight_w;
    const bool there = first + c < conv.channels;
    weights[tap * pitch + c] = there ? to_float(static_cast<const T*>(conv.weight)[at]) : 0.0f;
  }
  __syncthreads();
  const unsigned part = threadIdx.x % grouped_vectors;
  const unsigned run =
      blockIdx.x * (grouped_threads / grouped_vectors) + threadIdx.x / grouped_vectors;
  const int channel = first + part * lanes;
  if (run >= runs || channel >= conv.channels) {
    return;
  }
  const unsigned row = run / across, n = row / conv.height;
  const int begin = (run - row * across) * grouped_run, y = row - n * conv.height;
  const Source& source = conv.input;
  const bool whole = source.vectors && channel + lanes <= source.channels;
  const T* image =
      static_cast<const T*>(source.data) + n * source.stride_n + channel * source.stride_c;
  const int64_t step = conv.stride_w * source.stride_w;
  float sums[grouped_run][lanes] = {};
#pragma unroll 1
  for (int i = 0; i < side; i++) {
    const int from_y = y * conv.stride_h + (i - side / 2) * conv.dilation_h;
    if (from_y < 0 || from_y >= source.height) {
      continue;
    }
    const float* factor = weights + i * side * pitch + part * lanes;
    int first_x = begin * conv.stride_w - side / 2 * conv.dilation_w;
    const T* first_from = image + from_y * source.stride_h + first_x * source.stride_w;
#pragma unroll 1  // unrolling would copy the code for each tap
    for (int j = 0; j < side; j++) {
      float factors[lanes];
      load_eight<float>(factor, factors);
      int from_x = first_x;
      const T* from = first_from;
#pragma unroll
      for (int k = 0; k < grouped_run; k++) {
        // Also after the result's last pixel, which is not written.
        if (unsigned(from_x) < unsigned(source.width)) {
          float values[lanes];
          if (whole) {
            load_eight<T>(from, values);
          } else {
#pragma unroll
            for (int c = 0; c < lanes; c++) {
              const bool there = channel + c < source.channels;
              values[c] = there ? to_float(from[c * source.stride_c]) : 0.0f;
            }
          }
#pragma unroll
          for (int c = 0; c < lanes; c++) {
            sums[k][c] = fmaf(values[c], factors[c], sums[k][c]);
          }
        }
        from_x += conv.stride_w;
        from += step;
      }
      factor += pitch;
      first_x += conv.dilation_w;
      first_from += conv.dilation_w * source.stride_w;
    }
  }
#pragma unroll
  for (int k = 0; k < grouped_run; k++) {
    if (begin + k < conv.width) {
      finish<T>(conv, n, y, begin + k, channel, sums[k]);
    }
  }
}

// A thread takes eight channels of a pixel of the result, whatever their groups.
template <typename T>
__global__ void __launch_bounds__(grouped_threads) grouped_kernel(Grouped conv, int64_t vectors) {
  ptx::wait_for_previous_kernels();
  const Source& source = conv.input;
  const int parts = (conv.channels + lanes - 1) / lanes;
  const int64_t step = int64_t(gridDim.x) * grouped_threads;
  for (int64_t v = int64_t(blockIdx.x) * grouped_threads + threadIdx.x; v < vectors; v += step) {
    const int64_t pixel = v / parts;
    const int channel = static_cast<int>(v - pixel * parts) * lanes;
    const int64_t row = pixel / conv.width, n = row / conv.height;
    const int x = static_cast<int>(pixel - row * conv.width);
    const int y = static_cast<int>(row - n * conv.height);
    float sums[lanes] = {};
#pragma unroll 1
    for (int c = 0; c < lanes && channel + c < conv.channels; c++) {
      const int first = (channel + c) / conv.group_outputs * conv.group_inputs;
      float sum = 0.0f;
#pragma unroll 1
      for (int i = 0; i < conv.side; i++) {
        const int64_t from_y =
            int64_t(y) * conv.stride_h + int64_t(i - conv.side / 2) * conv.dilation_h;
        if (from_y < 0 || from_y >= source.height) {
          continue;
        }
#pragma unroll 1
        for (int j = 0; j < conv.side; j++) {
          const int64_t from_x =
              int64_t(x) * conv.stride_w + int64_t(j - conv.side / 2) * conv.dilation_w;
          if (from_x < 0 || from_x >= source.width) {
            continue;
          }
          const T* from = static_cast<const T*>(source.data) + n * source.stride_n +
                          from_y * source.stride_h + from_x * source.stride_w +
                          first * source.stride_c;
          const T* weight = static_cast<const T*>(conv.weight) + (channel + c) * conv.weight_o +
                            i * conv.weight_h + j * conv.weight_w;
#pragma unroll 1
          for (int k = 0; k < conv.group_inputs; k++) {
            sum = fmaf(to_float(*from), to_float(*weight), sum);
            from += source.stride_c;
            weight += conv.weight_i;
          }
        }
      }
      // Registers cannot be indexed.
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        sums[k] = k == c ? sum : sums[k];
      }
    }
    finish<T>(conv, n, y, x, channel, sums);
  }
}

}  // namespace

Tensor grouped_conv_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& slope, const OptionalTensor& residual,
                        const Integers& stride, const Integers& dilation,
                        const std::string& activation, int64_t groups, bool allow_tf32) {
  const char* op = "grouped_conv_act";
  const Checked checked = check_grouped_conv_act(input, weight, bias, slope, residual, stride,
                                                 dilation, activation, groups);
  const ImageSize& size = checked.size;
  const Context context(op, input, allow_tf32);
  const Tensor out = empty_image(input, size);
  if (size.numel() == 0) {
    return out;
  }
  const Vectors vectors({bias, slope});
  const Source source = source_of(op, input);
  Grouped conv = {source,           {},
                  target_of(out),   weight.const_data_ptr(),
                  vectors[0],       vectors[1],
                  weight.stride(0), weight.stride(1),
                  weight.stride(2), weight.stride(3)};
  if (residual) {
    conv.residual = source_of(op, *residual);
  }
  conv.activation = checked.activation;
  conv.side = int(weight.size(2));
  conv.stride_h = limited(checked.stride[0]);
  conv.stride_w = limited(checked.stride[1]);
  // Beyond the picture, all dilations are equal.
  conv.dilation_h = int(std::min<int64_t>(checked.dilation[0], source.height));
  conv.dilation_w = int(std::min<int64_t>(checked.dilation[1], source.width));
  conv.height = position_count(op, size.height);
  conv.width = position_count(op, size.width);
  conv.channels = position_count(op, size.channels);
  conv.group_inputs = int(weight.size(1));
  conv.group_outputs = int(size.channels / groups);
  const GroupedPlan plan =
      plan_grouped(size.batch, source.height, source.width, conv.height, conv.width,
                   source.channels, conv.channels, conv.side, groups);
  with_type(op, context.dtype, [&](auto type) {
    using T = decltype(type);
    if (!plan.depthwise) {
      const int64_t items = size.batch * size.height * size.width * divide_up(size.channels, lanes);
      const int64_t blocks = std::min<int64_t>(divide_up(items, grouped_threads), 1 << 16);
      context.queue.launch(&grouped_kernel<T>, dim3(unsigned(blocks)), dim3(grouped_threads), 0,
                           conv, items);
      return;
    }
    const auto launch = [&](auto side) {
      context.queue.launch(&depthwise_kernel<T, side>,
                           grid_of(op, "blocks", plan.blocks, plan.parts), dim3(grouped_threads),
                           int64_t(side * side * pitch * sizeof(float)), conv,
                           unsigned(plan.across), unsigned(plan.runs));
    };
    conv.side == 3   ? launch(std::integral_constant<int, 3>())
    : conv.side == 5 ? launch(std::integral_constant<int, 5>())
                     : launch(std::integral_constant<int, 7>());
  });
  return out;
}

}  // namespace fassd::cuda
