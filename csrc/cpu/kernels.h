// What the operators ask of the vector kernels: plain structures of pointers and sizes, and a table
// of functions that exists once per instruction set (kernels_avx512.cpp, kernels_avx2.cpp,
// kernels_portable.cpp; all three compile kernels_impl.h).

#pragma once

#include <cstdint>

#include "../checks.h"

namespace fassd::cpu {

// A batch of images to read: N x H x W pixels, each `channels` adjacent values of type T.
// Strides are in elements. `first_row` is the row at `data`: a band of rows in scratch memory is an
// image of which only that band exists.
template <typename T>
struct Image {
  const T* data = nullptr;
  int64_t channels = 0, height = 0, width = 0;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0;
  int64_t first_row = 0;

  __attribute__((always_inline)) const T* pixel(int64_t n, int64_t y, int64_t x) const {
    return data + n * stride_n + (y - first_row) * stride_h + x * stride_w;
  }
};

// Where a convolution writes: as an Image, of any floating dtype.
struct Destination {
  void* data = nullptr;
  ScalarType dtype = ScalarType::Float;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0;
  int64_t first_row = 0;

  __attribute__((always_inline)) int64_t offset(int64_t n, int64_t y, int64_t x) const {
    return n * stride_n + (y - first_row) * stride_h + x * stride_w;
  }
};

// What is done to the sums of a convolution before they are written, in this order:
//   v = sum + bias; v += residual; v = activation(v); v += addend; v = prelu(v * scale + shift).
// Null pointers leave a step out. Vectors are padded to `channel_padding`.
template <typename T>
struct Epilogue {
  const T* bias = nullptr;
  const Image<T>* residual = nullptr;
  Activation activation = Activation::none;
  const T* slope = nullptr;
  const Image<T>* addend = nullptr;
  const T* scale = nullptr;
  const T* shift = nullptr;
  const T* final_slope = nullptr;
};

// Values that the widest block of output channels takes on any instruction set (2 x 16 floats).
constexpr int64_t channel_padding = 32;

// A convolution with "same" padding over the virtual concatenation of `inputs`.
template <typename T>
struct Conv {
  const Image<T>* inputs = nullptr;
  int64_t input_count = 0;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t out_height = 0, out_width = 0, out_channels = 0;
  const T* weights = nullptr;  // as pack_weights (packing.h) lays them out
  const T* zeros = nullptr;    // as many zeros as the widest input has channels: the padding
  Epilogue<T> epilogue;
  Destination out;
};

// The kernels for one instruction set and one type of arithmetic.
template <typename T>
struct Kernels {
  int64_t lanes;  // values in a vector register

  // Pixels [begin, end) of image n, counted in rows of out_width; all output channels.
  void (*conv)(const Conv<T>& conv, int64_t n, int64_t begin, int64_t end);

  // out = prelu(in * scale + shift) for `pixels` pixels of `channels` values.
  void (*affine_prelu)(const T* in, int64_t in_stride, T* out, int64_t out_stride, int64_t pixels,
                       int64_t channels, const T* scale, const T* shift, const T* slope);

  // out = a + (b - a) between two rows: out[x][c] for x in [begin, end), from the bilinear
  // neighbours left[x], right[x] (pixel indices) of rows `top` and `bottom`.
  void (*interpolate)(const T* top, const T* bottom, int64_t stride_w, const int64_t* left,
                      const int64_t* right, const T* weight_right, T weight_bottom, int64_t begin,
                      int64_t end, int64_t channels, T* out, int64_t out_stride);

  // labels[x] = argmax over channels, for one row of an image that is planar:
  // row[c * plane + x], resized along x as above. `best` is scratch for `width` values.
  void (*argmax_row)(const T* row, int64_t plane, const int64_t* left, const int64_t* right,
                     const T* weight_right, int64_t width, int64_t channels, T* best,
                     uint8_t* labels);

  // Reads `count` values of `dtype`, `stride` apart, as T; and writes adjacent ones.
  void (*load)(const void* in, ScalarType dtype, int64_t stride, T* out, int64_t out_stride,
               int64_t count);
  void (*store)(const T* in, void* out, ScalarType dtype, int64_t count);
};

// The table for the instruction set that capability() names. T is float or double.
template <typename T>
const Kernels<T>& kernels();

namespace avx512 {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
}  // namespace avx512
namespace avx2 {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
}  // namespace avx2
namespace portable {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
}  // namespace portable

}  // namespace fassd::cpu
