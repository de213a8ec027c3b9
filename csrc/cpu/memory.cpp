#include "memory.h"

#include <cstring>

namespace fassd::cpu {

namespace {

// Small results come from PyTorch's own allocator, which is quick with them.
constexpr int64_t small_result = 64 * 1024;

// Of sizes that fit into memory: torch_from_blob ends the process where it would throw.
Tensor empty_strided(const Integers& sizes, const Integers& strides, int64_t bytes,
                     ScalarType dtype) {
  return torch::stable::from_blob(acquire_memory(bytes), sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
                                  release_memory);
}

}  // namespace

Tensor empty_image(const ImageSize& size, ScalarType dtype) {
  const int64_t bytes = size.numel() * element_size(dtype);
  if (bytes <= small_result) {
    return torch::stable::empty(size.sizes(), dtype, std::nullopt, std::nullopt, std::nullopt,
                                torch::headeronly::MemoryFormat::ChannelsLast);
  }
  const int64_t row = size.width * size.channels;
  return empty_strided(size.sizes(), {size.height * row, 1, row, size.channels}, bytes, dtype);
}

Tensor empty_like_image(const Tensor& image) {
  const int64_t bytes = checked_product({image.numel(), element_size(image.scalar_type())});
  if (bytes <= small_result) {
    return torch::stable::empty_like(image);
  }
  const auto sizes = image.sizes(), strides = image.strides();
  return empty_strided({sizes.begin(), sizes.end()}, {strides.begin(), strides.end()}, bytes,
                       image.scalar_type());
}

Tensor empty_bytes(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t bytes = 1;
  for (size_t axis = sizes.size(); axis-- > 0;) {
    strides[axis] = bytes;
    bytes = checked_product({bytes, sizes[axis]});
  }
  if (bytes <= small_result) {
    return torch::stable::empty(sizes, ScalarType::Byte);
  }
  return empty_strided(sizes, strides, bytes, ScalarType::Byte);
}

bool is_dense(const Tensor& tensor, std::initializer_list<int64_t> axes) {
  int64_t expected = 1;
  for (auto axis = std::rbegin(axes); axis != std::rend(axes); ++axis) {
    if (tensor.size(*axis) != 1 && tensor.stride(*axis) != expected) {
      return false;
    }
    expected *= tensor.size(*axis);
  }
  return true;
}

Image image_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  // Along an axis of one nothing is stepped, and the stride may be any number.
  constexpr int64_t farthest = int64_t(1) << 40;
  const auto stride = [&](size_t axis) {
    return sizes[axis] == 1 && strides[axis] > farthest ? 0 : strides[axis];
  };
  return {tensor.const_data_ptr(),
          tensor.scalar_type(),
          sizes[1],
          sizes[2],
          sizes[3],
          stride(0),
          sizes[1] == 1 ? 1 : stride(1),
          stride(2),
          stride(3)};
}

std::vector<Image> images_of(const Tensors& tensors) {
  std::vector<Image> images;
  for (const Tensor& tensor : tensors) {
    images.push_back(image_of(tensor));
  }
  return images;
}

Image channels_of(const Image& image, int64_t first, int64_t count) {
  Image part = image;
  part.data =
      static_cast<const char*>(image.data) + first * image.stride_c * element_size(image.dtype);
  part.channels = count;
  return part;
}

Destination destination(const Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.scalar_type(), tensor.stride(0), tensor.stride(2),
          tensor.stride(3)};
}

Destination channels_of(const Destination& whole, int64_t first) {
  Destination part = whole;
  part.data = static_cast<char*>(whole.data) + first * element_size(whole.dtype);
  return part;
}

template <typename T>
ChannelsLast<T>::ChannelsLast(const Tensor& tensor) : image_(image_of(tensor)) {
  if (image_.dtype == dtype_of<T> && image_.stride_c == 1) {
    return;
  }
  const Image from = image_;
  const int64_t batch = tensor.size(0), channels = from.channels;
  const int64_t height = from.height, width = from.width, row = width * channels;
  copy_.emplace(checked_product({batch, height, width, channels}));
  T* const copy = copy_->data();
  const int64_t size = element_size(from.dtype);
  parallel(batch * height, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const char* line =
          static_cast<const char*>(from.data) + from.offset(item / height, item % height) * size;
      if (from.stride_c == 1) {
        const bool dense = from.stride_w == channels;
        for (int64_t x = 0; x < (dense ? 1 : width); x++) {
          kernels<T>().load(line + x * from.stride_w * size, from.dtype, 1,
                            copy + item * row + x * channels, 1, dense ? row : channels);
        }
        continue;
      }
      // 16 pixels at a time, so that the lines written stay in the cache while planes are read.
      constexpr int64_t pixels = 16;
      for (int64_t x = 0; x < width; x += pixels) {
        for (int64_t c = 0; c < channels; c++) {
          kernels<T>().load(line + (c * from.stride_c + x * from.stride_w) * size, from.dtype,
                            from.stride_w, copy + item * row + x * channels + c, channels,
                            std::min(pixels, width - x));
        }
      }
    }
  });
  image_ = {copy, dtype_of<T>, channels, height, width, height * row, 1, row, channels};
}

template <typename T>
ChannelVector<T>::ChannelVector(const OptionalTensor& vector) {
  if (!vector) {
    return;
  }
  const int64_t count = vector->size(0);
  values_.assign((count / channel_padding + 2) * channel_padding, T(0));
  kernels<T>().load(vector->const_data_ptr(), vector->scalar_type(), vector->stride(0),
                    values_.data(), 1, count);
}

int64_t band_rows(int64_t batch, int64_t height, int64_t bytes_per_row) {
  // Four bands a thread even out their differences.
  const int64_t bands = 4 * int64_t(torch::stable::get_num_threads());
  const int64_t balanced = (batch * height + bands - 1) / bands;
  const int64_t cached = scratch_bytes() / std::max<int64_t>(1, bytes_per_row);
  return std::max<int64_t>(
      band_step, (std::min({balanced, cached, height}) + band_step - 1) / band_step * band_step);
}

template <typename T>
void run(const Conv<T>& whole, int64_t batch) {
  Conv<T> conv = whole;
  // A 1x1 convolution at stride 1 does not care where rows end: one long row wastes no lanes.
  std::vector<Image> inputs(conv.inputs, conv.inputs + conv.input_count);
  Image residual;
  bool one_row = conv.kernel_h == 1 && conv.kernel_w == 1 && conv.stride_h == 1 &&
                 conv.stride_w == 1 && !conv.epilogue.addend &&
                 conv.out.stride_h == conv.out_width * conv.out.stride_w &&
                 (!conv.epilogue.residual || conv.epilogue.residual->rows_adjacent());
  for (const Image& image : inputs) {
    one_row = one_row && image.rows_adjacent();
  }
  if (one_row) {
    const int64_t pixels = conv.out_height * conv.out_width;
    for (Image& image : inputs) {
      image.height = 1;
      image.width = pixels;
    }
    if (conv.epilogue.residual) {
      residual = *conv.epilogue.residual;
      residual.height = 1;
      residual.width = pixels;
      conv.epilogue.residual = &residual;
    }
    conv.inputs = inputs.data();
    conv.out_height = 1;
    conv.out_width = pixels;
  }

  // Units are rows of tiles; where there are few, parts of them. A thread takes adjacent units at
  // once, so that it reads the rows between them once.
  const int64_t side = std::max<int64_t>(2, tile_side(conv.method));
  const int64_t rows = (conv.out_height + side - 1) / side;
  const int64_t strip = 2 * side * kernels<T>().lanes;
  const int64_t strips = (conv.out_width + strip - 1) / strip;
  const int64_t wanted = 2 * int64_t(torch::stable::get_num_threads());
  const int64_t columns =
      std::min(strips, std::max<int64_t>(1, (wanted + batch * rows - 1) / (batch * rows)));
  parallel_shares<T>(
      batch * columns * rows, kernels<T>().conv_scratch(conv),
      [&](T* scratch, int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t column = begin / rows % columns;
          const int64_t first = begin % rows, last = std::min(rows, first + end - begin);
          const Part part = {begin / (rows * columns), side * first,
                             std::min(side * last, conv.out_height),
                             strips * column / columns * strip,
                             std::min(strips * (column + 1) / columns * strip, conv.out_width)};
          kernels<T>().conv(conv, part, scratch);
          begin += last - first;
        }
      });
}

template <typename T>
void run_in_bands(const Conv<T>& conv, const Tensor& out, int64_t pool) {
  const Kernels<T>& kernel = kernels<T>();
  const int64_t channels = conv.out_channels, row = conv.out_width * channels;
  const int64_t width = out.size(3), values = width * channels;
  const Destination& to = conv.out;
  const bool bytes = to.dtype == ScalarType::Byte;
  const int64_t means = bytes && pool > 1 ? values : 0;
  parallel_bands<T>(
      out.size(0), pool * out.size(2), row, kernel.conv_scratch(conv) + means,
      [&](T* scratch, int64_t n, int64_t first, int64_t last) {
        const Band<T> band = {scratch, channels, conv.out_height, conv.out_width, first, last};
        T* const mean = scratch + band.values();
        Conv<T> part = conv;
        part.out = band.destination();
        run_rows(part, n, first, last, mean + means);
        for (int64_t y = first; y < last; y += pool) {
          const T* from = scratch + (y - first) * row;
          char* const at =
              static_cast<char*>(to.data) + to.offset(n, y / pool, 0) * element_size(to.dtype);
          if (pool > 1) {
            void* const pooled = bytes ? static_cast<void*>(mean) : at;
            kernel.pool_rows(from, from + row, channels, width, channels, pooled,
                             bytes ? dtype_of<T> : to.dtype, bytes ? channels : to.stride_w);
            from = mean;
          }
          if (bytes) {
            kernel.quantize(from, dtype_of<T>, to.scale, to.zero, reinterpret_cast<uint8_t*>(at),
                            values);
          }
        }
      });
}

template class ChannelsLast<float>;
template class ChannelsLast<double>;
template class ChannelVector<float>;
template class ChannelVector<double>;
template void run(const Conv<float>&, int64_t);
template void run(const Conv<double>&, int64_t);
template void run_in_bands(const Conv<float>&, const Tensor&, int64_t);
template void run_in_bands(const Conv<double>&, const Tensor&, int64_t);

}  // namespace fassd::cpu
