#include "asymmetric_conv.h"

namespace fassd::cpu {

namespace {

// The whole module on a band of rows at a time. Scratch of a band:
//   branches [rows][width][branch channels, all branches adjacent]: the concatenation, in place
//   middle   [rows][width][branch channels]: between a 3x1 and its 1x3
template <typename T>
void run_dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
              const Integers& dilations, Tensor& out) {
  const ImageSource<T> source(input);
  const Image<T>& image = source.image();
  const int64_t channels = weights[0].size(0), width = image.width;
  const int64_t joined = channels * int64_t(1 + dilations.size()), row = width * joined;

  const PackedWeights<T> first_weights(weights[0]), last_weights(weights.back());
  const ChannelVector<T> first_bias(biases[0]), last_bias(biases.back());
  std::vector<std::unique_ptr<AsymmetricPair<T>>> pairs;
  for (size_t i = 0; i < dilations.size(); i++) {
    pairs.push_back(std::make_unique<AsymmetricPair<T>>(
        image, weights[1 + 2 * i], weights[2 + 2 * i], biases[1 + 2 * i], biases[2 + 2 * i],
        std::nullopt, std::nullopt, dilations[i], Activation::relu));
  }
  Conv<T> pointwise, project;
  first_weights.attach(pointwise);
  pointwise.inputs = &image;
  pointwise.epilogue.bias = first_bias.data();
  last_weights.attach(project);
  project.epilogue.bias = last_bias.data();
  project.out = destination(out);
  for (Conv<T>* conv : {&pointwise, &project}) {
    conv->input_count = 1;
    conv->out_height = image.height;
    conv->out_width = width;
    conv->epilogue.activation = Activation::relu;
  }

  const auto band = [&](T* scratch, int64_t n, int64_t first, int64_t last) {
    T* const middle = scratch + (last - first) * row;
    const auto branch = [&](int64_t index) {
      return Destination{scratch + index * channels, dtype_of<T>, 0, row, joined, first};
    };
    Conv<T> conv = pointwise;
    conv.out = branch(0);
    kernels<T>().conv(conv, n, first * width, last * width);
    for (size_t i = 0; i < pairs.size(); i++) {
      pairs[i]->run(middle, n, first, last, branch(1 + i));
    }
    const Image<T> branches = {scratch, joined, image.height, width, 0, row, joined, first};
    conv = project;
    conv.inputs = &branches;
    kernels<T>().conv(conv, n, first * width, last * width);
  };
  parallel_bands<T>(out.size(0), image.height, row + width * channels, band);
}

}  // namespace

Tensor dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const Integers& dilations) {
  const ImageSize size = check_dapf(input, weights, biases, dilations);
  Tensor out = empty_image(size, input.scalar_type());
  if (size.numel() > 0) {
    with_arithmetic(input.scalar_type(), [&](auto type) {
      run_dapf<decltype(type)>(input, weights, biases, dilations, out);
    });
  }
  return out;
}

}  // namespace fassd::cpu
