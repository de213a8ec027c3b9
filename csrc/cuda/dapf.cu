// dapf in two launches: all branches side by side in one image, and the 1x1 that projects them. It
// reads them as a virtual concatenation, in which each starts at a whole vector.

#include "asymmetric_conv.cuh"

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
  Tensor joined = empty_image(input, {size.batch, branches * pitch, input.size(2), input.size(3)});
  std::vector<PairCall> calls(branches);
  ConvolutionCall project = call_on(source, filters.back(), size.batch, vectors[weights.size() - 1],
                                    Activation::relu, target_of(out));
  project.inputs.clear();
  for (int64_t i = 0; i < branches; i++) {
    PairCall& call = calls[i];
    call.input = source;
    call.batch = size.batch;
    call.first = filters[i == 0 ? 0 : 2 * i - 1];
    call.bias = vectors[i == 0 ? 0 : 2 * i - 1];
    if (i > 0) {
      call.second = filters[2 * i];
      call.epilogue.bias = vectors[2 * i];
      call.dilation = limited(dilations[i - 1]);
    }
    call.epilogue.activation = Activation::relu;
    call.epilogue.out = target_of(joined, i * pitch, (i + 1) * pitch);
    project.inputs.push_back(source_of("dapf", joined, i * pitch, width));
  }
  run_pairs(context, input, calls);
  run(context, project);
  return out;
}

}  // namespace fassd::cuda
