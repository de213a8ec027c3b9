// Scratch memory, layout changes and packed weights, between tensors and the vector kernels.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <memory>

#include "kernels.h"

namespace fassd::cpu {

// Cache that a thread can call its own: bands of rows in scratch memory are cut to this size.
constexpr int64_t scratch_bytes = 512 * 1024;

// The dtype of T (float or double), and the bytes of a value of a floating dtype.
template <typename T>
constexpr ScalarType dtype_of = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

constexpr int64_t element_size(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

// Uninitialised memory of `count` values; from PyTorch's allocator, so that its accounting and its
// filling of fresh memory (torch.utils.deterministic) see it.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : tensor_(torch::stable::empty({count}, dtype_of<T>)) {}
  T* data() const { return static_cast<T*>(tensor_.mutable_data_ptr()); }

 private:
  Tensor tensor_;
};

// A new channels_last tensor on the CPU.
Tensor empty_image(const ImageSize& size, ScalarType dtype);

// The tensor as a Destination of all its channels.
Destination destination(Tensor& tensor);

// A tensor read as an Image of T: in place where dtype and layout allow (adjacent channels),
// otherwise through a converted copy, which it owns.
template <typename T>
class ImageSource {
 public:
  explicit ImageSource(const Tensor& tensor);
  const Image<T>& image() const { return image_; }

 private:
  Image<T> image_;
  Tensor keep_;  // the tensor read, or its copy
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

// Convolution weights in the order in which the kernel reads them:
//   [block of output channels][tap][input channel][lane]
// A block is two vectors of output channels, or one at the end where one suffices; lanes beyond the
// last output channel are zero. `first_in` and `in_channels` select input channels.
template <typename T>
class PackedWeights {
 public:
  explicit PackedWeights(const Tensor& weight);
  PackedWeights(const Tensor& weight, int64_t first_in, int64_t in_channels);
  // Sets the weights, zeros and kernel size of a convolution.
  void attach(Conv<T>& conv) const;

 private:
  Buffer<T> packed_;
  std::vector<T> zeros_;
  int64_t out_channels_, kernel_h_, kernel_w_;
};

// Runs body(thread's scratch, item) for every item in [0, count), on torch's threads. `scratch` is
// the number of values of T that a thread needs.
template <typename T, typename Body>
void parallel_items(int64_t count, int64_t scratch, const Body& body) {
  if (count == 0) {
    return;
  }
  constexpr int64_t cache_line = 64 / sizeof(T);
  scratch = (scratch + cache_line - 1) / cache_line * cache_line;
  Buffer<T> buffer(scratch * torch::stable::get_num_threads());
  T* const base = buffer.data();
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    uint32_t thread = 0;
    torch_get_thread_idx(&thread);
    for (int64_t item = begin; item < end; item++) {
      body(base + thread * scratch, item);
    }
  });
}

// Rows of a band, so that bands of `bytes_per_row` fit the cache and every thread gets several.
int64_t band_rows(int64_t batch, int64_t height, int64_t bytes_per_row);

// Runs body(scratch, n, first row, last row) over bands of rows of a batch of images.
template <typename T, typename Body>
void parallel_bands(int64_t batch, int64_t height, int64_t values_per_row, const Body& body) {
  const int64_t rows = band_rows(batch, height, values_per_row * int64_t(sizeof(T)));
  const int64_t bands = (height + rows - 1) / rows;
  parallel_items<T>(batch * bands, rows * values_per_row, [&](T* scratch, int64_t item) {
    const int64_t first = item % bands * rows;
    body(scratch, item / bands, first, first + rows < height ? first + rows : height);
  });
}

// Runs a convolution over its whole output.
template <typename T>
void run(const Conv<T>& conv, int64_t batch);

// Calls f(T()) with the type that tensors of `dtype` are computed in: double for double, else
// float.
template <typename F>
auto with_arithmetic(ScalarType dtype, const F& f) {
  return dtype == ScalarType::Double ? f(double()) : f(float());
}

}  // namespace fassd::cpu
