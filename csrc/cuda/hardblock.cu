// hardblock: layers two by two in one launch (couple.cuh) where that pays, else a launch for each;
// no concatenation is written.
//
// Layers of the result write their channels of it in place. There they begin wherever the channels
// before them end, at addresses that no 16-byte load can take. Odd layers are read by the layer
// behind them only: in a couple they are never read back; alone, they are written a second time, in
// scratch.

#include <algorithm>

#include "couple.cuh"

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
    for (int64_t layer = 1; layer <= layers_;) {
      layer += layer < layers_ && run_couple(layer) ? 2 : (run_layer(layer), 1);
    }
  }

 private:
  // A place in scratch for a layer that others read, which from now on they find there.
  Target keep(int64_t layer) {
    scratch_.push_back(
        empty_image(input_, {input_.size(0), width(layer), input_.size(2), input_.size(3)}));
    sources_.push_back(source_of(context_.op, scratch_.back()));
    return target_of(scratch_.back());
  }

  // A layer's place in the result.
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
      // The layer before may not be there yet: its size is all that a plan asks for.
      call.inputs.push_back(source < int64_t(sources_.size()) ? sources_[source] : sources_[0]);
      call.inputs.back().channels =
          source == 0 ? sources_[0].channels : static_cast<int>(width(source));
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

  // An odd layer and the even one behind it; false, and nothing is done, where that does not pay.
  bool run_couple(int64_t odd) {
    const ConvolutionCall first = call_of(odd), second = call_of(odd + 1);
    CoupleShape shape;
    shape.batch = first.batch;
    shape.height = first.height;
    shape.width = first.width;
    for (size_t i = 1; i < second.inputs.size(); i++) {
      shape.channels.push_back(second.inputs[i].channels);
    }
    shape.odd_channels = first.filter.weight.out_channels;
    shape.even_channels = second.filter.weight.out_channels;
    shape.arithmetic = context_.arithmetic;
    const CouplePlan plan = remembered<plan_paying_couple>(shape, context_.queue.limits);
    if (!plan.possible) {
      return false;
    }
    Couple couple;
    std::copy(second.inputs.begin() + 1, second.inputs.end(), couple.sources);
    couple.source_count = static_cast<int>(second.inputs.size()) - 1;
    couple.odd = first.filter.weight;
    couple.even = second.filter.weight;
    Taps taps;
    for (; taps.count < 9; taps.count++) {
      taps.index[taps.count] = static_cast<int8_t>(taps.count);
    }
    couple.odd_taps = placed(context_, taps, couple.odd, Axis(), Axis(), plan.chunk);
    couple.even_taps = placed(context_, taps, couple.even, Axis(), Axis(), plan.chunk);
    couple.height = first.height;
    couple.width = first.width;
    couple.tile = plan.tile;
    couple.chunk = plan.chunk;
    couple.both_chunks = chunks_of(couple.sources, 1, plan.chunk);
    couple.outside_chunks = chunks_of(couple.sources, couple.source_count, plan.chunk);
    couple.chunks =
        couple.outside_chunks + static_cast<int>(divide_up(couple.odd.out_channels, plan.chunk));
    couple.stage_count = plan.stages;
    couple.layout = plan.layout;
    couple.odd_weights = plan.odd_weights;
    couple.odd_bias = first.epilogue.bias;
    couple.odd_out = place(odd);
    sources_.push_back(Source());  // nobody else reads it
    couple.epilogue = second.epilogue;
    couple.epilogue.out = odd + 1 == layers_ ? place(odd + 1) : keep(odd + 1);
    couple.epilogue.finish = finish_of(couple.epilogue);
    with_type(context_.op, context_.dtype, [&](auto type) {
      if constexpr (sizeof(type) == 2) {
        launch_couple<decltype(type)>(context_, plan, couple);
      }
    });
    return true;
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
