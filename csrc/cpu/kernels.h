// What the operators ask of the vector kernels: plain structures of pointers and sizes, and a table
// of functions that exists once per instruction set (kernels_avx512.cpp, kernels_avx2.cpp,
// kernels_neon.cpp, kernels_portable.cpp; all of them compile kernels_impl.h).

#pragma once

#include <cstdint>

#include "../checks.h"

namespace fassd::cpu {

// Bytes of a value of a floating dtype, or of bytes.
constexpr int64_t element_size(ScalarType dtype) {
  return dtype == ScalarType::Double                              ? 8
         : dtype == ScalarType::Float                             ? 4
         : dtype == ScalarType::Byte || dtype == ScalarType::Char ? 1
                                                                  : 2;
}

// A batch of images to read: any floating dtype, any strides (in elements). `first_row` is the row
// at `data`: a band of rows in scratch memory is an image of which only that band exists. Of bytes,
// the values are scale * (byte - zero).
struct Image {
  const void* data = nullptr;
  ScalarType dtype = ScalarType::Float;
  int64_t channels = 0, height = 0, width = 0;
  int64_t stride_n = 0, stride_c = 1, stride_h = 0, stride_w = 0;
  int64_t first_row = 0;
  float scale = 1;
  int32_t zero = 0;

  int64_t offset(int64_t n, int64_t y) const { return n * stride_n + (y - first_row) * stride_h; }
  // Whether the pixels of all rows follow each other at one distance.
  bool rows_adjacent() const { return height == 1 || stride_h == width * stride_w; }
};

// Where a convolution writes: any floating dtype, adjacent channels; or bytes, as in Image.
struct Destination {
  void* data = nullptr;
  ScalarType dtype = ScalarType::Float;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0;
  int64_t first_row = 0;
  float scale = 1;
  int32_t zero = 0;

  int64_t offset(int64_t n, int64_t y, int64_t x) const {
    return n * stride_n + (y - first_row) * stride_h + x * stride_w;
  }
};

// PReLU(x * scale + shift), applied to the input's pixels and not to its padding. Null pointers
// leave it out.
template <typename T>
struct Prologue {
  const T* scale = nullptr;
  const T* shift = nullptr;
  const T* slope = nullptr;
};

// What is done to the sums of a convolution before they are written, in this order:
//   v = sum + bias; v += residual; v = activation(v); v += addend; v = prelu(v * scale + shift).
// Sums of bytes' products are whole numbers, that the factor turns into values. Null pointers leave
// a step out. Vectors are padded to `channel_padding`; residual and addend have
// adjacent channels.
template <typename T>
struct Epilogue {
  const T* factor = nullptr;
  bool bounded = false;  // whether bytes, before they are rounded, surely fit 31 bits
  const T* bias = nullptr;
  const Image* residual = nullptr;
  Activation activation = Activation::none;
  const T* slope = nullptr;
  const Image* addend = nullptr;
  const T* scale = nullptr;
  const T* shift = nullptr;
  const T* final_slope = nullptr;
};

// Values that the widest vector holds on any instruction set (16 floats): per-channel vectors are
// padded to it.
constexpr int64_t channel_padding = 16;

// Taps on a side of a kernel, at most.
constexpr int64_t most_side = 7;

// Rows that a depthwise convolution does at once, at most.
constexpr int64_t depthwise_rows = 4;

// How a convolution is computed: a sum over taps, or for 3x3 kernels at stride and dilation 1
// Winograd's F(4x4, 3x3), 36 products where the sum takes 144, or F(2x2, 3x3), 16 where it takes
// 36; for 3x1 and 1x3 kernels F(4, 3) along their axis, 6 where it takes 12; of bfloat16 products
// of tiles, where the CPU has them; of bytes the same everywhere.
enum class Method { direct, winograd2, winograd4, tiles, lines, bytes };

// Output pixels on a side of a tile: where parts of the work may begin.
constexpr int64_t tile_side(Method method) {
  return method == Method::winograd4 || method == Method::lines ? 4
         : method == Method::winograd2                          ? 2
                                                                : 1;
}

// How the terms and the weights of products of tiles lie. Pixels are brought into columns of tiles
// of 64 bytes of terms, padded with zeros: all channels of a pixel, or where these are few, of all
// pixels that a row of taps reads. A tile of 16 columns has then a cache line in each, and is
// loaded in 9 cycles; one whose rows straddle lines takes 50, three times as long as a product. For
// every 16 outputs, row of taps and column that it reads there are as many tiles of weights, [group
// of terms][output][term of the group], of 4 bytes a group. `Element`: uint16_t (bfloat16) or
// uint8_t.
template <typename Element>
struct TileLayout {
  static constexpr int64_t outputs = 16, terms = 64 / sizeof(Element), values = outputs * terms;
  static constexpr int64_t group = 4 / sizeof(Element);
  int64_t taps;     // pixels in a column
  int64_t columns;  // that a row of taps reads
  int64_t steps;    // tiles of a column

  TileLayout(int64_t channels, int64_t kernel_w) : taps(kernel_w) {
    // More than two tiles take longer to fill than they save products; of bytes, whose products
    // take half as long, more than one.
    const int64_t most = sizeof(Element);
    const bool few = tiles(kernel_w * channels) <= most &&
                     tiles(kernel_w * channels) < kernel_w * tiles(channels);
    taps = few ? kernel_w : 1;
    columns = kernel_w / taps;
    steps = tiles(taps * channels);
  }
  int64_t pitch() const { return steps * terms; }           // values of a column
  int64_t row() const { return columns * steps * values; }  // values of a row of taps

 private:
  static int64_t tiles(int64_t terms_there) { return (terms_there + terms - 1) / terms; }
};

// A convolution with "same" padding over the virtual concatenation of `inputs`.
template <typename T>
struct Conv {
  const Image* inputs = nullptr;
  int64_t input_count = 0, in_channels = 0;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t out_height = 0, out_width = 0, out_channels = 0;
  Method method = Method::direct;
  const T* weights = nullptr;  // as packing.h lays them out for `method`
  // Those of the weights' input channels that are read: `in_channels` from the first one on.
  int64_t first_channel = 0, weight_channels = 0;
  // Weights for Method::direct where `method` is Winograd's, made when first asked for: inputs so
  // large that Winograd's sums could overflow are convolved directly.
  const T* (*direct_weights)(const void* owner) = nullptr;
  const void* owner = nullptr;
  Prologue<T> prologue;
  Epilogue<T> epilogue;
  Destination out;
  // Another convolution of the same inputs by Winograd's method, of the same sizes but for its
  // output channels: what this one transforms serves both.
  const Conv* next = nullptr;
};

// What max pooling looks at: windows of pixels, so far apart; the first ones begin in the padding.
struct Window {
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
};

// Part of the output of a convolution; it begins at a multiple of the tile's side.
struct Part {
  int64_t n, first_row, last_row, first_column, last_column;
};

// act((v - mean) * scale + shift) for values v of which each has the vectors' entry at its index
// modulo `period`, a multiple of `channel_padding`; the vectors have `period` entries.
template <typename T>
struct NormRow {
  int64_t period = 0;
  const T* mean = nullptr;
  const T* scale = nullptr;
  const T* shift = nullptr;
  Activation activation = Activation::none;
  const T* slope = nullptr;
};

// act(inputs[0] * factors[0] + inputs[1] * factors[1] + ... + bias) of images of one size and of
// adjacent channels, bytes taken as numbers, to bytes. Factors are vectors `pitch` apart, padded
// like the others to `channel_padding`.
template <typename T>
struct WeightedSum {
  const Image* inputs = nullptr;
  int64_t count = 0;
  const T* factors = nullptr;
  int64_t pitch = 0;
  const T* bias = nullptr;
  const T* slope = nullptr;
  Activation activation = Activation::none;
  Destination out;
};

// What pixels of adjacent logits are labelled: with a class, a group of them as the numbers from
// `classes` on, or `ignored`. Of each group, `groups` says of every class whether it belongs to it.
struct LabelledPixels {
  int64_t classes = 0;
  const int64_t* labels = nullptr;
  int64_t ignored = 0;
  const bool* groups = nullptr;
};

// The kernels for one instruction set and one type of arithmetic.
template <typename T>
struct Kernels {
  int64_t lanes;    // values in a vector register
  int64_t outputs;  // output channels that the product keeps in registers, at most
  bool tiles;       // whether bfloat16 is multiplied by tiles

  // Values of scratch memory that `conv` needs per thread.
  int64_t (*conv_scratch)(const Conv<T>& conv);
  void (*conv)(const Conv<T>& conv, const Part& part, T* scratch);

  // Rows [first, last) of image n, up to `depthwise_rows`, of a depthwise convolution of one input
  // with adjacent channels. Weights are [tap][channel], not padded; of the epilogue there are bias,
  // residual and activation.
  void (*depthwise)(const Conv<T>& conv, int64_t n, int64_t first, int64_t last);

  // out = a + (b - a) between two rows: out[x][c] for x in [begin, end), from the bilinear
  // neighbours left[x], right[x] (pixel indices) of rows `top` and `bottom`.
  void (*interpolate)(const T* top, const T* bottom, int64_t stride_w, const int64_t* left,
                      const int64_t* right, const T* weight_right, T weight_bottom, int64_t begin,
                      int64_t end, int64_t channels, T* out, int64_t out_stride);

  // The same of bytes, in two steps: two rows blended, and one resized along x to bytes without
  // gaps.
  void (*blend_bytes)(const uint8_t* top, const uint8_t* bottom, T weight, int64_t count, T* out);
  void (*resize_to_bytes)(const T* row, const int64_t* left, const int64_t* right,
                          const T* weight_right, int64_t width, int64_t channels, uint8_t* out);

  // labels[x] = argmax over channels, for one row of an image that is planar:
  // row[c * plane + x], resized along x as above; a vector's width beyond the row may be read.
  void (*argmax_row)(const T* row, int64_t plane, const int32_t* left, const int32_t* right,
                     const T* weight_right, int64_t width, int64_t channels, uint8_t* labels);

  // The same labels, and for each 255 times the certainty that `measure` tells of the softmax of
  // the logits times `scale`.
  void (*confidence_row)(const T* row, int64_t plane, const int32_t* left, const int32_t* right,
                         const T* weight_right, int64_t width, int64_t channels, Measure measure,
                         T scale, uint8_t* labels, uint8_t* certainties);

  // planes[c * plane + x] = row[x][c] for `width` pixels, rounded up to whole vectors, of a row of
  // adjacent channels.
  void (*row_to_planes)(const void* row, ScalarType dtype, int64_t stride_w, int64_t width,
                        int64_t channels, T* planes, int64_t plane);
  // out = top + (bottom - top) * weight, of a number of values that whole vectors hold.
  void (*blend)(const T* top, const T* bottom, T weight, int64_t count, T* out);

  // out[x][c] = mean of the 2x2 pixels from (0, 2x) on of two rows of
  // adjacent channels.
  void (*pool_rows)(const T* top, const T* bottom, int64_t stride_w, int64_t width,
                    int64_t channels, void* out, ScalarType dtype, int64_t out_stride);

  // Row y of image n of the largest values of windows of an image with adjacent channels; NaN is
  // larger than all.
  void (*max_pool)(const Image& image, const Window& window, const Destination& out,
                   int64_t out_width, int64_t n, int64_t y);

  // Reads `count` values of `dtype`, `stride` apart, as T; and writes adjacent ones.
  void (*load)(const void* in, ScalarType dtype, int64_t stride, T* out, int64_t out_stride,
               int64_t count);
  void (*store)(const T* in, void* out, ScalarType dtype, int64_t count);
  // Adjacent values of `dtype` to bytes: the nearest to value / scale + zero, and for NaN, zero.
  void (*quantize)(const void* in, ScalarType dtype, float scale, int32_t zero, uint8_t* out,
                   int64_t count);
  void (*weighted_sum)(const WeightedSum<T>& sum, int64_t n, int64_t y);

  // sums[i % period] += in[i], or (in[i] - mean[i % period])^2.
  void (*sum_values)(const void* in, ScalarType dtype, int64_t count, int64_t period, T* sums);
  void (*sum_squares)(const void* in, ScalarType dtype, int64_t count, int64_t period,
                      const T* mean, T* sums);
  // Batch norm and activation of a row; in and out have the same dtype.
  void (*normalize_row)(const void* in, ScalarType dtype, int64_t count, const NormRow<T>& norm,
                        void* out);
  // Of the gradient g of what the activation took, found from that of its result: sums of g, of
  // g * (in - mean), and for PReLU of what its slopes get; all of them added to what is there.
  void (*sum_gradients)(const void* in, const void* gradient, ScalarType dtype, int64_t count,
                        const NormRow<T>& norm, T* sums, T* products, T* slopes);
  // out = g * scale + offset + (in - mean) * factor.
  void (*norm_gradient)(const void* in, const void* gradient, ScalarType dtype, int64_t count,
                        const NormRow<T>& norm, const T* offset, const T* factor, void* out);

  // sums[i] += in[i] * factor.
  void (*add_scaled)(const void* in, ScalarType dtype, int64_t count, T factor, T* sums);
  // The transpose of resizing a row of adjacent channels: row[x] times the weights of its two
  // neighbours is added to out[left[x]] and out[right[x]].
  void (*spread_row)(const T* row, const int64_t* left, const int64_t* right, const T* weight_right,
                     int64_t width, int64_t channels, T* out);

  // Cross entropy of pixels [begin, end), 0 where they are ignored; `planes` are of `classes`
  // vectors.
  void (*pixel_losses)(const void* logits, ScalarType dtype, const LabelledPixels& pixels,
                       int64_t begin, int64_t end, T* planes, T* losses);
  // The gradient of the logits of pixels [begin, end), of which the losses' gradients are
  // `weights`; `planes` are of twice as many vectors.
  void (*pixel_gradients)(const void* logits, ScalarType dtype, const LabelledPixels& pixels,
                          const T* weights, int64_t begin, int64_t end, T* planes, void* out);
};

// The table for the instruction set that capability() names. T is float or double.
template <typename T>
const Kernels<T>& kernels();

// Bytes of a core's second level of the cache; 1 MB where the system does not say, or says less.
int64_t second_level_cache();

namespace avx512 {
extern const Kernels<float> float_kernels, vector_kernels, tile_kernels;
extern const Kernels<double> double_kernels;
}  // namespace avx512
namespace avx2 {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
}  // namespace avx2
namespace neon {
extern const Kernels<float> float_kernels, tile_kernels;
extern const Kernels<double> double_kernels;
}  // namespace neon
namespace portable {
extern const Kernels<float> float_kernels, tile_kernels;  // tiles are emulated
extern const Kernels<double> double_kernels;
}  // namespace portable

}  // namespace fassd::cpu
