#include "asymmetric_conv.cuh"
#include "boxes.cuh"

namespace fassd::cuda {

namespace {

ConvolutionCall first_of(const PairCall& call, const Target& out) {
  ConvolutionCall first = call_on(call.input, call.first, call.batch, nullptr,
                                  call.epilogue.activation, out, call.dilation, 1);
  first.epilogue.bias = call.bias;
  first.epilogue.slope = call.slope;
  return first;
}

ConvolutionCall second_of(const PairCall& call, const Source& middle) {
  ConvolutionCall second = call_on(middle, *call.second, call.batch, nullptr,
                                   call.epilogue.activation, call.epilogue.out, 1, call.dilation);
  second.epilogue = call.epilogue;
  return second;
}

PairShape shape_of(const Context& context, const PairCall& call) {
  PairShape shape;
  shape.batch = call.batch;
  shape.height = call.input.height;
  shape.width = call.input.width;
  shape.in_channels = call.first.weight.in_channels;
  shape.middle_channels = call.first.weight.out_channels;
  shape.out_channels =
      call.second ? call.second->weight.out_channels : call.first.weight.out_channels;
  shape.dilation = call.dilation;
  shape.single = !call.second;
  shape.ending = call.second ? ending_of(call.epilogue) : Ending::plain;
  shape.arithmetic = context.arithmetic;
  return shape;
}

Pair pair_of(const Context& context, const PairCall& call, const PairPlan& plan) {
  Pair pair;
  pair.source = call.input;
  pair.first_weight = call.first.weight;
  pair.first = placed(context, plan.first, pair.first_weight, plan.rows, plan.columns, plan.chunk);
  if (call.second) {
    pair.second_weight = call.second->weight;
    pair.second =
        placed(context, plan.second, pair.second_weight, plan.rows, plan.columns, plan.chunk);
  }
  pair.rows = plan.rows;
  pair.columns = plan.columns;
  pair.tile = plan.tile;
  pair.whole_rows = plan.whole_rows;
  pair.chunk = plan.chunk;
  pair.first_chunks = static_cast<int>(divide_up(call.input.channels, plan.chunk));
  pair.chunks = pair.first_chunks;
  if (call.second) {
    pair.chunks += static_cast<int>(divide_up(pair.second_weight.in_channels, plan.chunk));
  }
  pair.stage_count = plan.stages;
  pair.layout = plan.layout;
  pair.blocks = plan.cost.blocks;
  pair.bias = call.bias;
  pair.slope = call.slope;
  pair.epilogue = call.epilogue;
  pair.epilogue.finish = finish_of(call.epilogue);
  return pair;
}

void run_one_by_one(const Context& context, const Tensor& like, const PairCall& call) {
  if (!call.second) {
    run(context, first_of(call, call.epilogue.out));
    return;
  }
  const Tensor middle = empty_image(
      like, {call.batch, call.first.weight.out_channels, call.input.height, call.input.width});
  run(context, first_of(call, target_of(middle)));
  run(context, second_of(call, source_of(context.op, middle)));
}

}  // namespace

void run_pairs(const Context& context, const Tensor& like, const std::vector<PairCall>& calls) {
  std::vector<PairShape> shapes;
  for (const PairCall& call : calls) {
    shapes.push_back(shape_of(context, call));
  }
  const PairsPlan plan = remembered<plan_pairs>(shapes, context.queue.limits);
  if (!plan.together) {
    for (const PairCall& call : calls) {
      run_one_by_one(context, like, call);
    }
    return;
  }
  Pairs pairs;
  PairBoxes boxes;
  for (size_t i = 0; i < calls.size(); i++) {
    const PairCall& call = calls[i];
    const PairPlan& pair = plan.pairs[i];
    pairs.pair[i] = pair_of(context, call, pair);
    if (pair.boxes > 0 && takes_boxes(context, call.input, call.batch)) {
      pairs.pair[i].boxes = pair.boxes;
      describe_box(context, call.input, call.batch, pair, pair.rows, pair.columns, boxes.source[i]);
      describe_box(context, call.first, pair.first, pair, boxes.first_weight[i]);
      if (call.second) {
        describe_box(context, *call.second, pair.second, pair, boxes.second_weight[i]);
      }
    }
  }
  with_type(context.op, context.dtype,
            [&](auto type) { launch_pairs<decltype(type)>(context, plan.pairs, pairs, boxes); });
}

Tensor asymmetric_conv(const Tensor& input, const Tensor& vertical_weight,
                       const Tensor& horizontal_weight, const OptionalTensor& vertical_bias,
                       const OptionalTensor& horizontal_bias, const OptionalTensor& vertical_slope,
                       const OptionalTensor& horizontal_slope, const OptionalTensors& packed,
                       int64_t dilation, const std::string& activation, bool allow_tf32) {
  const Checked checked = check_asymmetric_conv(input, vertical_weight, horizontal_weight,
                                                vertical_bias, horizontal_bias, vertical_slope,
                                                horizontal_slope, packed, dilation, activation);
  const ImageSize& size = checked.size;
  const Context context("asymmetric_conv", input, allow_tf32);
  const Tensor out = empty_image(input, size);
  PairCall call;
  call.first = filter_of(context, "vertical_weight", vertical_weight, packed_at(packed, 0));
  call.second = filter_of(context, "horizontal_weight", horizontal_weight, packed_at(packed, 1));
  if (size.numel() == 0) {
    return out;
  }
  const Vectors vectors({vertical_bias, horizontal_bias, vertical_slope, horizontal_slope});
  call.input = source_of("asymmetric_conv", input);
  call.batch = size.batch;
  call.dilation = limited(dilation);
  call.bias = vectors[0];
  call.slope = vectors[2];
  call.epilogue.bias = vectors[1];
  call.epilogue.slope = vectors[3];
  call.epilogue.activation = checked.activation;
  call.epilogue.out = target_of(out);
  run_pairs(context, input, {call});
  return out;
}

}  // namespace fassd::cuda
