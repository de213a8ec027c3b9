#include "packing.h"
#include "upsample.h"

namespace fassd::cpu {

namespace {

// First the low part's share of the 1x1, at its own size, to memory. Then, band by band, that share
// resized into scratch and the skip part's share added to it.
template <typename T>
void run_upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& slope,
                          const OptionalTensors& packed, Activation activation,
                          const StripRows& strip_rows, Tensor& out) {
  const char* op = "upsample_conv1x1";
  const std::vector<Image> low_images = images_of(low), skip_images = images_of(skip);
  const int64_t low_channels = total_channels(low);
  Tensor joint = weight;
  const Weights<T> low_weights(op, torch::stable::narrow(joint, 1, 0, low_channels),
                               packed_at(packed, 0));
  const Weights<T> skip_weights(
      op, torch::stable::narrow(joint, 1, low_channels, weight.size(1) - low_channels),
      packed_at(packed, 1));
  const ChannelVector<T> biases(bias), slopes(slope);
  const int64_t batch = out.size(0), channels = out.size(1), height = out.size(2),
                width = out.size(3);
  const int64_t low_height = low_images[0].height, low_width = low_images[0].width;

  const Tensor share = empty_image({batch, channels, low_height, low_width}, dtype_of<T>);
  Conv<T> conv =
      low_weights.convolution(low_images.data(), low_images.size(), low_height, low_width);
  conv.out = destination(share);
  run(conv, batch);

  const Image low_share = image_of(share);
  const ResizeAxis<T> rows(strip_rows.in, strip_rows.out), columns(low_width, width);
  conv = skip_weights.convolution(skip_images.data(), skip_images.size(), height, width);
  conv.epilogue.bias = biases.data();
  conv.epilogue.activation = activation;
  conv.epilogue.slope = slopes.data();
  conv.out = destination(out);
  parallel_bands<T>(batch, height, width * channels, kernels<T>().conv_scratch(conv),
                    [&](T* scratch, int64_t n, int64_t first, int64_t last) {
                      const Band<T> resized = {scratch, channels, height, width, first, last};
                      for (int64_t y = first; y < last; y++) {
                        interpolate_row(low_share, rows, columns, n, y, 0, width,
                                        scratch + (y - first) * resized.row());
                      }
                      const Image added = resized.image();
                      Conv<T> band = conv;
                      band.epilogue.residual = &added;
                      run_rows(band, n, first, last, scratch + resized.values());
                    });
}

}  // namespace

Tensor upsample_conv1x1(const Tensors& low, const Tensors& skip, const Tensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& slope,
                        const OptionalTensors& packed, const std::string& activation) {
  const Checked checked =
      check_upsample_conv1x1(low, skip, weight, bias, slope, packed, activation);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    run_upsample_conv1x1<decltype(type)>(low, skip, weight, bias, slope, packed, checked.activation,
                                         {low[0].size(2), checked.size.height}, out);
  });
}

Tensor upsample_conv1x1_rows(const Tensors& low, const Tensors& skip, const Tensor& weight,
                             const OptionalTensor& bias, const OptionalTensor& slope,
                             const OptionalTensors& packed, const std::string& activation,
                             const Integers& rows) {
  const Checked checked =
      check_upsample_conv1x1(low, skip, weight, bias, slope, packed, activation);
  const StripRows strip_rows("upsample_conv1x1_rows", low[0].size(2), checked.size.height, rows);
  return result_of(checked.size, checked.dtype, [&](auto type, Tensor& out) {
    run_upsample_conv1x1<decltype(type)>(low, skip, weight, bias, slope, packed, checked.activation,
                                         strip_rows, out);
  });
}

}  // namespace fassd::cpu
