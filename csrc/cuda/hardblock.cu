// hardblock: a launch for each layer; no concatenation is written.
//
// Layers of the result write their channels of it in place. There they begin wherever the channels
// before them end, at addresses that no 16-byte load can take; so what another layer reads again is
// written a second time, in scratch.

#include "conv_act.cuh"

namespace fassd::cuda {

Tensor hardblock(const Tensor& input, const Tensors& weights, const Tensors& biases,
                 const OptionalTensors& packed, bool allow_tf32) {
  const ImageSize size = check_hardblock(input, weights, biases, packed);
  const Context context("hardblock", input, allow_tf32);
  const Tensor out = empty_image(input, size);
  const int64_t layers = int64_t(weights.size());
  std::vector<Filter> filters;
  for (int64_t i = 0; i < layers; i++) {
    filters.push_back(
        filter_of(context, "weights[" + std::to_string(i) + "]", weights[i], packed_at(packed, i)));
  }
  if (size.numel() == 0) {
    return out;
  }
  const Vectors vectors(biases);
  std::vector<Source> sources = {source_of("hardblock", input)};
  Tensors scratch;
  int64_t written = 0;
  for (int64_t layer = 1; layer <= layers; layer++) {
    const int64_t width = weights[layer - 1].size(0);
    const bool last = layer == layers;
    Target own;
    if (!last) {
      scratch.push_back(empty_image(input, {size.batch, width, size.height, size.width}));
      own = target_of(scratch.back());
      sources.push_back(source_of("hardblock", scratch.back()));
    }
    ConvolutionCall call = call_on(sources[0], filters[layer - 1], size.batch, vectors[layer - 1],
                                   Activation::relu, own);
    call.inputs.clear();
    for (int64_t source : hardblock_sources(layer)) {
      call.inputs.push_back(sources[source]);
    }
    if (is_hardblock_output(layer, layers)) {
      const int64_t end = written + width;
      call.epilogue.copy = own;
      call.epilogue.out =
          target_of(out, written, end == size.channels ? round_up(end, lanes) : end);
      written = end;
    }
    run(context, call);
  }
  return out;
}

}  // namespace fassd::cuda
