// Convolution, directly and by Winograd's F(2x2, 3x3). Part of kernels_impl.h.
//
// Both walk down strips of columns. Scratch memory holds the rows of the strip that the current
// output row reads, as planes; a row stays until its slot is needed, so that going down, every row
// is transposed once per strip.

// --- direct --------------------------------------------------------------------------------------

// A run of input columns, one every stride, that some of a strip's taps read. Taps of one phase (a
// stride of 2 reads even columns for its middle tap, odd ones for the outer two) share a run unless
// they lie far apart.
struct ColumnRun {
  int64_t first;   // relative to stride * (the strip's first output column)
  int64_t length;  // without the strip's own width
};

// How a strip's input columns lie in scratch memory.
template <typename T>
struct StripPlan {
  int64_t width = 0;  // output pixels: some tiles of the product
  int64_t count = 0;
  ColumnRun runs[3];
  int64_t run_of_tap[3], start_of_tap[3];
  int64_t pitch = 0;  // values per plane

  int64_t run_values(const Conv<T>& conv) const { return conv.in_channels * pitch; }
  int64_t slot_values(const Conv<T>& conv) const { return count * run_values(conv); }
  int64_t sums(const Conv<T>& conv) const {
    return round_up(conv.out_channels, lanes<T>) * width;
  }
};

template <typename T>
StripPlan<T> plan_strip(const Conv<T>& conv, int64_t tiles) {
  StripPlan<T> plan;
  plan.width = tiles * tile_pixels<T>;
  const int64_t stride = conv.stride_w;
  for (int64_t tap = 0; tap < conv.kernel_w; tap++) {
    const int64_t shift = (tap - conv.kernel_w / 2) * conv.dilation_w;
    int64_t run = plan.count - 1, start = 0;
    for (; run >= 0; run--) {
      start = (shift - plan.runs[run].first) / stride;
      if ((shift - plan.runs[run].first) % stride == 0 && start <= 2 * plan.width) {
        break;
      }
    }
    if (run < 0) {
      run = plan.count++;
      start = 0;
      plan.runs[run].first = shift;
    }
    plan.runs[run].length = start;
    plan.run_of_tap[tap] = run;
    plan.start_of_tap[tap] = start;
    plan.pitch = larger(plan.pitch, round_up(start, lanes<T>) + plan.width);
  }
  return plan;
}

// Weights are read once per strip and row. Where there are so many that they come from the third
// level of the cache (1.9 MB in DAPF), a strip is as many tiles wide as its rows fit a part of the
// second, up to four.
template <typename T>
StripPlan<T> plan_strip(const Conv<T>& conv) {
  constexpr int64_t bytes = 256 * 1024, most = 4;
  const int64_t weights = conv.out_channels * conv.in_channels * conv.kernel_h * conv.kernel_w;
  int64_t tiles = weights * int64_t(sizeof(T)) > bytes ? most : 1;
  while (tiles > 1 && ((tiles - 1) * tile_pixels<T> >= conv.out_width ||
                       conv.kernel_h * plan_strip(conv, tiles).slot_values(conv) *
                               int64_t(sizeof(T)) > bytes)) {
    tiles--;
  }
  return plan_strip(conv, tiles);
}

template <typename T>
int64_t direct_scratch(const Conv<T>& conv) {
  const StripPlan<T> plan = plan_strip(conv);
  return conv.kernel_h * plan.slot_values(conv) + plan.sums(conv) + 2 * lanes<T>;
}

// Output rows in the order in which they share most input rows: at a dilation of d, every d-th row
// first. f(y) for each.
template <typename F>
inline void for_rows(int64_t first, int64_t last, int64_t step, const F& f) {
  for (int64_t start = first; start < smaller(first + step, last); start++) {
    for (int64_t y = start; y < last; y += step) {
      f(y);
    }
  }
}

template <typename T>
class DirectStrip {
 public:
  DirectStrip(const Conv<T>& conv, const StripPlan<T>& plan, const T* weights, const Part& part,
              int64_t x0, T* scratch)
      : conv_(conv),
        plan_(plan),
        weights_(weights),
        part_(part),
        x0_(x0),
        pixels_(smaller(plan.width, part.last_column - x0)),
        scratch_(scratch),
        sums_(scratch + conv.kernel_h * plan.slot_values(conv)) {
    const int64_t width = conv.inputs[0].width;
    for (int64_t tap = 0; tap < conv.kernel_w; tap++) {
      const int64_t shift = (tap - conv.kernel_w / 2) * conv.dilation_w;
      seen_[tap] =
          x0 * conv.stride_w + shift < width && (x0 + pixels_ - 1) * conv.stride_w + shift >= 0;
    }
  }

  void row(int64_t y) {
    gather(y);
    look_ahead(y);
    const int64_t rows = conv_.kernel_h * conv_.kernel_w * conv_.in_channels;
    for_output_blocks(conv_.out_channels, [&](int64_t first, int64_t outputs) {
      for (int64_t x = 0; x < pixels_; x += tile_pixels<T>) {
        ahead_.step();
        Tap<T> here[9];
        for (int64_t t = 0; t < count_; t++) {
          here[t] = {taps_[t].planes + x, taps_[t].index};
        }
        const int64_t vectors = pixels_ - x > lanes<T> ? 2 : 1;
        multiply_for<T>(outputs, vectors)(here, count_, conv_.in_channels, plan_.pitch,
                                          weights_ + first * rows, sums_ + first * plan_.width + x,
                                          plan_.width);
      }
    });
    write_row(conv_, part_.n, y, x0_, int64_t(1), pixels_, static_cast<const T*>(sums_),
              plan_.width);
  }

 private:
  int64_t input_row(int64_t y, int64_t tap) const {
    return y * conv_.stride_h + (tap - conv_.kernel_h / 2) * conv_.dilation_h;
  }
  bool is_there(int64_t row) const { return row >= 0 && row < conv_.inputs[0].height; }
  // Rows that one output row reads are in different slots, and those that the next one reads again
  // stay (for_rows); not so where stride and dilation mix.
  bool stays() const { return conv_.stride_h == 1 || conv_.dilation_h == 1; }
  int64_t slot_of(int64_t row, int64_t tap) const {
    return stays() ? row / conv_.dilation_h % conv_.kernel_h : tap;
  }

  // Brings the input rows of output row y into their slots; lists the taps that are not padding.
  void gather(int64_t y) {
    count_ = 0;
    for (int64_t tap_h = 0; tap_h < conv_.kernel_h; tap_h++) {
      const int64_t row = input_row(y, tap_h);
      if (!is_there(row)) {
        continue;
      }
      const int64_t slot = slot_of(row, tap_h);
      T* const planes = scratch_ + slot * plan_.slot_values(conv_);
      if (row_in_slot_[slot] != row) {
        row_in_slot_[slot] = row;
        load(row, planes);
      }
      for (int64_t tap_w = 0; tap_w < conv_.kernel_w; tap_w++) {
        if (seen_[tap_w]) {
          const int64_t run = plan_.run_of_tap[tap_w] * plan_.run_values(conv_);
          taps_[count_++] = {planes + run + plan_.start_of_tap[tap_w],
                             tap_h * conv_.kernel_w + tap_w};
        }
      }
    }
  }

  void load(int64_t row, T* planes) const {
    const int64_t stride = conv_.stride_w;
    for (int64_t run = 0; run < plan_.count; run++) {
      const Columns columns = {x0_ * stride + plan_.runs[run].first, stride,
                               plan_.runs[run].length + pixels_};
      const bool any = columns.first < conv_.inputs[0].width &&
                       columns.first + (columns.count - 1) * stride >= 0;
      if (any) {
        load_planes(conv_, part_.n, row, columns, planes + run * plan_.run_values(conv_),
                    plan_.pitch);
      }
    }
  }

  // What the next row of the strip reads, or the next strip's first.
  void look_ahead(int64_t y) {
    const int64_t step = conv_.stride_h == 1 ? conv_.dilation_h : 1;
    const bool more = y + step < part_.last_row;
    const int64_t next_y = more ? y + step : part_.first_row;
    const int64_t next_x = more ? x0_ : x0_ + plan_.width;
    ahead_.clear();
    for (int64_t tap = 0; tap < conv_.kernel_h; tap++) {
      const int64_t row = input_row(next_y, tap);
      const bool here = more && stays() && is_there(row) && row_in_slot_[slot_of(row, tap)] == row;
      if (!here) {
        ahead_.read(conv_, part_.n, row, {next_x * conv_.stride_w, 1, pixels_ * conv_.stride_w});
      }
    }
    ahead_.write(conv_, part_.n, y, x0_, x0_ + pixels_);
    ahead_.spread((conv_.out_channels + tile_outputs - 1) / tile_outputs *
                  ((pixels_ + tile_pixels<T> - 1) / tile_pixels<T>));
  }

  const Conv<T>& conv_;
  const StripPlan<T>& plan_;
  const T* const weights_;
  const Part& part_;
  const int64_t x0_, pixels_;
  T *const scratch_, *const sums_;
  bool seen_[3];  // whether a tap's columns are not all outside the image
  int64_t row_in_slot_[3] = {-1, -1, -1};
  Tap<T> taps_[9];
  int64_t count_ = 0;
  Ahead ahead_;
};

template <typename T>
void convolve_directly(const Conv<T>& conv, const T* weights, const Part& part, T* scratch) {
  const StripPlan<T> plan = plan_strip(conv);
  const int64_t step = conv.stride_h == 1 ? conv.dilation_h : 1;
  for (int64_t x0 = part.first_column; x0 < part.last_column; x0 += plan.width) {
    DirectStrip<T> strip(conv, plan, weights, part, x0, scratch);
    for_rows(part.first_row, part.last_row, step, [&](int64_t y) { strip.row(y); });
  }
}

// --- Winograd ------------------------------------------------------------------------------------
//
// Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1. A
// tile is 2x2 output pixels and reads 4x4 input pixels d. With (for each axis)
//
//     B^T d = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)      A^T m = (m0 + m1 + m2, m1 - m2 - m3)
//
// the output is A^T [ sum over channels of (G g G^T) * (B^T d B) ] A: 16 products for 4 pixels. The
// structure keeps apart what convolution keeps apart (d3 does not enter the first output, nor d0
// the second), so NaN spreads as in the reference; infinities would meet as inf - inf, and are
// therefore convolved directly.
//
// Registers hold one of the 16 values of 16 adjacent tiles. Even and odd columns of a row are
// planes of their own: tile i reads odd[i], even[i], odd[i + 1], even[i + 1], where odd[0] is the
// column left of the strip.

constexpr int64_t tile_side = 4, tile_values = 16, ring_rows = 4;

// Beyond it the sums of Winograd's products may overflow where the convolution itself would not.
constexpr float largest_for_winograd = 1e36f;

// A row of the strip in the ring: even columns of every channel, then odd ones; one more tile than
// a strip has, in whole vectors.
template <typename T>
constexpr int64_t ring_plane = tile_pixels<T> + lanes<T>;

template <typename T>
struct WinogradScratch {
  int64_t slot, values, products, sums;  // sizes
  explicit WinogradScratch(const Conv<T>& conv) {
    slot = conv.in_channels * 2 * ring_plane<T>;
    values = tile_values * conv.in_channels * tile_pixels<T>;
    products = tile_values * tile_outputs * tile_pixels<T>;
    sums = 4 * round_up(conv.out_channels, lanes<T>) * tile_pixels<T>;
  }
  int64_t total() const { return ring_rows * slot + values + products + sums; }
};

template <typename T>
int64_t conv_scratch(const Conv<T>& conv) {
  const int64_t directly = direct_scratch(conv);
  if (conv.method == Method::direct) {
    return directly;
  }
  const WinogradScratch<T> scratch(conv);
  return scratch.total() + directly;
}

// The 16 values of every tile and channel: values[k][c][tile] from the ring's four rows.
template <typename T>
void transform_input(const T* const* rows, int64_t channels, int64_t vectors, T* values) {
  constexpr int64_t pitch = tile_pixels<T>, plane = ring_plane<T>;
  const int64_t step = channels * pitch;
  for (int64_t v = 0; v < vectors; v++) {
    const T* from[tile_side];
    T* to[tile_side];
    for (int r = 0; r < tile_side; r++) {
      from[r] = rows[r] + v * lanes<T>;
      to[r] = values + r * tile_side * step + v * lanes<T>;
    }
    const auto put = [&](int r, int k, Vector<T> value) { store_vector(to[r] + k * step, value); };
    for (int64_t c = 0; c < channels; c++) {
      Vector<T> t[tile_side][tile_side];  // [row][column], columns transformed
#pragma GCC unroll 4
      for (int r = 0; r < tile_side; r++) {
        const T *even = from[r], *odd = even + plane;
        const Vector<T> d0 = load_vector(odd), d1 = load_vector(even);
        const Vector<T> d2 = load_vector(odd + 1), d3 = load_vector(even + 1);
        t[r][0] = d0 - d2;
        t[r][1] = d1 + d2;
        t[r][2] = d2 - d1;
        t[r][3] = d1 - d3;
      }
#pragma GCC unroll 4
      for (int k = 0; k < tile_side; k++) {
        put(0, k, t[0][k] - t[2][k]);
        put(1, k, t[1][k] + t[2][k]);
        put(2, k, t[2][k] - t[1][k]);
        put(3, k, t[1][k] - t[3][k]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < tile_side; r++) {
        from[r] += 2 * plane;
        to[r] += pitch;
      }
    }
  }
}

// From products[k][o][tile] to the tiles' 2x2 sums: sums[row][column parity][o][tile].
template <typename T>
void transform_output(const T* products, int64_t outputs, int64_t vectors, T* sums,
                      int64_t sums_step) {
  constexpr int64_t pitch = tile_pixels<T>, step = tile_outputs * pitch;
  for (int64_t o = 0; o < outputs; o++) {
    for (int64_t v = 0; v < vectors; v++) {
      const int64_t at = o * pitch + v * lanes<T>;
      Vector<T> t[2][tile_side];
#pragma GCC unroll 4
      for (int k = 0; k < tile_side; k++) {
        const T* m = products + at + k * step;
        const Vector<T> m0 = load_vector(m), m1 = load_vector(m + tile_side * step);
        const Vector<T> m2 = load_vector(m + 2 * tile_side * step);
        const Vector<T> m3 = load_vector(m + 3 * tile_side * step);
        t[0][k] = m0 + m1 + m2;
        t[1][k] = m1 - m2 - m3;
      }
#pragma GCC unroll 2
      for (int r = 0; r < 2; r++) {
        store_vector(sums + (2 * r) * sums_step + at, t[r][0] + t[r][1] + t[r][2]);
        store_vector(sums + (2 * r + 1) * sums_step + at, t[r][1] - t[r][2] - t[r][3]);
      }
    }
  }
}

template <typename T>
void convolve_by_winograd(const Conv<T>& conv, const Part& part, T* scratch) {
  const WinogradScratch<T> sizes(conv);
  const int64_t height = conv.inputs[0].height, channels = conv.in_channels;
  T* const values = scratch + ring_rows * sizes.slot;
  T* const products = values + sizes.values;
  T* const sums = products + sizes.products;
  T* const rest = sums + sizes.sums;
  const int64_t sums_step = sizes.sums / 4;
  const int64_t blocks = (conv.out_channels + tile_outputs - 1) / tile_outputs;
  Ahead ahead;

  for (int64_t x0 = part.first_column; x0 < part.last_column; x0 += 2 * tile_pixels<T>) {
    const int64_t columns = smaller(2 * tile_pixels<T>, part.last_column - x0);
    const int64_t tiles = (columns + 1) / 2;
    const int64_t vectors = tiles > lanes<T> ? 2 : 1;
    int64_t row_in_slot[ring_rows] = {-2, -2, -2, -2};
    T largest[ring_rows] = {};
    for (int64_t y = part.first_row; y < part.last_row; y += 2) {
      const T* rows[ring_rows];
      T most = 0;
      for (int64_t r = 0; r < ring_rows; r++) {
        const int64_t row = y - 1 + r, slot = row & (ring_rows - 1);
        T* const planes = scratch + slot * sizes.slot;
        rows[r] = planes;
        if (row_in_slot[slot] != row) {
          row_in_slot[slot] = row;
          largest[slot] = 0;
          if (row < 0 || row >= height) {
            std::memset(planes, 0, sizes.slot * sizeof(T));
          } else {
            for (int64_t odd = 0; odd < 2; odd++) {
              const T found = load_planes(conv, part.n, row, {x0 - odd, 2, tiles + 1},
                                          planes + odd * ring_plane<T>, 2 * ring_plane<T>);
              largest[slot] = found > largest[slot] ? found : largest[slot];
            }
          }
        }
        most = largest[slot] > most ? largest[slot] : most;
      }
      const int64_t last_row = smaller(y + 2, part.last_row);
      if (most > T(largest_for_winograd)) {
        convolve_directly(conv, conv.direct_weights(conv.owner),
                          {part.n, y, last_row, x0, x0 + columns}, rest);
        continue;
      }
      const bool more = y + 2 < part.last_row;  // rows of this strip; else the next begins
      const int64_t next_x = more ? x0 : x0 + 2 * tile_pixels<T>;
      ahead.clear();
      for (int64_t r = more ? 2 : 0; r < ring_rows; r++) {
        ahead.read(conv, part.n, (more ? y + 1 : part.first_row - 1) + r, {next_x, 1, columns + 1});
      }
      for (int64_t row = y; row < last_row; row++) {
        ahead.write(conv, part.n, row, x0, x0 + columns);
      }
      ahead.spread(blocks * tile_values);
      transform_input(rows, channels, vectors, values);
      for_output_blocks(conv.out_channels, [&](int64_t first, int64_t outputs) {
        const Multiply<T> multiply = multiply_for<T>(outputs, vectors);
        for (int64_t k = 0; k < tile_values; k++) {
          ahead.step();
          const Tap<T> tap = {values + k * channels * tile_pixels<T>, k};
          multiply(&tap, 1, channels, tile_pixels<T>,
                   conv.weights + first * tile_values * channels,
                   products + k * tile_outputs * tile_pixels<T>, tile_pixels<T>);
        }
        transform_output(products, outputs, vectors, sums + first * tile_pixels<T>, sums_step);
      });
      for (int64_t row = y; row < last_row; row++) {
        const T* planes = sums + 2 * (row - y) * sums_step;
        write_row(conv, part.n, row, x0, int64_t(2), tiles, planes, tile_pixels<T>);
        write_row(conv, part.n, row, x0 + 1, int64_t(2), columns / 2, planes + sums_step,
                  tile_pixels<T>);
      }
    }
  }
}

template <typename T>
void conv(const Conv<T>& conv, const Part& part, T* scratch) {
  if constexpr (sizeof(T) == 4) {
    if (conv.method == Method::winograd) {
      convolve_by_winograd(conv, part, scratch);
      return;
    }
  }
  convolve_directly(conv, conv.weights, part, scratch);
}
