// upsample_conv1x1 in two launches: `low` is convolved at its own size, and then enlarged and added
// in the epilogue of the convolution of `skip`: neither the upsampled image nor the concatenation
// is written.

#include "conv_act.cuh"

namespace fassd::cuda {

Tensor upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& slope,
                        const OptionalTensors& packed, const std::string& activation,
                        bool allow_tf32) {
  const Checked checked =
      check_upsample_conv1x1(low, skip, weight, bias, slope, packed, activation);
  const ImageSize& size = checked.size;
  const Context context("upsample_conv1x1", low[0], allow_tf32);
  const Tensor out = empty_image(low[0], size);
  const int64_t low_channels = total_channels(low);
  const Filter low_filter =
      filter_of(context, "low", weight, packed_at(packed, 0), 0, low_channels);
  const Filter skip_filter = filter_of(context, "skip", weight, packed_at(packed, 1), low_channels);
  if (size.numel() == 0) {
    return out;
  }
  const auto call_of = [&](const Tensors& tensors, const Filter& filter, const Target& target) {
    ConvolutionCall call = call_on(source_of("upsample_conv1x1", tensors[0]), filter, size.batch,
                                   nullptr, Activation::none, target);
    for (size_t i = 1; i < tensors.size(); i++) {
      call.inputs.push_back(source_of("upsample_conv1x1", tensors[i]));
    }
    return call;
  };
  const Tensor raised =
      empty_image(low[0], {size.batch, size.channels, low[0].size(2), low[0].size(3)});
  run(context, call_of(low, low_filter, target_of(raised)));

  const Vectors vectors({bias, slope});
  ConvolutionCall call = call_of(skip, skip_filter, target_of(out));
  call.epilogue.bias = vectors[0];
  call.epilogue.slope = vectors[1];
  call.epilogue.activation = checked.activation;
  call.epilogue.residual = source_of("upsample_conv1x1", raised);
  call.epilogue.resized = true;
  run_activated(context, call, out, [&](const ConvolutionCall& part) { run(context, part); });
  return out;
}

}  // namespace fassd::cuda
