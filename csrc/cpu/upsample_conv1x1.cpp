#include "upsample.h"

namespace fassd::cpu {

namespace {

template <typename T>
std::vector<Image<T>> images_of(const std::vector<ImageSource<T>>& sources) {
  std::vector<Image<T>> images;
  for (const ImageSource<T>& source : sources) {
    images.push_back(source.image());
  }
  return images;
}

// First the low part's share of the 1x1, at its own size, to memory. Then, band by band, that share
// resized into scratch and the skip part's share added to it.
template <typename T>
void run_upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& slope,
                          Activation activation, Tensor& out) {
  const std::vector<ImageSource<T>> low_sources(low.begin(), low.end());
  const std::vector<ImageSource<T>> skip_sources(skip.begin(), skip.end());
  const std::vector<Image<T>> low_images = images_of(low_sources);
  const std::vector<Image<T>> skip_images = images_of(skip_sources);
  int64_t low_channels = 0;
  for (const Image<T>& image : low_images) {
    low_channels += image.channels;
  }
  const PackedWeights<T> low_weights(weight, 0, low_channels);
  const PackedWeights<T> skip_weights(weight, low_channels, weight.size(1) - low_channels);
  const ChannelVector<T> biases(bias), slopes(slope);
  const int64_t batch = out.size(0), channels = out.size(1), height = out.size(2),
                width = out.size(3);
  const int64_t low_height = low_images[0].height, low_width = low_images[0].width;

  Tensor share = empty_image({batch, channels, low_height, low_width}, dtype_of<T>);
  Conv<T> conv;
  low_weights.attach(conv);
  conv.inputs = low_images.data();
  conv.input_count = low_images.size();
  conv.out_height = low_height;
  conv.out_width = low_width;
  conv.out = {share.mutable_data_ptr(), dtype_of<T>, low_height * low_width * channels,
              low_width * channels, channels};
  run(conv, batch);

  const Image<T> low_share = {static_cast<const T*>(share.const_data_ptr()),
                              channels,
                              low_height,
                              low_width,
                              conv.out.stride_n,
                              conv.out.stride_h,
                              conv.out.stride_w};
  const ResizeAxis<T> rows(low_height, height), columns(low_width, width);
  skip_weights.attach(conv);
  conv.inputs = skip_images.data();
  conv.input_count = skip_images.size();
  conv.out_height = height;
  conv.out_width = width;
  conv.epilogue.bias = biases.data();
  conv.epilogue.activation = activation;
  conv.epilogue.slope = slopes.data();
  conv.out = destination(out);
  const int64_t row = width * channels;
  parallel_bands<T>(batch, height, row, [&](T* scratch, int64_t n, int64_t first, int64_t last) {
    for (int64_t y = first; y < last; y++) {
      interpolate_row(low_share, rows, columns, n, y, 0, width, scratch + (y - first) * row);
    }
    const Image<T> resized = {scratch, channels, height, width, 0, row, channels, first};
    Conv<T> band = conv;
    band.epilogue.residual = &resized;
    kernels<T>().conv(band, n, first * width, last * width);
  });
}

}  // namespace

Tensor upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& slope,
                        const std::string& activation) {
  ImageSize size;
  const Activation parsed =
      check_upsample_conv1x1(low, skip, weight, bias, slope, activation, size);
  Tensor out = empty_image(size, skip[0].scalar_type());
  if (size.numel() > 0) {
    with_arithmetic(skip[0].scalar_type(), [&](auto type) {
      run_upsample_conv1x1<decltype(type)>(low, skip, weight, bias, slope, parsed, out);
    });
  }
  return out;
}

}  // namespace fassd::cpu
