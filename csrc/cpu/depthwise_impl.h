// Depthwise convolution: every channel by itself. Part of kernels_impl.h.
//
// A tile is eight pixels of one row of the result and one vector of channels; its sums stay in
// registers:
//
//     for every row of taps that is not padding:
//       w[t] = the row's weights                     a vector per tap
//       for every input column that the tile reads:  8 + taps - 1 of them, at stride 2 twice as
//       many
//         v = column                                 one load and conversion, for all its taps
//         sum[o] += w[t] * v                         wherever pixel o meets the column at tap t
//
// Eight sums, up to seven weights and a column fit the 16 registers of AVX2. Rows are done a few at
// a time, tile below tile, so that what their taps share is read from the first level of the cache:
// row after row, 5x5 kernels waited for the second one. Pixels that see padding to their sides, and
// those of other strides, are summed one by one.

constexpr int depthwise_pixels = 8;

// Not inlined: the sums of ReLU stay in registers.
template <typename T>
[[gnu::noinline]] void activate_all(Vector<T>* values, int count, Activation activation,
                                    const Vector<T>& slope) {
  for (int i = 0; i < count; i++) {
    values[i] = activate<T>(values[i], activation, slope);
  }
}

template <typename T, typename In, typename Out>
class Depthwise {
 public:
  Depthwise(const Conv<T>& conv, int64_t n, int64_t first, int64_t last)
      : conv_(conv), image_(conv.inputs[0]), row_count_(last - first) {
    for (int64_t y = first; y < last; y++) {
      Row& row = rows_[y - first];
      row.out = static_cast<Out*>(conv.out.data) + conv.out.offset(n, y, 0);
      row.residual = conv.epilogue.residual ? conv.epilogue.residual->offset(n, y) : 0;
      row.taps = 0;
      for (int64_t tap = 0; tap < conv.kernel_h; tap++) {
        const int64_t from = y * conv.stride_h + (tap - conv.kernel_h / 2) * conv.dilation_h;
        if (from >= 0 && from < image_.height) {
          row.images[row.taps] = static_cast<const In*>(image_.data) + image_.offset(n, from);
          row.weights[row.taps++] = conv.weights + tap * conv.kernel_w * conv.out_channels;
        }
      }
    }
  }

  void run() const {
    const int64_t width = conv_.out_width, last_column = image_.width - 1;
    // Pixels [inner, end) see no padding to their sides.
    const int64_t inner = smaller(ceil_div(before_, conv_.stride_w), width);
    const int64_t end =
        larger(inner, smaller(floor_div(last_column - before_, conv_.stride_w) + 1, width));
    const int64_t length = depthwise_pixels * apart();
    int64_t x = inner;
    pixels(0, x);
    if (is_tiled() && end - inner >= length) {
      for (; x + length <= end; x += length) {
        for (int64_t phase = 0; phase < apart(); phase++) {
          tiles(x + phase);
        }
      }
      if (apart() == 1 && x < end) {  // some pixels again
        tiles(end - length);
        x = end;
      }
    }
    pixels(x, width);
  }

 private:
  // A row of the result: the rows of taps inside the image, and where it is written.
  struct Row {
    const In* images[most_side];
    const T* weights[most_side];
    int64_t taps;
    Out* out;
    int64_t residual;
  };
  using Tile = void (Depthwise::*)(const Row&, int64_t x, int64_t channel, int64_t count) const;

  bool is_tiled() const {
    return conv_.kernel_w > 1 &&
           (conv_.stride_w == 1 || (conv_.stride_w == 2 && conv_.dilation_w == 1));
  }
  // Distance of the pixels of a tile: a dilated row is that many plain ones.
  int64_t apart() const { return conv_.stride_w == 1 ? conv_.dilation_w : 1; }

  // In the image's row, the place of pixel x's first tap.
  int64_t place(int64_t x) const { return (x * conv_.stride_w - before_) * image_.stride_w; }

  void tiles(int64_t x) const {
    for_channels<T>(conv_.out_channels, [&](int64_t c, int64_t count) {
      const Tile tile = count == lanes<T> ? whole_ : part_;
      for (int64_t i = 0; i < row_count_; i++) {
        (this->*tile)(rows_[i], x, c, count);
      }
    });
  }

  template <bool whole>
  static Tile tile_for(int64_t side, int64_t stride) {
    static constexpr Tile table[][2] = {
        {&Depthwise::tile<3, 1, whole>, &Depthwise::tile<3, 2, whole>},
        {&Depthwise::tile<5, 1, whole>, &Depthwise::tile<5, 2, whole>},
        {&Depthwise::tile<7, 1, whole>, &Depthwise::tile<7, 2, whole>},
    };
    return table[larger(side / 2, 1) - 1][stride == 1 ? 0 : 1];
  }

  template <int side, int stride, bool whole>
  void tile(const Row& row, int64_t x, int64_t channel, int64_t count) const {
    constexpr int pixels = depthwise_pixels, columns = (pixels - 1) * stride + side;
    count = whole ? lanes<T> : count;
    const int64_t at = place(x) + channel, step = apart() * image_.stride_w;
    Vector<T> sum[pixels] = {};
    for (int64_t r = 0; r < row.taps; r++) {
      Vector<T> weight[side];
#pragma GCC unroll 8
      for (int t = 0; t < side; t++) {
        weight[t] = load_some<T>(row.weights[r] + t * conv_.out_channels + channel, count);
      }
      const In* from = row.images[r] + at;
#pragma GCC unroll 32
      for (int i = 0; i < columns; i++) {
        const Vector<T> value = load_some<T>(from, count);
        from += step;
#pragma GCC unroll 8
        for (int t = 0; t < side; t++) {
          if (i >= t && (i - t) % stride == 0 && (i - t) / stride < pixels) {
            sum[(i - t) / stride] += weight[t] * value;
          }
        }
      }
    }
    finish<pixels>(row, x, channel, count, sum);
  }

  // Pixels [begin, end), one by one: of the taps, those in [first, last) are inside the image.
  void pixels(int64_t begin, int64_t end) const {
    const int64_t stride = conv_.stride_w, dilation = conv_.dilation_w, side = conv_.kernel_w;
    const int64_t step = dilation * image_.stride_w;
    for (int64_t x = begin; x < end; x++) {
      const int64_t left = x * stride - before_;
      const int64_t first = smaller(larger(0, ceil_div(-left, dilation)), side);
      const int64_t last = smaller(side, floor_div(image_.width - 1 - left, dilation) + 1);
      for (int64_t i = 0; i < row_count_; i++) {
        const Row& row = rows_[i];
        for_channels<T>(conv_.out_channels, [&](int64_t c, int64_t count) {
          Vector<T> sum[1] = {};
          for (int64_t r = 0; r < row.taps; r++) {
            const In* const from = row.images[r] + place(x) + c;
            const T* const weight = row.weights[r] + c;
            for (int64_t t = first; t < last; t++) {
              sum[0] += load_some<T>(weight + t * conv_.out_channels, count) *
                        load_some<T>(from + t * step, count);
            }
          }
          finish<1>(row, x, c, count, sum);
        });
      }
    }
  }

  // Bias, residual, activation, and out.
  template <int pixels>
  inline void finish(const Row& row, int64_t x, int64_t channel, int64_t count,
                     Vector<T> (&sum)[pixels]) const {
    const Epilogue<T>& epilogue = conv_.epilogue;
    if (epilogue.bias) {
      const Vector<T> bias = load_vector(epilogue.bias + channel);
#pragma GCC unroll 8
      for (int p = 0; p < pixels; p++) {
        sum[p] += bias;
      }
    }
    if (epilogue.residual) {
      const Image& residual = *epilogue.residual;
      const int64_t at = row.residual + x * residual.stride_w + channel;
#pragma GCC unroll 8
      for (int p = 0; p < pixels; p++) {
        sum[p] += load_channels<T>(residual.data, residual.dtype,
                                   at + p * apart() * residual.stride_w, count);
      }
    }
    if (epilogue.activation == Activation::relu) {
#pragma GCC unroll 8
      for (int p = 0; p < pixels; p++) {
        sum[p] = relu<T>(sum[p]);
      }
    } else if (epilogue.activation != Activation::none) {
      Vector<T> values[pixels];
#pragma GCC unroll 8
      for (int p = 0; p < pixels; p++) {
        values[p] = sum[p];
      }
      activate_all<T>(values, pixels, epilogue.activation,
                      epilogue.slope ? load_vector(epilogue.slope + channel) : Vector<T>{});
#pragma GCC unroll 8
      for (int p = 0; p < pixels; p++) {
        sum[p] = values[p];
      }
    }
    Out* to = row.out + x * conv_.out.stride_w + channel;
#pragma GCC unroll 8
    for (int p = 0; p < pixels; p++, to += apart() * conv_.out.stride_w) {
      store_some<T>(to, sum[p], count);
    }
  }

  const Conv<T>& conv_;
  const Image& image_;
  const int64_t row_count_;
  const int64_t before_ = conv_.kernel_w / 2 * conv_.dilation_w;
  const Tile whole_ = tile_for<true>(conv_.kernel_w, conv_.stride_w);
  const Tile part_ = tile_for<false>(conv_.kernel_w, conv_.stride_w);
  Row rows_[depthwise_rows];
};

template <typename T>
void depthwise(const Conv<T>& conv, int64_t n, int64_t first, int64_t last) {
  with_types<T>(conv.inputs[0].dtype, conv.out.dtype, [&](auto* in, auto* out) {
    using In = std::remove_pointer_t<decltype(in)>;
    using Out = std::remove_pointer_t<decltype(out)>;
    Depthwise<T, In, Out>(conv, n, first, last).run();
  });
}
