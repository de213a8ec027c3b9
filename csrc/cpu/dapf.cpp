#include "asymmetric_conv.h"

namespace fassd::cpu {

namespace {

// The whole module on a band of rows at a time. Scratch of a band:
//   branches [rows][width][branch channels, all branches adjacent]: the concatenation, in place
//   middle   [rows][width][branch channels]: between a 3x1 and its 1x3
template <typename T>
void run_dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
              const OptionalTensors& packed, const Integers& dilations, Tensor& out) {
  const Image image = image_of(input);
  const int64_t channels = weights[0].size(0), last_weight = weights.size() - 1;
  const int64_t joined = checked_product({channels, int64_t(1 + dilations.size())});
  const ScalarType dtype = dtype_between<T>(input.scalar_type());
  const auto packed_of = [&](int64_t i) { return packed_at(packed, i); };

  const Weights<T> first_weights("dapf", weights[0], packed_of(0));
  const Weights<T> last_weights("dapf", weights[last_weight], packed_of(last_weight));
  const ChannelVector<T> first_bias(biases[0]), last_bias(biases.back());
  std::vector<std::unique_ptr<AsymmetricPair<T>>> pairs;
  for (size_t i = 0; i < dilations.size(); i++) {
    const int64_t down = 1 + 2 * i, across = 2 + 2 * i;
    pairs.push_back(std::make_unique<AsymmetricPair<T>>(
        "dapf", image, weights[down], weights[across], biases[down], biases[across], std::nullopt,
        std::nullopt, packed_of(down), packed_of(across), dilations[i], Activation::relu));
  }
  Conv<T> pointwise = first_weights.convolution(&image, 1, image.height, image.width);
  Conv<T> project = last_weights.convolution(&image, 1, image.height, image.width);
  pointwise.epilogue.bias = first_bias.data();
  project.epilogue.bias = last_bias.data();
  pointwise.epilogue.activation = project.epilogue.activation = Activation::relu;
  project.out = destination(out);
  int64_t extra =
      std::max(kernels<T>().conv_scratch(pointwise), kernels<T>().conv_scratch(project));
  for (const auto& pair : pairs) {
    extra = std::max(extra, pair->extra_scratch());
  }

  const auto run_band = [&](T* scratch, int64_t n, int64_t first, int64_t last) {
    const Band<T> branches = {scratch, joined, image.height, image.width, first, last, dtype};
    T* const rest = scratch + branches.values();
    Conv<T> conv = pointwise;
    conv.out = branches.destination();
    run_rows(conv, n, first, last, rest);
    for (size_t i = 0; i < pairs.size(); i++) {
      pairs[i]->run(rest, n, first, last, channels_of(branches.destination(), (1 + i) * channels));
    }
    const Image concatenation = branches.image();
    conv = project;
    conv.inputs = &concatenation;
    run_rows(conv, n, first, last, rest);
  };
  const int64_t row =
      values_for<T>(checked_product({image.width, checked_sum(joined, channels)}), dtype) + 1;
  parallel_bands<T>(out.size(0), image.height, row, extra, run_band);
}

}  // namespace

Tensor dapf(const Tensor& input, const Tensors& weights, const Tensors& biases,
            const OptionalTensors& packed, const Integers& dilations) {
  const Checked checked = check_dapf(input, weights, biases, packed, dilations);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    run_dapf<decltype(type)>(input, weights, biases, packed, dilations, out);
  });
}

}  // namespace fassd::cpu
