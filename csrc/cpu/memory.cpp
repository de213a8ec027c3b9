#include "memory.h"

#include <algorithm>
#include <cstring>

namespace fassd::cpu {

namespace {

const char* bytes_of(const Tensor& tensor) {
  return static_cast<const char*>(tensor.const_data_ptr());
}

// Copies one row of pixels to adjacent channels. Where the channels are planes, 16 pixels at a
// time, so that the 16 cache lines written stay in the cache while the planes are read line by
// line.
template <typename T>
void copy_row(const char* from, ScalarType dtype, int64_t stride_c, int64_t stride_w,
              int64_t channels, int64_t width, T* to) {
  const int64_t size = element_size(dtype);
  if (stride_c == 1) {
    for (int64_t x = 0; x < width; x++) {
      kernels<T>().load(from + x * stride_w * size, dtype, 1, to + x * channels, 1, channels);
    }
    return;
  }
  constexpr int64_t pixels = 16;
  for (int64_t x = 0; x < width; x += pixels) {
    for (int64_t c = 0; c < channels; c++) {
      kernels<T>().load(from + (c * stride_c + x * stride_w) * size, dtype, stride_w,
                        to + x * channels + c, channels, std::min(pixels, width - x));
    }
  }
}

}  // namespace

Tensor empty_image(const ImageSize& size, ScalarType dtype) {
  return torch::stable::empty(size.sizes(), dtype, std::nullopt, std::nullopt, std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

Destination destination(Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.scalar_type(), tensor.stride(0), tensor.stride(2),
          tensor.stride(3)};
}

template <typename T>
ImageSource<T>::ImageSource(const Tensor& tensor) : keep_(tensor) {
  const int64_t batch = tensor.size(0), channels = tensor.size(1);
  const int64_t height = tensor.size(2), width = tensor.size(3);
  const ScalarType dtype = tensor.scalar_type();
  if (dtype != dtype_of<T> || (tensor.stride(1) != 1 && channels > 1)) {
    keep_ = empty_image({batch, channels, height, width}, dtype_of<T>);
    T* const copy = static_cast<T*>(keep_.mutable_data_ptr());
    const char* const from = bytes_of(tensor);
    const int64_t stride_n = tensor.stride(0), stride_c = tensor.stride(1);
    const int64_t stride_h = tensor.stride(2), stride_w = tensor.stride(3);
    torch::stable::parallel_for(0, batch * height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const int64_t start = row / height * stride_n + row % height * stride_h;
        copy_row(from + start * element_size(dtype), dtype, stride_c, stride_w, channels, width,
                 copy + row * width * channels);
      }
    });
    image_ = {copy, channels, height, width, height * width * channels, width * channels, channels};
    return;
  }
  image_ = {static_cast<const T*>(tensor.const_data_ptr()),
            channels,
            height,
            width,
            tensor.stride(0),
            tensor.stride(2),
            tensor.stride(3)};
}

template <typename T>
ChannelVector<T>::ChannelVector(const OptionalTensor& vector) {
  if (!vector) {
    return;
  }
  const int64_t count = vector->size(0);
  values_.assign((count + channel_padding - 1) / channel_padding * channel_padding, T(0));
  kernels<T>().load(vector->const_data_ptr(), vector->scalar_type(), vector->stride(0),
                    values_.data(), 1, count);
}

template <typename T>
PackedWeights<T>::PackedWeights(const Tensor& weight) : PackedWeights(weight, 0, weight.size(1)) {}

template <typename T>
PackedWeights<T>::PackedWeights(const Tensor& weight, int64_t first_in, int64_t in_channels)
    : packed_((weight.size(0) + channel_padding) * in_channels * weight.size(2) * weight.size(3)),
      zeros_(in_channels, T(0)),
      out_channels_(weight.size(0)),
      kernel_h_(weight.size(2)),
      kernel_w_(weight.size(3)) {
  const int64_t lanes = kernels<T>().lanes, block = 2 * lanes;
  const int64_t rows = in_channels * kernel_h_ * kernel_w_;
  const ScalarType dtype = weight.scalar_type();
  const int64_t size = element_size(dtype);
  const char* const from = bytes_of(weight);
  const int64_t stride_o = weight.stride(0), stride_i = weight.stride(1);
  const int64_t stride_h = weight.stride(2), stride_w = weight.stride(3);
  const bool adjacent = stride_o == 1 && dtype == dtype_of<T>;  // as packing.py lays weights out
  T* const packed = packed_.data();
  const auto pack_row = [&](int64_t at, int64_t count, int64_t width, T* to) {
    if (adjacent) {
      std::memcpy(to, from + at * size, count * sizeof(T));
    } else {
      kernels<T>().load(from + at * size, dtype, stride_o, to, 1, count);
    }
    std::fill(to + count, to + width, T(0));
  };
  const int64_t blocks = (out_channels_ + block - 1) / block;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      const int64_t out = b * block, count = std::min(block, out_channels_ - out);
      const int64_t width = count > lanes ? block : lanes;
      T* to = packed + out * rows;
      for (int64_t tap = 0; tap < kernel_h_ * kernel_w_; tap++) {
        const int64_t at = out * stride_o + first_in * stride_i + tap / kernel_w_ * stride_h +
                           tap % kernel_w_ * stride_w;
        for (int64_t in = 0; in < in_channels; in++, to += width) {
          pack_row(at + in * stride_i, count, width, to);
        }
      }
    }
  });
}

template <typename T>
void PackedWeights<T>::attach(Conv<T>& conv) const {
  conv.weights = packed_.data();
  conv.zeros = zeros_.data();
  conv.kernel_h = kernel_h_;
  conv.kernel_w = kernel_w_;
  conv.out_channels = out_channels_;
}

int64_t band_rows(int64_t batch, int64_t height, int64_t bytes_per_row) {
  // Four bands a thread even out their differences; a band of less than a row there is not.
  const int64_t bands = 4 * int64_t(torch::stable::get_num_threads());
  const int64_t balanced = (batch * height + bands - 1) / bands;
  const int64_t cached = scratch_bytes / std::max<int64_t>(1, bytes_per_row);
  return std::max<int64_t>(1, std::min({balanced, cached, height}));
}

template <typename T>
void run(const Conv<T>& conv, int64_t batch) {
  // Pixels of an image are cut into chunks: enough for balance, long enough to pay for a start.
  const int64_t pixels = conv.out_height * conv.out_width;
  const int64_t wanted = 8 * int64_t(torch::stable::get_num_threads());
  const int64_t chunk = std::clamp<int64_t>(batch * pixels / wanted, 96, 4096) / 12 * 12;
  const int64_t chunks = (pixels + chunk - 1) / chunk;
  torch::stable::parallel_for(0, batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % chunks * chunk;
      kernels<T>().conv(conv, item / chunks, first, std::min(first + chunk, pixels));
    }
  });
}

template class ImageSource<float>;
template class ImageSource<double>;
template class ChannelVector<float>;
template class ChannelVector<double>;
template class PackedWeights<float>;
template class PackedWeights<double>;
template void run(const Conv<float>&, int64_t);
template void run(const Conv<double>&, int64_t);

}  // namespace fassd::cpu
