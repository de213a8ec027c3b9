// aspp: a launch for each branch, one for the mean, and the 1x1 that fuses them.
//
// The branch of the mean is one pixel per picture. Its share of the last 1x1 is computed there and
// added to every pixel, as a residual whose strides are zero.

#include "conv_act.cuh"

namespace fassd::cuda {

namespace {

constexpr int mean_threads = 256, mean_groups = mean_threads / lanes;

// Means over all pixels: a block takes eight channels of one picture, eight threads side by side.
template <typename T>
__global__ void __launch_bounds__(mean_threads) mean_kernel(Source source, Target out) {
  float* sums = reinterpret_cast<float*>(ptx::dynamic_shared());  // [group][lane]
  ptx::wait_for_previous_kernels();
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
  const int channel = static_cast<int>(blockIdx.y) * lanes + lane;
  const int64_t pixels = int64_t(source.height) * source.width;
  // A running sum of a thousand terms loses three digits; two levels of sums do not.
  float total = 0.0f;
  if (channel < source.channels) {
    const T* picture = static_cast<const T*>(source.data) + blockIdx.x * source.stride_n +
                       channel * source.stride_c;
    float part = 0.0f;
    int count = 0;
    for (int64_t i = group; i < pixels; i += mean_groups) {
      const int64_t y = i / source.width, x = i - y * source.width;
      part += to_float(picture[y * source.stride_h + x * source.stride_w]);
      if (++count == 64) {
        total += part;
        part = 0.0f;
        count = 0;
      }
    }
    total += part;
  }
  sums[threadIdx.x] = total;
  __syncthreads();
  for (int half = mean_groups / 2; half > 0; half /= 2) {
    if (group < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half * lanes];
    }
    __syncthreads();
  }
  if (group == 0 && channel < out.lanes) {
    static_cast<T*>(out.data)[blockIdx.x * out.stride_n + channel] =
        from_float<T>(channel < source.channels ? sums[lane] / static_cast<float>(pixels) : 0.0f);
  }
}

}  // namespace

Tensor aspp(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const OptionalTensors& packed, const Integers& dilations, bool allow_tf32) {
  const ImageSize size = check_aspp(input, weights, biases, packed, dilations).size;
  const Context context("aspp", input, allow_tf32);
  const Tensor out = empty_image(input, size);
  const int64_t width = position_count("aspp", weights[0].size(0)), pitch = round_up(width, lanes);
  const int64_t branches = 1 + int64_t(dilations.size()), last = int64_t(weights.size()) - 1;
  const Tensors branch_weights(weights.begin(), weights.end() - 1);
  const std::vector<Filter> filters = filters_of(context, branch_weights, packed);
  // Parts of the last weight: the channels of the branches, and those of the means.
  const Filter fuse = filter_of(context, "weights[" + std::to_string(last) + "]", weights[last],
                                packed_at(packed, last), 0, branches * width);
  const Filter of_means =
      filter_of(context, "means", weights[last], std::nullopt, branches * width);
  if (size.numel() == 0) {
    return out;
  }
  const Vectors vectors(biases);
  const Source source = source_of("aspp", input);
  Tensor joined = empty_image(input, {size.batch, branches * pitch, size.height, size.width});
  ConvolutionCall fused =
      call_on(source, fuse, size.batch, vectors[last], Activation::relu, target_of(out));
  fused.inputs.clear();
  for (int64_t i = 0; i < branches; i++) {
    const int64_t dilation = i == 0 ? 1 : dilations[i - 1];
    run(context, call_on(source, filters[i], size.batch, vectors[i], Activation::relu,
                         target_of(joined, i * pitch, (i + 1) * pitch), dilation, dilation));
    fused.inputs.push_back(source_of("aspp", joined, i * pitch, width));
  }
  const Tensor mean = empty_image(input, {size.batch, input.size(1), 1, 1});
  const Tensor pooled = empty_image(input, {size.batch, width, 1, 1});
  const Tensor share = empty_image(input, {size.batch, size.channels, 1, 1});
  const Target mean_target = target_of(mean);
  const dim3 grid = grid_of("aspp", "means", size.batch, divide_up(input.size(1), lanes));
  with_type("aspp", context.dtype, [&](auto type) {
    context.queue.launch(&mean_kernel<decltype(type)>, grid, dim3(mean_threads),
                         mean_threads * sizeof(float), source, mean_target);
  });
  run(context, call_on(source_of("aspp", mean), filters[last - 1], size.batch, vectors[last - 1],
                       Activation::relu, target_of(pooled)));
  run(context, call_on(source_of("aspp", pooled), of_means, size.batch, nullptr, Activation::none,
                       target_of(share)));
  fused.epilogue.residual = source_of("aspp", share);
  run(context, fused);
  return out;
}

}  // namespace fassd::cuda
