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
  ConvolutionCall second = call_on(middle, call.second, call.batch, nullptr,
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
  shape.out_channels = call.second.weight.out_channels;
  shape.dilation = call.dilation;
  shape.ending = ending_of(call.epilogue);
  shape.arithmetic = context.arithmetic;
  return shape;
}

Pair pair_of(const Context& context, const PairCall& call, const PairPlan& plan) {
  Pair pair;
  pair.source = call.input;
  pair.first_weight = call.first.weight;
  pair.first = placed(context, plan.first, pair.first_weight, plan.rows, plan.columns, plan.chunk);
  pair.second_weight = call.second.weight;
  pair.second =
      placed(context, plan.second, pair.second_weight, plan.rows, plan.columns, plan.chunk);
  pair.rows = plan.rows;
  pair.columns = plan.columns;
  pair.tile = plan.tile;
  pair.whole_rows = plan.whole_rows;
  pair.chunk = plan.chunk;
  pair.first_chunks = static_cast<int>(divide_up(call.input.channels, plan.chunk));
  pair.chunks =
      pair.first_chunks + static_cast<int>(divide_up(pair.second_weight.in_channels, plan.chunk));
  pair.stage_count = plan.stages;
  pair.layout = plan.layout;
  pair.bias = call.bias;
  pair.slope = call.slope;
  pair.epilogue = call.epilogue;
  pair.epilogue.finish = finish_of(call.epilogue);
  return pair;
}

}  // namespace

void run_pair(const Context& context, const Tensor& like, const PairCall& call) {
  const PairPlan plan = remembered<plan_asymmetric>(shape_of(context, call), context.queue.limits);
  if (!plan.together) {
    const Tensor middle = empty_image(
        like, {call.batch, call.first.weight.out_channels, call.input.height, call.input.width});
    std::vector<ConvolutionCall> first;
    if (call.addend) {
      first.push_back(*call.addend);
    }
    first.push_back(first_of(call, target_of(middle)));
    run_group(context, first);
    run(context, second_of(call, source_of(context.op, middle)));
    return;
  }
  if (call.addend) {
    run(context, *call.addend);
  }
  Pair pair = pair_of(context, call, plan);
  PairBoxes boxes;
  if (plan.boxes > 0 && takes_boxes(context, call.input, call.batch)) {
    pair.boxes = plan.boxes;
    describe_box(context, call.input, call.batch, plan, plan.rows, plan.columns, boxes.source);
    describe_box(context, call.first, plan.first, plan, boxes.first_weight);
    describe_box(context, call.second, plan.second, plan, boxes.second_weight);
  }
  with_type(context.op, context.dtype,
            [&](auto type) { launch_pair<decltype(type)>(context, plan, pair, boxes); });
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
  run_pair(context, input, call);
  return out;
}

}  // namespace fassd::cuda
