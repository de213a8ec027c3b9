#include <algorithm>

#include "boxes.cuh"
#include "pack_weight.cuh"

namespace fassd::cuda {

namespace {

constexpr int copy_threads = 256;

// Writes one source of a concatenation to its channels of the whole, eight at a time.
template <typename T>
__global__ void __launch_bounds__(copy_threads)
    join_kernel(Source source, Target target, int64_t vectors) {
  ptx::wait_for_previous_kernels();
  const int parts = (target.lanes + lanes - 1) / lanes;
  const int64_t step = int64_t(gridDim.x) * copy_threads;
  for (int64_t i = int64_t(blockIdx.x) * copy_threads + threadIdx.x; i < vectors; i += step) {
    const int64_t pixel = i / parts;
    const int channel = static_cast<int>(i - pixel * parts) * lanes;
    const int64_t row = pixel / source.width, x = pixel - row * source.width;
    const int64_t n = row / source.height, y = row - n * source.height;
    float values[lanes];
    load_lanes<T>(source, n * source.stride_n + y * source.stride_h + x * source.stride_w, channel,
                  values);
    store_lanes<T>(target, n * target.stride_n + y * target.stride_h + x * target.stride_w, channel,
                   values);
  }
}

// Makes one image of several: a launch takes a limited number of inputs.
Tensor join(const Context& context, const Tensor& like, const std::vector<Source>& sources,
            size_t first, int64_t batch) {
  int64_t channels = 0;
  for (size_t i = first; i < sources.size(); i++) {
    channels += sources[i].channels;
  }
  const ImageSize size = {batch, channels, sources[first].height, sources[first].width};
  const Tensor joined = empty_image(like, size);
  int64_t begin = 0;
  for (size_t i = first; i < sources.size(); i++) {
    const int64_t end = begin + sources[i].channels;
    const Target target =
        target_of(joined, begin, i + 1 == sources.size() ? round_up(end, lanes) : end);
    const int64_t vectors = batch * size.height * size.width * divide_up(target.lanes, lanes);
    const int64_t blocks = std::min<int64_t>(divide_up(vectors, copy_threads), 4096);
    with_type(context.op, context.dtype, [&](auto type) {
      context.queue.launch(&join_kernel<decltype(type)>, dim3(static_cast<unsigned>(blocks)),
                           dim3(copy_threads), 0, sources[i], target, vectors);
    });
    begin = end;
  }
  return joined;
}

}  // namespace

Context::Context(const char* name, const Tensor& image, bool allow_tf32)
    : op(name),
      guard(image.get_device_index()),
      queue(image),
      dtype(image.scalar_type()),
      arithmetic(arithmetic_of(dtype == ScalarType::Float, allow_tf32, queue.limits)) {
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16, op,
      ": the cuda backend takes float32, float16 and bfloat16, not ", dtype_name(dtype));
  STD_TORCH_CHECK(queue.limits.capability >= 75, op, ": this GPU is of compute capability ",
                  queue.limits.capability / 10, ".", queue.limits.capability % 10,
                  "; the cuda backend was compiled for 7.5 and later");
  STD_TORCH_CHECK(dtype != ScalarType::BFloat16 || queue.limits.capability >= 80, op,
                  ": bfloat16 needs compute capability 8.0; this GPU has ",
                  queue.limits.capability / 10, ".", queue.limits.capability % 10);
}

Filter filter_of(const Context& context, const std::string& name, const Tensor& weight,
                 const OptionalTensor& packed, int64_t first, int64_t count) {
  count = count < 0 ? weight.size(1) - first : count;
  const int64_t taps = weight.size(2) * weight.size(3);
  Weight described;
  described.in_channels = position_count(context.op, count);
  described.out_channels = position_count(context.op, weight.size(0));
  described.stride = static_cast<int>(row_elements(weight.size(0)));
  const bool given = packed.has_value() && packed->numel() > 0;
  if (given) {
    const int64_t expected = packed_elements(weight.size(0), count, taps);
    STD_TORCH_CHECK(packed->dim() == 1 && packed->numel() == expected &&
                        packed->scalar_type() == weight.scalar_type() &&
                        packed->device() == weight.device() && packed->is_contiguous() &&
                        reinterpret_cast<uintptr_t>(packed->const_data_ptr()) % 16 == 0,
                    context.op, ": packed weights of ", name,
                    " are not what pack_weight gives: ", shape_name(*packed), " of ",
                    dtype_name(packed->scalar_type()), "; expected (", expected, ",) of ",
                    dtype_name(weight.scalar_type()), " on the weight's device, contiguous");
  }
  Filter filter = {given ? *packed : pack(context.queue, weight, first, count), described,
                   static_cast<int>(weight.size(2)), static_cast<int>(weight.size(3))};
  filter.weight.data = filter.storage.const_data_ptr();
  return filter;
}

std::vector<Filter> filters_of(const Context& context, const Tensors& weights,
                               const OptionalTensors& packed) {
  std::vector<Filter> filters;
  for (size_t i = 0; i < weights.size(); i++) {
    filters.push_back(
        filter_of(context, "weights[" + std::to_string(i) + "]", weights[i], packed_at(packed, i)));
  }
  return filters;
}

ConvolutionCall call_on(const Source& input, const Filter& filter, int64_t batch, const void* bias,
                        Activation activation, const Target& out, int64_t dilation_h,
                        int64_t dilation_w) {
  ConvolutionCall call = {{input}, filter};
  call.batch = batch;
  call.height = input.height;
  call.width = input.width;
  call.dilation_h = limited(dilation_h);
  call.dilation_w = limited(dilation_w);
  call.epilogue.bias = bias;
  call.epilogue.activation = activation;
  call.epilogue.out = out;
  return call;
}

ConvolutionCall call_on(const Source& input, const Filter& filter, const Checked& checked,
                        const Vectors& vectors, const Target& out) {
  ConvolutionCall call = call_on(input, filter, checked.size.batch, vectors[0], checked.activation,
                                 out, checked.dilation[0], checked.dilation[1]);
  call.stride_h = limited(checked.stride[0]);
  call.stride_w = limited(checked.stride[1]);
  call.epilogue.slope = vectors[1];
  return call;
}

Ending ending_of(const Epilogue& epilogue) {
  return epilogue.addend.data != nullptr ? Ending::addend
         : epilogue.residual.data != nullptr
             ? (epilogue.resized ? Ending::resized : Ending::residual)
         : epilogue.copy.data != nullptr ? Ending::copied
                                         : Ending::plain;
}

ConvolutionShape shape_of(const Context& context, const ConvolutionCall& call) {
  ConvolutionShape shape;
  shape.batch = call.batch;
  shape.height = call.height;
  shape.width = call.width;
  shape.out_height = (call.height - 1) / call.stride_h + 1;
  shape.out_width = (call.width - 1) / call.stride_w + 1;
  for (const Source& input : call.inputs) {
    if (input.channels > 0) {
      shape.channels.push_back(input.channels);
    }
  }
  shape.out_channels = call.filter.weight.out_channels;
  shape.kernel_h = call.filter.kernel_h;
  shape.kernel_w = call.filter.kernel_w;
  shape.stride_h = call.stride_h;
  shape.stride_w = call.stride_w;
  shape.dilation_h = call.dilation_h;
  shape.dilation_w = call.dilation_w;
  shape.pool = call.epilogue.pool;
  shape.prologue = call.prologue.scale != nullptr;
  shape.ending = ending_of(call.epilogue);
  shape.arithmetic = context.arithmetic;
  return shape;
}

Taps placed(const Context& context, Taps taps, const Weight& weight, const Axis& rows,
            const Axis& columns, int chunk) {
  const int itemsize = element_size(context), pitch = chunk * itemsize + slot_padding;
  for (int tap = 0; tap < taps.count; tap++) {
    taps.offset[tap] =
        (taps.row[tap] * rows.pitch * columns.slots + taps.column[tap] * columns.pitch) * pitch;
    taps.weights[tap] = int64_t(taps.index[tap]) * weight.in_channels * weight.stride * itemsize;
  }
  return taps;
}

Finish finish_of(const Epilogue& epilogue) {
  const bool added = epilogue.residual.data != nullptr, pooled = epilogue.pool > 1;
  const bool relu = epilogue.activation == Activation::relu;
  const bool prelu = epilogue.activation == Activation::prelu;
  const bool copied = epilogue.copy.data != nullptr, affine = epilogue.addend.data != nullptr;
  if ((added && !epilogue.residual.whole) || added + pooled + affine > 1) {
    return Finish::any;
  }
  if (copied || !epilogue.out.vectors) {
    const bool fits = epilogue.out.pairs && (!copied || epilogue.copy.vectors);
    return relu && fits && !added && !pooled && !affine ? Finish::placed : Finish::any;
  }
  if (affine) {
    return prelu && epilogue.addend.whole ? Finish::addend : Finish::any;
  }
  if (pooled) {
    return relu ? Finish::pooled : Finish::any;
  }
  if (added && epilogue.resized) {
    return relu ? Finish::resized : Finish::any;
  }
  if (added) {
    return epilogue.activation == Activation::none ? Finish::residual : Finish::any;
  }
  return relu ? Finish::relu : prelu ? Finish::prelu : Finish::none;
}

void run(const Context& context, const ConvolutionCall& call) {
  ConvolutionCall kept = call;
  kept.inputs.clear();
  for (const Source& input : call.inputs) {
    if (input.channels > 0) {
      kept.inputs.push_back(input);
    }
  }
  std::optional<Tensor> joined;
  if (kept.inputs.size() > most_sources) {
    joined = join(context, call.filter.storage, kept.inputs, most_sources - 1, call.batch);
    kept.inputs.resize(most_sources - 1);
    kept.inputs.push_back(source_of(context.op, *joined));
  }
  const ConvolutionShape shape = shape_of(context, kept);
  if (!shape.prologue && is_stem(shape)) {
    return run_stem(context, kept, nullptr);
  }
  const ConvolutionPlan plan = remembered<plan_convolution>(shape, context.queue.limits);
  Convolution convolution;
  std::copy(kept.inputs.begin(), kept.inputs.end(), convolution.sources);
  convolution.source_count = static_cast<int>(kept.inputs.size());
  convolution.prologue = call.prologue;
  convolution.weight = call.filter.weight;
  convolution.taps =
      placed(context, plan.taps, convolution.weight, plan.rows, plan.columns, plan.chunk);
  convolution.rows = plan.rows;
  convolution.columns = plan.columns;
  convolution.out_height = shape.out_height;
  convolution.out_width = shape.out_width;
  convolution.tile = plan.tile;
  convolution.blocks = static_cast<unsigned>(plan.cost.blocks);
  convolution.chunk = plan.chunk;
  convolution.chunks = chunks_of(convolution.sources, convolution.source_count, convolution.chunk);
  convolution.stage_count = plan.stages;
  convolution.layout = plan.layout;
  convolution.epilogue = call.epilogue;
  convolution.epilogue.finish = finish_of(call.epilogue);
  Boxes boxes;
  const auto takes = [&](const Source& source) { return takes_boxes(context, source, call.batch); };
  if (plan.boxes > 0 && std::all_of(kept.inputs.begin(), kept.inputs.end(), takes)) {
    convolution.boxes = plan.boxes;
    convolution.tiles = plan.tiles;
    for (size_t i = 0; i < kept.inputs.size(); i++) {
      describe_box(context, kept.inputs[i], call.batch, plan, plan.rows, plan.columns,
                   boxes.sources[i]);
    }
    describe_box(context, call.filter, plan.taps, plan, boxes.weight);
  }
  with_type(context.op, context.dtype, [&](auto type) {
    launch_convolution<decltype(type)>(context, plan, convolution, boxes);
  });
}

Tensor conv_act(const Tensors& inputs, const Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& slope, const OptionalTensor& residual,
                const OptionalTensor& packed, const Integers& stride, const Integers& dilation,
                const std::string& activation, int64_t pool, bool allow_tf32) {
  const Checked checked = check_conv_act(inputs, weight, bias, slope, residual, packed, stride,
                                         dilation, activation, pool);
  const ImageSize& whole = checked.size;
  const ImageSize size = {whole.batch, whole.channels, whole.height / pool, whole.width / pool};
  const Context context("conv_act", inputs[0], allow_tf32);
  const Tensor out = empty_image(inputs[0], size);
  const Filter filter = filter_of(context, "weight", weight, packed);
  if (size.numel() == 0) {
    return out;
  }
  const Vectors vectors({bias, slope});
  ConvolutionCall call =
      call_on(source_of("conv_act", inputs[0]), filter, checked, vectors, target_of(out));
  for (size_t i = 1; i < inputs.size(); i++) {
    call.inputs.push_back(source_of("conv_act", inputs[i]));
  }
  call.epilogue.pool = static_cast<int>(pool);
  if (residual.has_value()) {
    call.epilogue.residual = source_of("conv_act", *residual);
  }
  run_activated(context, call, out, [&](const ConvolutionCall& part) { run(context, part); });
  return out;
}

}  // namespace fassd::cuda
