// Between tensors and the vector kernels: scratch memory, layouts, and the cutting of work.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>

#include "kernels.h"
#include "pool.h"

namespace fassd::cpu {

// Cache that a thread can call its own: bands of rows in scratch memory are cut to this size.
inline int64_t scratch_bytes() {
  return second_level_cache() / 2;
}

// The dtype of T: float or double.
template <typename T>
constexpr ScalarType dtype_of = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

// Uninitialised memory of `count` values from the pool.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(acquire_memory(checked_product({count, int64_t(sizeof(T))}))),
              release_memory) {}
  T* data() const { return data_.get(); }

 private:
  std::unique_ptr<T, void (*)(void*)> data_;
};

// New tensors on the CPU, in memory from the pool: an image, channels_last; an image with the
// sizes, strides and dtype of one without gaps; and contiguous bytes.
Tensor empty_image(const ImageSize& size, ScalarType dtype);
Tensor empty_like_image(const Tensor& image);
Tensor empty_bytes(const std::vector<int64_t>& sizes);

// Whether the values of a tensor follow each other, its axes in this order.
bool is_dense(const Tensor& tensor, std::initializer_list<int64_t> axes);
inline bool is_channels_last(const Tensor& image) {
  return is_dense(image, {0, 2, 3, 1});
}

// The tensor, or channels [first, first + count) of it, as Image and Destination.
Image image_of(const Tensor& tensor);
std::vector<Image> images_of(const Tensors& tensors);
Image channels_of(const Image& image, int64_t first, int64_t count);
Destination destination(const Tensor& tensor);
Destination channels_of(const Destination& destination, int64_t first);

// The dtype of what a convolution in T makes for others: products of tiles round what they read to
// bfloat16, so that this is all of it that counts.
template <typename T>
ScalarType dtype_between(ScalarType input) {
  return kernels<T>().tiles && input == ScalarType::BFloat16 ? input : dtype_of<T>;
}

// Values of T that take at least as much memory as `count` values of a dtype.
template <typename T>
int64_t values_for(int64_t count, ScalarType dtype) {
  constexpr int64_t size = sizeof(T);
  return (count * element_size(dtype) + size - 1) / size;
}

// A band of rows of one picture in memory: `channels` adjacent values per pixel, without gaps.
template <typename T>
struct Band {
  T* data;
  int64_t channels, height, width;  // of the whole picture
  int64_t first_row, last_row;      // those that are there
  ScalarType dtype = dtype_of<T>;

  int64_t row() const { return width * channels; }
  // Of T.
  int64_t values() const { return values_for<T>((last_row - first_row) * row(), dtype); }
  Image image() const {
    return {data, dtype, channels, height, width, 0, 1, row(), channels, first_row};
  }
  Destination destination() const { return {data, dtype, 0, row(), channels, first_row}; }
};

// A tensor as an Image of adjacent channels of T: in place where its dtype and layout allow,
// otherwise through a copy, which it owns.
template <typename T>
class ChannelsLast {
 public:
  explicit ChannelsLast(const Tensor& tensor);
  const Image& image() const { return image_; }

 private:
  Image image_;
  std::optional<Buffer<T>> copy_;
};

// A tensor as an Image of adjacent channels, whatever its floating dtype.
template <typename T>
class Adjacent {
 public:
  explicit Adjacent(const Tensor& tensor) : image_(image_of(tensor)) {
    if (image_.stride_c != 1) {
      copy_.emplace(tensor);
      image_ = copy_->image();
    }
  }
  const Image& image() const { return image_; }

 private:
  Image image_;
  std::optional<ChannelsLast<T>> copy_;
};

// A per-channel vector as T, padded with zeros so that whole vector registers can be read.
template <typename T>
class ChannelVector {
 public:
  ChannelVector() = default;
  explicit ChannelVector(const OptionalTensor& vector);
  // Null where there is no vector.
  const T* data() const { return values_.empty() ? nullptr : values_.data(); }

 private:
  std::vector<T> values_;
};

// Runs body(first, last) over shares of [0, count), on torch's threads. The way there is C's, which
// no exception may take: the first one that a body throws comes out here.
template <typename Body>
void parallel(int64_t count, const Body& body) {
  std::exception_ptr thrown;
  std::mutex mutex;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    try {
      body(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(mutex);
      thrown = thrown ? thrown : std::current_exception();
    }
  });
  if (thrown) {
    std::rethrow_exception(thrown);
  }
}

// Runs body(thread's scratch, first, last) over shares of [0, count), on torch's threads. `scratch`
// is the number of values of T that a thread needs.
template <typename T, typename Body>
void parallel_shares(int64_t count, int64_t scratch, const Body& body) {
  if (count == 0) {
    return;
  }
  constexpr int64_t cache_line = 64 / sizeof(T);
  scratch = checked_sum(scratch, cache_line - 1) / cache_line * cache_line;
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  Buffer<T> buffer(checked_product({scratch, int64_t(torch::stable::get_num_threads())}));
  if (threads == 1) {
    body(buffer.data(), int64_t(0), count);
    return;
  }
  parallel(count, [&](int64_t begin, int64_t end) {
    uint32_t thread = 0;
    torch_get_thread_idx(&thread);
    body(buffer.data() + thread * scratch, begin, end);
  });
}

// Runs body(thread's scratch, item) for every item in [0, count).
template <typename T, typename Body>
void parallel_items(int64_t count, int64_t scratch, const Body& body) {
  parallel_shares<T>(count, scratch, [&](T* memory, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      body(memory, item);
    }
  });
}

// Rows of a band, so that bands of `bytes_per_row` fit the cache and every thread gets several. A
// multiple of every tile's side.
constexpr int64_t band_step = 4;
int64_t band_rows(int64_t batch, int64_t height, int64_t bytes_per_row);

// Runs body(scratch, n, first row, last row) over bands of rows of a batch of images. `extra`
// values of scratch are added to those that the rows take.
template <typename T, typename Body>
void parallel_bands(int64_t batch, int64_t height, int64_t values_per_row, int64_t extra,
                    const Body& body) {
  const int64_t rows =
      band_rows(batch, height, checked_product({values_per_row, int64_t(sizeof(T))}));
  const int64_t bands = (height + rows - 1) / rows;
  const int64_t values = checked_sum(checked_product({rows, values_per_row}), extra);
  parallel_items<T>(batch * bands, values, [&](T* scratch, int64_t item) {
    const int64_t first = item % bands * rows;
    body(scratch, item / bands, first, std::min(first + rows, height));
  });
}

// Runs rows [first, last) of image n of a convolution.
template <typename T>
void run_rows(const Conv<T>& conv, int64_t n, int64_t first, int64_t last, T* scratch) {
  kernels<T>().conv(conv, {n, first, last, 0, conv.out_width}, scratch);
}

// Runs a convolution over its whole output.
template <typename T>
void run(const Conv<T>& conv, int64_t batch);

// Runs a convolution band by band in scratch memory, and writes the bands to `out`: the means of
// `pool` x `pool` pixels, 1 or 2, and as bytes if `conv.out` is of bytes.
template <typename T>
void run_in_bands(const Conv<T>& conv, const Tensor& out, int64_t pool);

// Calls f(T()) with the type that tensors of `dtype` are computed in: double for double, else
// float.
template <typename F>
auto with_arithmetic(ScalarType dtype, const F& f) {
  return dtype == ScalarType::Double ? f(double()) : f(float());
}

// The result of an operator: run(T(), out) fills it in, unless it is empty.
template <typename Run>
Tensor result_of(const ImageSize& size, ScalarType dtype, const Run& run) {
  Tensor out = empty_image(size, dtype);
  if (size.numel() > 0) {
    with_arithmetic(dtype, [&](auto type) { run(type, out); });
  }
  return out;
}

}  // namespace fassd::cpu
