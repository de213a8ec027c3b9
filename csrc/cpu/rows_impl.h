// From images to planar rows in scratch memory. Part of kernels_impl.h.
//
// The products run along pixels: a vector register holds one channel of adjacent output pixels, so
// that odd channel counts (10, 31, 119) waste no lanes. Images have adjacent channels, or any other
// layout; here their rows are brought into planes, once per row and strip:
//
//     plane[c][i] = channel c of column first + i * step,  zero outside the image
//
// with dtype conversion, virtual concatenation and prologue done on the way.

// A run of columns of one row.
struct Columns {
  int64_t first, step, count;
};

// The planes of one input: `base` is that of its first channel. Rows of planes have room for
// `count` rounded up to whole vectors.
template <typename T>
struct Planes {
  T* base;
  int64_t pitch;  // from plane to plane
};

// The prologue from the input's first channel on.
template <typename T>
inline Prologue<T> prologue_from(const Prologue<T>& prologue, int64_t channel) {
  if (!prologue.scale) {
    return prologue;
  }
  return {prologue.scale + channel, prologue.shift + channel, prologue.slope + channel};
}

template <typename T>
inline T apply(const Prologue<T>& prologue, int64_t channel, T v) {
  if (!prologue.scale) {
    return v;
  }
  v = v * prologue.scale[channel] + prologue.shift[channel];
  return v > 0 ? v : v * prologue.slope[channel];
}

// One row of an input with adjacent channels: squares of pixels x channels are transposed.
template <typename T, typename In>
struct PixelRow {
  const In* row;  // column 0
  int64_t stride_w, width, channels;
  Prologue<T> prologue;
  Columns columns;
  Planes<T> planes;
  Vector<T> largest;  // magnitude so far

  bool inside(int64_t column) const { return column >= 0 && column < width; }

  // A vector of pixels from `i` on, all inside the image; `count` channels from c on, a vector's
  // width if `whole`.
  template <bool whole>
  void square(int64_t i, int64_t c, int64_t count) {
    constexpr int n = lanes<T>;
    const int64_t step = columns.step * stride_w;
    const In* from = row + (columns.first + i * columns.step) * stride_w + c;
    Vector<T> v[n];
#pragma GCC unroll 16
    for (int p = 0; p < n; p++) {
      v[p] = whole ? load_wide<T>(from + p * step) : load_part<T>(from + p * step, count);
    }
    if (prologue.scale) {
      const Prologue<T> here = prologue_from(prologue, c);
#pragma GCC unroll 16
      for (int p = 0; p < n; p++) {
        v[p] = apply_vector(here, v[p]);
      }
    }
    Vector<T> most = largest;
#pragma GCC unroll 16
    for (int p = 0; p < n; p++) {
      most = larger_magnitude<T>(most, v[p]);
    }
    largest = most;
    transpose<T>(v);
    T* to = planes.base + c * planes.pitch + i;
#pragma GCC unroll 16
    for (int q = 0; q < n; q++, to += planes.pitch) {
      if (whole || q < count) {
        store_vector(to, v[q]);
      }
    }
  }

  // The same where some pixels lie outside the image.
  __attribute__((noinline)) void ragged_square(int64_t i, int64_t c, int64_t count) {
    constexpr int n = lanes<T>;
    Vector<T> v[n];
    for (int p = 0; p < n; p++) {
      const int64_t x = columns.first + (i + p) * columns.step;
      v[p] = inside(x) ? pixel(x, c, count) : Vector<T>{};
      largest = larger_magnitude<T>(largest, v[p]);
    }
    transpose<T>(v);
    T* const to = planes.base + c * planes.pitch + i;
    for (int64_t q = 0; q < count; q++) {
      store_vector(to + q * planes.pitch, v[q]);
    }
  }

  // Channels [c, c + count) of column x, behind the prologue.
  Vector<T> pixel(int64_t x, int64_t c, int64_t count) const {
    const In* from = row + x * stride_w + c;
    const Vector<T> v = count == lanes<T> ? load_wide<T>(from) : load_part<T>(from, count);
    return prologue.scale ? apply_vector(prologue_from(prologue, c), v) : v;
  }

  static Vector<T> apply_vector(const Prologue<T>& prologue, Vector<T> v) {
    return prelu<T>(v * load_vector(prologue.scale) + load_vector(prologue.shift),
                    load_vector(prologue.slope));
  }

  // Pixels [i, end), channels [c, last), without a transposition: for the odd ones out.
  void scattered(int64_t i, int64_t end, int64_t c, int64_t last) {
    for (; c < last; c += lanes<T>) {
      const int64_t count = smaller(lanes<T>, last - c);
      for (int64_t j = i; j < end; j++) {
        const int64_t x = columns.first + j * columns.step;
        const Vector<T> v = inside(x) ? pixel(x, c, count) : Vector<T>{};
        largest = larger_magnitude<T>(largest, v);
        T values[lanes<T>];
        store_vector(values, v);
        T* const to = planes.base + c * planes.pitch + j;
        for (int64_t q = 0; q < count; q++) {
          to[q * planes.pitch] = values[q];
        }
      }
    }
  }

  void load() {
    constexpr int64_t n = lanes<T>;
    // A square costs as much for one pixel or channel as for all: a few are cheaper one by one.
    constexpr int64_t few = n / 4;
    const int64_t odd_pixels = columns.count % n;
    const int64_t pixels = odd_pixels <= few ? columns.count - odd_pixels : columns.count;
    const int64_t odd_channels = channels % n;
    const int64_t whole = odd_channels <= few ? channels - odd_channels : channels;
    for (int64_t i = 0; i < pixels; i += n) {
      const int64_t first = columns.first + i * columns.step;
      const bool all = inside(first) && inside(first + (n - 1) * columns.step);
      for (int64_t c = 0; c < whole; c += n) {
        if (all && c + n <= channels) {
          square<true>(i, c, n);
        } else if (all) {
          square<false>(i, c, channels - c);
        } else {
          ragged_square(i, c, smaller(n, channels - c));
        }
      }
      if (whole < channels) {
        scattered(i, smaller(i + n, columns.count), whole, channels);
      }
    }
    scattered(pixels, columns.count, 0, channels);
  }
};

// One row of an input of another layout, plane by plane. Returns the largest magnitude.
template <typename T, typename In>
Vector<T> load_strided(const Image& image, const In* row, const Prologue<T>& prologue,
                       const Columns& columns, const Planes<T>& planes) {
  const int64_t from = smaller(larger(0, ceil_div(-columns.first, columns.step)), columns.count);
  const int64_t to =
      smaller(columns.count, floor_div(image.width - 1 - columns.first, columns.step) + 1);
  const int64_t step = columns.step * image.stride_w;
  Vector<T> most{};
  for (int64_t c = 0; c < image.channels; c++) {
    T* const plane = planes.base + c * planes.pitch;
    const In* const in = row + c * image.stride_c + columns.first * image.stride_w;
    for (int64_t i = 0; i < from; i++) {
      plane[i] = 0;
    }
    for (int64_t i = larger(from, to); i < columns.count; i++) {
      plane[i] = 0;
    }
    // Constant steps, of planar images at stride 1 and 2, become vector loads and shuffles.
    if (step == 1) {
      for (int64_t i = from; i < to; i++) plane[i] = widen<T>(in[i]);
    } else if (step == 2) {
      for (int64_t i = from; i < to; i++) plane[i] = widen<T>(in[2 * i]);
    } else {
      for (int64_t i = from; i < to; i++) plane[i] = widen<T>(in[i * step]);
    }
    if (prologue.scale) {
      for (int64_t i = from; i < to; i++) plane[i] = apply(prologue, c, plane[i]);
    }
    int64_t i = 0;
    for (; i + lanes<T> <= columns.count; i += lanes<T>) {
      most = larger_magnitude<T>(most, load_vector(plane + i));
    }
    most = larger_magnitude<T>(most,
                               load_part<T>(static_cast<const T*>(plane + i), columns.count - i));
  }
  return most;
}

// Columns of row y of image n of every input, into planes of adjacent channels. Returns the
// largest magnitude among them, NaN where there is one.
template <typename T>
T load_planes(const Conv<T>& conv, int64_t n, int64_t y, const Columns& columns, T* base,
              int64_t pitch) {
  Vector<T> largest{};
  int64_t channel = 0;
  for (int64_t i = 0; i < conv.input_count; i++) {
    const Image& image = conv.inputs[i];
    const Planes<T> planes = {base + channel * pitch, pitch};
    const Prologue<T> prologue = prologue_from(conv.prologue, channel);
    with_dtype<T>(image.dtype, [&](auto* type) {
      using In = std::remove_pointer_t<decltype(type)>;
      const In* row = static_cast<const In*>(image.data) + image.offset(n, y);
      if (image.stride_c == 1) {
        PixelRow<T, In> pixels = {row,      image.stride_w, image.width, image.channels,
                                  prologue, columns,        planes,      largest};
        pixels.load();
        largest = pixels.largest;
      } else {
        largest = larger_magnitude<T>(largest,
                                      load_strided<T, In>(image, row, prologue, columns, planes));
      }
    });
    channel += image.channels;
  }
  T most = 0;
  for (int i = 0; i < lanes<T>; i++) {
    most = largest[i] <= most || most != most ? most : largest[i];
  }
  return most;
}

// --- ahead of time -------------------------------------------------------------------------------

// Cache lines that will be read or written soon. A strip jumps from row to row, which the
// hardware's prefetchers do not foresee: waiting for lines took twice as long as all else that
// loading does (1x1, 126 to 63 channels at 256x512: 8 of 20 ms on one core). They are
// prefetched a few at a time, between products, since a core has few such requests under way.
class Ahead {
 public:
  // Columns of row y of every input that has adjacent channels, or few of them.
  template <typename T>
  void read(const Conv<T>& conv, int64_t n, int64_t y, const Columns& columns) {
    for (int64_t i = 0; i < conv.input_count; i++) {
      const Image& image = conv.inputs[i];
      const int64_t first = larger(columns.first, 0);
      const int64_t last =
          smaller(columns.first + (columns.count - 1) * columns.step, image.width - 1);
      if (y < 0 || y >= image.height || last < first) {
        continue;
      }
      const int64_t at = image.offset(n, y) + first * image.stride_w;
      const int64_t pixels = (last - first) * image.stride_w;
      if (image.stride_c == 1) {
        add(image.data, image.dtype, at, pixels + image.channels);
      } else if (image.stride_w == 1 && image.channels <= 4) {
        for (int64_t c = 0; c < image.channels; c++) {
          add(image.data, image.dtype, at + c * image.stride_c, pixels + 1);
        }
      }
    }
  }

  // Pixels [first, last) of row y of the output, and of a residual that lies elsewhere.
  template <typename T>
  void write(const Conv<T>& conv, int64_t n, int64_t y, int64_t first, int64_t last) {
    add(conv.out.data, conv.out.dtype, conv.out.offset(n, y, first),
        (last - 1 - first) * conv.out.stride_w + conv.out_channels);
    const Image* const residual = conv.epilogue.residual;
    if (residual && residual->data != conv.out.data) {
      add(residual->data, residual->dtype, residual->offset(n, y) + first * residual->stride_w,
          (last - 1 - first) * residual->stride_w + conv.out_channels);
    }
  }

  // Spreads the prefetches of all lines over that many calls of `step`.
  void spread(int64_t steps) { lines_ = (total_ + steps - 1) / larger(steps, 1); }

  void step() {
    for (int64_t left = lines_; left > 0 && region_ < count_;) {
      Region& region = regions_[region_];
      for (; left > 0 && region.begin < region.end; left--, region.begin += line) {
        __builtin_prefetch(region.begin, 0, 2);
      }
      region_ += region.begin >= region.end;
    }
  }

  void clear() { count_ = region_ = total_ = 0; }

 private:
  static constexpr int64_t line = 64, most = 24;
  struct Region {
    const char *begin, *end;
  };

  void add(const void* data, ScalarType dtype, int64_t at, int64_t values) {
    const int64_t size = element_size(dtype);
    if (count_ < most) {
      const char* begin = static_cast<const char*>(data) + at * size;
      regions_[count_++] = {begin, begin + values * size};
      total_ += values * size / line + 1;
    }
  }

  Region regions_[most];
  int64_t count_ = 0, region_ = 0, total_ = 0, lines_ = 0;
};
