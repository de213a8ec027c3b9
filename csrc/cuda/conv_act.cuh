// One convolution of an operator: planned, and launched. The other operators are made of these.

#pragma once

#include <string>
#include <vector>

#include "convolution.cuh"

namespace fassd::cuda {

// An operator's call: the queue of its kernels, and their arithmetic.
struct Context {
  // Throws if the device or the type is not supported.
  Context(const char* op, const Tensor& image, bool allow_tf32);

  const char* op;
  torch::stable::accelerator::DeviceGuard guard;
  Queue queue;
  ScalarType dtype;
  Arithmetic arithmetic;
};

// Bytes of an element of the call's type.
inline int element_size(const Context& context) {
  return context.dtype == ScalarType::Float ? 4 : 2;
}

// A weight in the kernels' order, and its owner.
struct Filter {
  Tensor storage;
  Weight weight;
  int kernel_h, kernel_w;
};

// `packed`, if given, or `weight`'s input channels [first, first + count), packed now.
Filter filter_of(const Context& context, const std::string& name, const Tensor& weight,
                 const OptionalTensor& packed, int64_t first = 0, int64_t count = -1);

// The filters of a module's weights, with the packed weights of each.
std::vector<Filter> filters_of(const Context& context, const Tensors& weights,
                               const OptionalTensors& packed);

// The work of one launch. Shapes are those of the inputs and the filter.
struct ConvolutionCall {
  std::vector<Source> inputs;
  Filter filter;
  int64_t batch = 1;
  int height = 1, width = 1;  // of the inputs
  int stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1;
  Affine prologue;
  Epilogue epilogue;
};

Ending ending_of(const Epilogue& epilogue);
ConvolutionShape shape_of(const Context& context, const ConvolutionCall& call);

// Taps with the offsets of the pixels that they read, in a tile of these axes, `chunk` channels at
// a time.
Taps placed(const Context& context, Taps taps, const Weight& weight, const Axis& rows,
            const Axis& columns, int chunk);

void run(const Context& context, const ConvolutionCall& call);

// Writes the activated values of `source`, or their means over pool x pool pixels, to `target`,
// which may be the same; for the activations that no epilogue has (activation.cu).
void activate(const Context& context, Activation activation, const Source& source,
              const Target& target, int64_t batch, int pool);

// Calls `convolve` with the part of `call` that a convolution computes itself, and then, if no
// epilogue has its activation, `activate`. `out` is the image that the call writes.
template <typename Convolve>
void run_activated(const Context& context, const ConvolutionCall& call, const Tensor& out,
                   const Convolve& convolve) {
  const Activation activation = call.epilogue.activation;
  if (activation <= Activation::prelu) {
    return convolve(call);
  }
  const int pool = call.epilogue.pool;
  const ConvolutionShape shape = shape_of(context, call);
  const Tensor sums =
      pool == 1 ? out
                : empty_image(out, {call.batch, out.size(1), shape.out_height, shape.out_width});
  ConvolutionCall plain = call;
  plain.epilogue.activation = Activation::none;
  plain.epilogue.pool = 1;
  plain.epilogue.out = target_of(sums);
  convolve(plain);
  activate(context, activation, source_of(context.op, sums), call.epilogue.out, call.batch, pool);
}

// A call on one input, of stride 1.
ConvolutionCall call_on(const Source& input, const Filter& filter, int64_t batch, const void* bias,
                        Activation activation, const Target& out, int64_t dilation_h = 1,
                        int64_t dilation_w = 1);

// The call of an operator's checked arguments, whose bias and slope are `vectors`.
ConvolutionCall call_on(const Source& input, const Filter& filter, const Checked& checked,
                        const Vectors& vectors, const Target& out);

// Launches the kernel of a plan; instantiated for each type in its own source file, because each
// takes long to compile.
template <typename T>
void launch_convolution(const Context& context, const ConvolutionPlan& plan,
                        const Convolution& convolution, const Boxes& boxes);

// Calls `function` with the arithmetic of a call on values of T.
template <typename T, typename Function>
void with_math(const Context& context, const Function& function) {
  if constexpr (sizeof(T) == 2) {
    function(HalfMath<T>());
  } else if (context.arithmetic == Arithmetic::tf32) {
    function(Tf32Math());
  } else {
    function(FloatMath());
  }
}

struct NormalizationTable;

// Launches the kernel for a picture's three channels (stem.cuh); with a table the picture is one of
// bytes.
void run_stem(const Context& context, const ConvolutionCall& call, const NormalizationTable* table);

// Clamps a step or dilation: larger than any picture, it still reaches nothing.
inline int limited(int64_t value) {
  return static_cast<int>(value < most_positions ? value : most_positions);
}

}  // namespace fassd::cuda
