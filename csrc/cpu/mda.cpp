#include "asymmetric_conv.h"

namespace fassd::cpu {

namespace {

// The module in two passes. The first makes `reduced`, the only intermediate that is written to
// memory, since all that follows reads it with a halo:
//   reduced = reduce(prelu(bn(input))), the activation applied to rows as they are brought in
// The second does the rest of the module while a band of rows stays in the cache:
//   asymmetric = pair(reduced); summed = act(act(square(reduced)) + asymmetric);
//   out = project(summed) + input
template <typename T>
class Mda {
 public:
  Mda(const Tensor& input, const Tensors& weights, const Tensors& scales, const Tensors& shifts,
      const Tensors& slopes, const OptionalTensors& packed, int64_t dilation, Tensor& out)
      : source_(image_of(input)),
        residual_(input),
        width_(weights[0].size(0)),
        batch_(out.size(0)),
        dtype_(dtype_between<T>(input.scalar_type())),
        reduced_tensor_(empty_image({batch_, width_, source_.height, source_.width}, dtype_)),
        reduced_(image_of(reduced_tensor_)),
        reduce_weights_("mda", weights[0], packed_at(packed, 0)),
        square_weights_("mda", weights[1], packed_at(packed, 1)),
        project_weights_("mda", weights[4], packed_at(packed, 4)),
        pair_("mda", reduced_, weights[2], weights[3], shifts[3], shifts[4], slopes[3], slopes[4],
              packed_at(packed, 2), packed_at(packed, 3), dilation, Activation::prelu) {
    for (const Tensor& tensor : scales) scales_.emplace_back(tensor);
    for (const Tensor& tensor : shifts) shifts_.emplace_back(tensor);
    for (const Tensor& tensor : slopes) slopes_.emplace_back(tensor);
    reduce_ = reduce_weights_.convolution(&source_, 1, source_.height, source_.width);
    reduce_.prologue = {scales_[0].data(), shifts_[0].data(), slopes_[0].data()};
    reduce_.epilogue.bias = shifts_[1].data();
    reduce_.epilogue.activation = Activation::prelu;
    reduce_.epilogue.slope = slopes_[1].data();
    reduce_.out = destination(reduced_tensor_);
    square_ = square_weights_.convolution(&reduced_, 1, source_.height, source_.width);
    square_.epilogue.bias = shifts_[2].data();
    square_.epilogue.activation = Activation::prelu;
    square_.epilogue.slope = slopes_[2].data();
    square_.epilogue.scale = scales_[1].data();
    square_.epilogue.shift = shifts_[5].data();
    square_.epilogue.final_slope = slopes_[5].data();
    project_ = project_weights_.convolution(&reduced_, 1, source_.height, source_.width);
    project_.epilogue.residual = &residual_.image();
    project_.out = destination(out);
  }

  void run() {
    fassd::cpu::run(reduce_, batch_);
    const int64_t extra = std::max({pair_.extra_scratch(), kernels<T>().conv_scratch(square_),
                                    kernels<T>().conv_scratch(project_)});
    const int64_t values = checked_product({source_.width, width_});
    const int64_t row =
        checked_sum(pair_.scratch_per_row(), checked_sum(values, values_for<T>(values, dtype_)));
    parallel_bands<T>(batch_, source_.height, row, extra,
                      [&](T* scratch, int64_t n, int64_t first, int64_t last) {
                        finish(scratch, n, first, last);
                      });
  }

 private:
  void finish(T* scratch, int64_t n, int64_t first, int64_t last) const {
    const auto band = [&](T* data, ScalarType dtype) {
      return Band<T>{data, width_, source_.height, source_.width, first, last, dtype};
    };
    const Band<T> asymmetric = band(scratch, dtype_of<T>);
    const Band<T> summed = band(scratch + asymmetric.values(), dtype_);
    T* const rest = summed.data + summed.values();
    pair_.run(rest, n, first, last, asymmetric.destination());

    const Image added = asymmetric.image(), sum = summed.image();
    Conv<T> conv = square_;
    conv.epilogue.addend = &added;
    conv.out = summed.destination();
    run_rows(conv, n, first, last, rest);

    conv = project_;
    conv.inputs = &sum;
    run_rows(conv, n, first, last, rest);
  }

  const Image source_;
  const Adjacent<T> residual_;
  const int64_t width_, batch_;  // width: channels inside the module
  const ScalarType dtype_;       // of what is multiplied there
  const Tensor reduced_tensor_;
  const Image reduced_;
  const Weights<T> reduce_weights_, square_weights_, project_weights_;
  const AsymmetricPair<T> pair_;
  Conv<T> reduce_, square_, project_;
  std::vector<ChannelVector<T>> scales_, shifts_, slopes_;
};

}  // namespace

Tensor mda(const Tensor& input, const Tensors& weights, const Tensors& scales,
           const Tensors& shifts, const Tensors& slopes, const OptionalTensors& packed,
           int64_t dilation) {
  const Checked checked = check_mda(input, weights, scales, shifts, slopes, packed, dilation);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    Mda<decltype(type)>(input, weights, scales, shifts, slopes, packed, dilation, out).run();
  });
}

}  // namespace fassd::cpu
