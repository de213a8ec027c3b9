#include "packing.h"

namespace fassd::cpu {

namespace {

// Layer k (from 1; 0 is the input) reads the layers k - 2^i for every 2^i that divides k. The odd
// layers and the last one are the output, and write their channels of it in place; the others are
// images of their own, freed when the last layer that reads them is done.
template <typename T>
void run_hardblock(const Tensor& input, const Tensors& weights, const Tensors& biases,
                   const OptionalTensors& packed, Tensor& out) {
  const int64_t count = weights.size();
  const int64_t batch = input.size(0), height = input.size(2), width = input.size(3);
  std::vector<Image> images = {image_of(input)};
  std::vector<Tensor> inner(count + 1, input);
  int64_t written = 0;
  for (int64_t layer = 1; layer <= count; layer++) {
    const Tensor& weight = weights[layer - 1];
    const int64_t channels = weight.size(0);
    Destination to;
    if (is_hardblock_output(layer, count)) {
      to = channels_of(destination(out), written);
      images.push_back(channels_of(image_of(out), written, channels));
      written += channels;
    } else {
      inner[layer] = empty_image({batch, channels, height, width}, input.scalar_type());
      to = destination(inner[layer]);
      images.push_back(image_of(inner[layer]));
    }
    std::vector<Image> sources;
    for (int64_t source : hardblock_sources(layer)) {
      sources.push_back(images[source]);
    }
    const Weights<T> packed_weights("hardblock", weight, packed_at(packed, layer - 1));
    const ChannelVector<T> bias(biases[layer - 1]);
    Conv<T> conv = packed_weights.convolution(sources.data(), sources.size(), height, width);
    conv.epilogue.bias = bias.data();
    conv.epilogue.activation = Activation::relu;
    conv.out = to;
    run(conv, batch);
    // The highest power of two that divides a layer is the longest step that leads from it.
    for (int64_t done = 1; done < layer; done++) {
      if (done + (done & -done) == layer) {
        inner[done] = input;
      }
    }
  }
}

}  // namespace

Tensor hardblock(const Tensor& input, const Tensors& weights, const Tensors& biases,
                 const OptionalTensors& packed) {
  const Checked checked = check_hardblock(input, weights, biases, packed);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    run_hardblock<decltype(type)>(input, weights, biases, packed, out);
  });
}

}  // namespace fassd::cpu
