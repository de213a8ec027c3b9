#include "packing.h"

namespace fassd::cpu {

namespace {

template <typename T>
struct Layer {
  std::vector<Image> sources;
  const Image result;
  Weights<T> weights;
  ChannelVector<T> bias;
  Conv<T> conv;
  Conv<T> of_input;  // the block's input's share of the sums, where that is computed before

  Layer(std::vector<Image> read, const Tensor& weight, const Tensor& bias_vector,
        const OptionalTensor& packed, const Image& written, const Destination& out)
      : sources(std::move(read)),
        result(written),
        weights("hardblock", weight, packed),
        bias(bias_vector) {
    conv = weights.convolution(sources.data(), sources.size(), sources[0].height, sources[0].width);
    conv.epilogue.bias = bias.data();
    conv.epilogue.activation = Activation::relu;
    conv.out = out;
  }
};

template <typename T>
using Layers = std::vector<std::unique_ptr<Layer<T>>>;

// The block's input is read by layer 1 and again, behind others, by 2, 4, 8, ... Its transformation
// by Winograd's method serves them all: they write their sums of it where their results will lie,
// to which those of their other sources are added. That pays where they have fewer outputs than
// there are inputs to read again, and only values of T are not rounded in between.
template <typename T>
void share_input(const Layers<T>& layers, ScalarType dtype) {
  Layer<T>& first = *layers[0];
  if (dtype != dtype_of<T> || first.conv.method != Method::winograd4) {
    return;
  }
  const int64_t channels = first.conv.in_channels;
  Conv<T>* last = &first.conv;
  for (size_t k = 2; k <= layers.size(); k *= 2) {
    Layer<T>& layer = *layers[k - 1];
    if (layer.conv.method != Method::winograd4 || layer.conv.out_channels > channels) {
      continue;
    }
    layer.of_input = layer.conv;
    layer.of_input.inputs = first.conv.inputs;
    layer.of_input.input_count = 1;
    layer.of_input.in_channels = channels;
    layer.of_input.first_channel = layer.conv.in_channels - channels;
    layer.of_input.epilogue = {};
    layer.conv.input_count--;
    layer.conv.in_channels -= channels;
    layer.conv.epilogue.residual = &layer.result;
    last->next = &layer.of_input;
    last = &layer.of_input;
  }
}

// Rows of every layer that are computed in turn, so that what one writes and the next ones read
// stays in the second level of the cache; 0 where all fits there, or threads would share too few
// rows. Convolutions by other methods than products of tiles take longer than memory does.
template <typename T>
int64_t rows_of_wave(const Layers<T>& layers, int64_t height, int64_t threads) {
  int64_t bytes = 0;  // of a row of all
  for (const auto& layer : layers) {
    if (layer->conv.method != Method::tiles) {
      return 0;
    }
    bytes += layer->conv.out_width * layer->conv.out_channels * 2;
  }
  bytes += layers[0]->conv.out_width * layers[0]->conv.in_channels * 2;
  const int64_t count = layers.size(), cached = second_level_cache() / 2;
  if (height * bytes <= cached || height < threads * 16 * count) {
    return 0;
  }
  return std::max<int64_t>(cached / bytes - count, 4);
}

// Every thread goes down its rows, each layer a row behind the one before. Rows near those of
// another thread, the more the later a layer, are computed in the end.
template <typename T>
void run_in_waves(const Layers<T>& layers, int64_t batch, int64_t height, int64_t rows,
                  int64_t threads) {
  const int64_t count = layers.size();
  int64_t scratch = 0;
  for (const auto& layer : layers) {
    scratch = std::max(scratch, kernels<T>().conv_scratch(layer->conv));
  }
  const auto begin_of = [&](int64_t share) { return height * share / threads; };
  parallel_items<T>(batch * threads, scratch, [&](T* memory, int64_t item) {
    const int64_t n = item / threads, share = item % threads;
    const int64_t begin = begin_of(share), end = begin_of(share + 1);
    for (int64_t wave = begin; wave - count < end; wave += rows) {
      for (int64_t k = 0; k < count; k++) {
        const int64_t first = std::max(wave - k, begin > 0 ? begin + k : 0);
        const int64_t last = std::min(wave + rows - k, end < height ? end - k : height);
        if (first < last) {
          run_rows(layers[k]->conv, n, first, last, memory);
        }
      }
    }
  });
  parallel_items<T>(batch * (threads - 1), scratch, [&](T* memory, int64_t item) {
    const int64_t n = item / (threads - 1), border = begin_of(item % (threads - 1) + 1);
    for (int64_t k = 1; k < count; k++) {
      run_rows(layers[k]->conv, n, border - k, border + k, memory);
    }
  });
}

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
  Layers<T> layers;
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
    layers.push_back(std::make_unique<Layer<T>>(std::move(sources), weight, biases[layer - 1],
                                                packed_at(packed, layer - 1), images.back(), to));
  }
  share_input(layers, input.scalar_type());
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rows = rows_of_wave(layers, height, threads);
  if (rows > 0) {
    return run_in_waves(layers, batch, height, rows, threads);
  }
  for (int64_t layer = 1; layer <= count; layer++) {
    run(layers[layer - 1]->conv, batch);
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
