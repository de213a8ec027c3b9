// dapf in three launches: the first convolutions of all branches, the second ones, side by side in
// one image, and the 1x1 that projects them. It reads them as a virtual concatenation, in which
// each starts at a whole vector.

#include "conv_act.cuh"

namespace fassd::cuda {

Tensor dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const OptionalTensors& packed, const Integers& dilations, bool allow_tf32) {
  const ImageSize size = check_dapf(input, weights, biases, packed, dilations).size;
  const Context context("dapf", input, allow_tf32);
  const Tensor out = empty_image(input, size);
  const std::vector<Filter> filters = filters_of(context, weights, packed);
  if (size.numel() == 0) {
    return out;
  }
  const Vectors vectors(biases);
  const Source source = source_of("dapf", input);
  const int64_t width = position_count("dapf", weights[0].size(0)), pitch = round_up(width, lanes);
  const int64_t branches = 1 + int64_t(dilations.size());
  const ImageSize side_by_side = {size.batch, branches * pitch, input.size(2), input.size(3)};
  const Tensor middles = empty_image(input, side_by_side),
               joined = empty_image(input, side_by_side);
  std::vector<ConvolutionCall> first, second;
  ConvolutionCall project = call_on(source, filters.back(), size.batch, vectors[weights.size() - 1],
                                    Activation::relu, target_of(out));
  project.inputs.clear();
  for (int64_t i = 0; i < branches; i++) {
    const int64_t weight = i == 0 ? 0 : 2 * i - 1, dilation = i == 0 ? 1 : dilations[i - 1];
    const int64_t begin = i * pitch, end = begin + pitch;
    first.push_back(call_on(source, filters[weight], size.batch, vectors[weight], Activation::relu,
                            target_of(i == 0 ? joined : middles, begin, end), dilation, 1));
    if (i > 0) {
      const Source middle = source_of("dapf", middles, begin, width);
      second.push_back(call_on(middle, filters[weight + 1], size.batch, vectors[weight + 1],
                               Activation::relu, target_of(joined, begin, end), 1, dilation));
    }
    project.inputs.push_back(source_of("dapf", joined, begin, width));
  }
  run_group(context, first);
  run_group(context, second);
  run(context, project);
  return out;
}

}  // namespace fassd::cuda
