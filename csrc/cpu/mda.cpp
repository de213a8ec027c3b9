#include "asymmetric_conv.h"

namespace fassd::cpu {

namespace {

// The module in two passes over bands of rows. The first makes `reduced`, the only intermediate
// that is written to memory, since all that follows reads it with a halo:
//   activated = prelu(bn(input)), rows of the band and one above and below;  reduced = reduce(...)
// The second does the rest of the module while a band stays in the cache:
//   asymmetric = pair(reduced); summed = act(act(square(reduced)) + asymmetric);
//   out = project(summed) + input
template <typename T>
class Mda {
 public:
  Mda(const Image<T>& input, const Tensors& weights, const Tensors& scales, const Tensors& shifts,
      const Tensors& slopes, int64_t dilation, Tensor& out)
      : input_(input),
        width_(weights[0].size(0)),
        batch_(out.size(0)),
        reduced_buffer_(batch_ * input.height * input.width * width_),
        reduced_{reduced_buffer_.data(),
                 width_,
                 input.height,
                 input.width,
                 input.height * input.width * width_,
                 input.width * width_,
                 width_},
        reduce_weights_(weights[0]),
        square_weights_(weights[1]),
        project_weights_(weights[4]),
        pair_(reduced_, weights[2], weights[3], shifts[3], shifts[4], slopes[3], slopes[4],
              dilation, Activation::prelu),
        out_(destination(out)) {
    for (const Tensor& tensor : scales) scales_.emplace_back(tensor);
    for (const Tensor& tensor : shifts) shifts_.emplace_back(tensor);
    for (const Tensor& tensor : slopes) slopes_.emplace_back(tensor);
  }

  void run() {
    const int64_t height = input_.height, width = input_.width;
    // A band of the first pass holds two rows more than it makes, hence three of scratch for one.
    parallel_bands<T>(batch_, height, 3 * width * input_.channels,
                      [&](T* scratch, int64_t n, int64_t first, int64_t last) {
                        reduce(scratch, n, first, last);
                      });
    parallel_bands<T>(batch_, height, pair_.scratch_per_row() + 2 * width * width_,
                      [&](T* scratch, int64_t n, int64_t first, int64_t last) {
                        finish(scratch, n, first, last);
                      });
  }

 private:
  Conv<T> convolution(const PackedWeights<T>& weights, const Image<T>& input) const {
    Conv<T> conv;
    weights.attach(conv);
    conv.inputs = &input;
    conv.input_count = 1;
    conv.out_height = input_.height;
    conv.out_width = input_.width;
    return conv;
  }

  void reduce(T* scratch, int64_t n, int64_t first, int64_t last) const {
    const int64_t width = input_.width, channels = input_.channels, row = width * channels;
    const int64_t top = first > 0 ? first - 1 : 0;
    const int64_t bottom = last < input_.height ? last + 1 : last;
    for (int64_t y = top; y < bottom; y++) {
      kernels<T>().affine_prelu(input_.pixel(n, y, 0), input_.stride_w, scratch + (y - top) * row,
                                channels, width, channels, scales_[0].data(), shifts_[0].data(),
                                slopes_[0].data());
    }
    const Image<T> activated = {scratch, channels, input_.height, width, 0, row, channels, top};
    Conv<T> conv = convolution(reduce_weights_, activated);
    conv.epilogue.bias = shifts_[1].data();
    conv.epilogue.activation = Activation::prelu;
    conv.epilogue.slope = slopes_[1].data();
    conv.out = {reduced_buffer_.data(), dtype_of<T>, reduced_.stride_n, reduced_.stride_h,
                reduced_.stride_w};
    kernels<T>().conv(conv, n, first * width, last * width);
  }

  void finish(T* scratch, int64_t n, int64_t first, int64_t last) const {
    const int64_t width = input_.width, row = width * width_, band = (last - first) * row;
    const auto rows_of = [&](T* data) {
      return Image<T>{data, width_, input_.height, width, 0, row, width_, first};
    };
    const Image<T> asymmetric = rows_of(scratch), summed = rows_of(scratch + band);
    pair_.run(scratch + 2 * band, n, first, last, {scratch, dtype_of<T>, 0, row, width_, first});

    Conv<T> conv = convolution(square_weights_, reduced_);
    conv.epilogue.bias = shifts_[2].data();
    conv.epilogue.activation = Activation::prelu;
    conv.epilogue.slope = slopes_[2].data();
    conv.epilogue.addend = &asymmetric;
    conv.epilogue.scale = scales_[1].data();
    conv.epilogue.shift = shifts_[5].data();
    conv.epilogue.final_slope = slopes_[5].data();
    conv.out = {scratch + band, dtype_of<T>, 0, row, width_, first};
    kernels<T>().conv(conv, n, first * width, last * width);

    conv = convolution(project_weights_, summed);
    conv.epilogue.residual = &input_;
    conv.out = out_;
    kernels<T>().conv(conv, n, first * width, last * width);
  }

  const Image<T> input_;
  const int64_t width_, batch_;  // width: channels inside the module
  const Buffer<T> reduced_buffer_;
  const Image<T> reduced_;
  const PackedWeights<T> reduce_weights_, square_weights_, project_weights_;
  const AsymmetricPair<T> pair_;
  const Destination out_;
  std::vector<ChannelVector<T>> scales_, shifts_, slopes_;
};

}  // namespace

Tensor mda(const Tensor& input, const Tensors& weights, const Tensors& scales,
           const Tensors& shifts, const Tensors& slopes, int64_t dilation) {
  const ImageSize size = check_mda(input, weights, scales, shifts, slopes, dilation);
  Tensor out = empty_image(size, input.scalar_type());
  if (size.numel() > 0) {
    with_arithmetic(input.scalar_type(), [&](auto type) {
      using T = decltype(type);
      const ImageSource<T> source(input);
      Mda<T>(source.image(), weights, scales, shifts, slopes, dilation, out).run();
    });
  }
  return out;
}

}  // namespace fassd::cpu
