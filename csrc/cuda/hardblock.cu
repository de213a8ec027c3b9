// hardblock: a launch for each layer; no concatenation is written.
//
// Layers of the result write their channels in place. There they begin wherever the channels before
// them end, at addresses that do not allow 16-byte loads: for the layers that read them they are
// written a second time, to scratch.

#include <algorithm>

#include "conv_act.cuh"

namespace fassd::cuda {

namespace {

class Block {
 public:
  Block(const Context& context, const Tensor& input, const Tensors& weights,
        std::vector<Filter> filters, const Vectors& biases, const Tensor& out)
      : context_(context),
        input_(input),
        filters_(std::move(filters)),
        biases_(biases),
        out_(out),
        layers_(int64_t(weights.size())) {
    sources_.push_back(source_of(context.op, input));
  }

  void run() {
    for (int64_t layer = 1; layer <= layers_; layer++) {
      run_layer(layer);
    }
  }

 private:
  // Allocates scratch for a layer that others read, and makes them read it there.
  Target keep(int64_t layer) {
    scratch_.push_back(
        empty_image(input_, {input_.size(0), width(layer), input_.size(2), input_.size(3)}));
    sources_.push_back(source_of(context_.op, scratch_.back()));
    return target_of(scratch_.back());
  }

  // The position of a layer in the result.
  Target place(int64_t layer) {
    const int64_t begin = written_;
    written_ += width(layer);
    const bool last = layer == layers_;
    return target_of(out_, begin, last ? round_up(written_, lanes) : written_);
  }

  int64_t width(int64_t layer) const { return filters_[layer - 1].weight.out_channels; }

  ConvolutionCall call_of(int64_t layer) const {
    ConvolutionCall call = call_on(sources_[0], filters_[layer - 1], input_.size(0),
                                   biases_[layer - 1], Activation::relu, {});
    call.inputs.clear();
    for (int64_t source : hardblock_sources(layer)) {
      call.inputs.push_back(sources_[source]);
    }
    return call;
  }

  void run_layer(int64_t layer) {
    ConvolutionCall call = call_of(layer);
    const Target own = layer == layers_ ? Target() : keep(layer);
    if (is_hardblock_output(layer, layers_)) {
      call.epilogue.copy = own;
      call.epilogue.out = place(layer);
    } else {
      call.epilogue.out = own;
    }
    fassd::cuda::run(context_, call);
  }

  const Context& context_;
  const Tensor& input_;
  std::vector<Filter> filters_;
  const Vectors& biases_;
  const Tensor& out_;
  int64_t layers_;
  std::vector<Source> sources_;  // the input, then the layers
  Tensors scratch_;
  int64_t written_ = 0;  // channels of the result
};

}  // namespace

Tensor hardblock(const Tensor& input, const Tensors& weights, const Tensors& biases,
                 const OptionalTensors& packed, bool allow_tf32) {
  const ImageSize size = check_hardblock(input, weights, biases, packed).size;
  const Context context("hardblock", input, allow_tf32);
  const Tensor out = empty_image(input, size);
  std::vector<Filter> filters = filters_of(context, weights, packed);
  if (size.numel() > 0) {
    const Vectors vectors(biases);
    Block(context, input, weights, std::move(filters), vectors, out).run();
  }
  return out;
}

}  // namespace fassd::cuda
