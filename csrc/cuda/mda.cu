// mda in four launches: reduce (with batch norm and PReLU on its input), square, the pair of
// asymmetric convolutions, whose epilogue adds `square` and applies batch norm and PReLU to the
// sum, and the 1x1 with the residual.

#include "asymmetric_conv.cuh"

namespace fassd::cuda {

Tensor mda(const Tensor& input, const Tensors& weights, const Tensors& scales,
           const Tensors& shifts, const Tensors& slopes, const OptionalTensors& packed,
           int64_t dilation, bool allow_tf32) {
  const ImageSize size = check_mda(input, weights, scales, shifts, slopes, packed, dilation).size;
  const Context context("mda", input, allow_tf32);
  const Tensor out = empty_image(input, size);
  const std::vector<Filter> filters = filters_of(context, weights, packed);
  if (size.numel() == 0) {
    return out;
  }
  const Vectors scale(scales), shift(shifts), slope(slopes);
  const ImageSize inner = {size.batch, weights[0].size(0), size.height, size.width};
  const Tensor reduced = empty_image(input, inner), square = empty_image(input, inner),
               summed = empty_image(input, inner);
  const Source source = source_of("mda", input), middle = source_of("mda", reduced);

  ConvolutionCall reduce =
      call_on(source, filters[0], size.batch, shift[1], Activation::prelu, target_of(reduced));
  reduce.prologue = {scale[0], shift[0], slope[0]};
  reduce.epilogue.slope = slope[1];
  run(context, reduce);

  ConvolutionCall squared =
      call_on(middle, filters[1], size.batch, shift[2], Activation::prelu, target_of(square));
  squared.epilogue.slope = slope[2];
  run(context, squared);

  PairCall pair;
  pair.input = middle;
  pair.batch = size.batch;
  pair.first = filters[2];
  pair.second = filters[3];
  pair.dilation = limited(dilation);
  pair.bias = shift[3];
  pair.slope = slope[3];
  pair.epilogue.bias = shift[4];
  pair.epilogue.slope = slope[4];
  pair.epilogue.activation = Activation::prelu;
  pair.epilogue.addend = source_of("mda", square);
  pair.epilogue.affine = {scale[1], shift[5], slope[5]};
  pair.epilogue.out = target_of(summed);
  run_pairs(context, input, {pair});

  ConvolutionCall project = call_on(source_of("mda", summed), filters[4], size.batch, nullptr,
                                    Activation::none, target_of(out));
  project.epilogue.residual = source;
  run(context, project);
  return out;
}

}  // namespace fassd::cuda
