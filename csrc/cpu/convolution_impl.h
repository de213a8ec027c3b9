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
  int64_t sums(const Conv<T>& conv) const { return round_up(conv.out_channels, lanes<T>) * width; }
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

// A strip is as many tiles wide as its rows fit a part of the second level of the cache, up to
// four: where the weights, which are read once per strip and row, are so many that they come from
// the third level (1.9 MB in DAPF); and where channels are so few that beginning a row of a strip
// costs more than the row (the stem's first layer, 3 to 16 channels).
template <typename T>
StripPlan<T> plan_strip(const Conv<T>& conv) {
  constexpr int64_t bytes = 256 * 1024, most = 4, few_channels = 8;
  const int64_t weights = conv.out_channels * conv.in_channels * conv.kernel_h * conv.kernel_w;
  const bool many = weights * int64_t(sizeof(T)) > bytes;
  int64_t tiles = many || conv.in_channels <= few_channels ? most : 1;
  while (tiles > 1 &&
         ((tiles - 1) * tile_pixels<T> >= conv.out_width ||
          conv.kernel_h * plan_strip(conv, tiles).slot_values(conv) * int64_t(sizeof(T)) > bytes)) {
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
        multiply(here, outputs, pixels_ - x > lanes<T> ? 2 : 1, weights_ + first * rows,
                 sums_ + first * plan_.width + x);
      }
    });
    write_row(conv_, part_.n, y, x0_, int64_t(1), pixels_, static_cast<const T*>(sums_),
              plan_.width);
  }

 private:
  // One product over all taps; of very many terms one per tap, added up, since the rounding errors
  // of one sum grow with its length (2.2e-6 of the result at 18,000 terms).
  void multiply(const Tap<T>* taps, int64_t outputs, int64_t vectors, const T* weights,
                T* sums) const {
    constexpr int64_t most_terms = 4096;
    const Multiply<T> product = multiply_for<T>(outputs, vectors);
    const int64_t channels = conv_.in_channels, pitch = plan_.pitch, width = plan_.width;
    if (count_ * channels <= most_terms) {
      product(taps, count_, channels, pitch, weights, sums, width);
      return;
    }
    product(taps, 1, channels, pitch, weights, sums, width);
    T share[tile_outputs * tile_pixels<T>];
    for (int64_t t = 1; t < count_; t++) {
      product(taps + t, 1, channels, pitch, weights, share, tile_pixels<T>);
      for (int64_t o = 0; o < outputs; o++) {
        for (int64_t x = 0; x < vectors * lanes<T>; x++) {
          sums[o * width + x] += share[o * tile_pixels<T> + x];
        }
      }
    }
  }

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
// Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, sections 4.1 and
// 4.3: a tile of side x side output pixels, side 2 or 4, reads (side + 2)^2 input pixels d, and is
//
//     A^T [ sum over channels of (G g G^T) * (B^T d B) ] A
//
// 16 products for 4 pixels, or 36 for 16, where the plain sum takes 9 for each. F(2x2, 3x3) rounds
// like the plain sum (2 to 5e-7 of the result in float32); F(4x4, 3x3) ten times worse, which is
// nothing to values stored in 16 bits. Values that are not finite, or so large that the sums could
// overflow, spread to a whole tile, and are convolved directly.
//
// Registers hold one value of adjacent tiles. The columns of a row lie in one plane per column of a
// tile: plane p holds columns p, p + side, p + 2 * side, ... of the strip, but the last plane
// begins a tile earlier, with the column left of the strip.

// B^T d, along one axis.
template <int side, typename T>
inline void transform_in(const Vector<T>* d, Vector<T>* t) {
  if constexpr (side == 2) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  } else {
    const Vector<T> even = d[4] - T(4) * d[2], odd = d[3] - T(4) * d[1];
    const Vector<T> near = d[4] - d[2], far = T(2) * (d[3] - d[1]);
    t[0] = T(4) * d[0] - T(5) * d[2] + d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = near + far;
    t[4] = near - far;
    t[5] = T(4) * d[1] - T(5) * d[3] + d[5];
  }
}

// A^T m, along one axis.
template <int side, typename T>
inline void transform_out(const Vector<T>* m, Vector<T>* y) {
  if constexpr (side == 2) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  } else {
    const Vector<T> p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    y[0] = m[0] + p + r;
    y[1] = q + T(2) * s;
    y[2] = p + T(4) * r;
    y[3] = q + T(8) * s + m[5];
  }
}

// Beyond it the sums of Winograd's products may overflow where the convolution itself would not.
constexpr float largest_for_winograd = 1e34f;

// A strip of tiles, and how it lies in scratch memory.
template <typename T, int side>
struct WinogradPlan {
  static constexpr int64_t reach = side + 2, values = reach * reach;
  int64_t tiles;  // at most, in a row of the strip
  int64_t plane;  // one more tile than that, in whole vectors
  int64_t slot;   // a row of the strip: all planes of all channels
  int64_t transformed, products, sums;

  explicit WinogradPlan(const Conv<T>& conv) {
    // What the products read shall stay in the second level of the cache.
    constexpr int64_t bytes = 640 * 1024;
    const bool narrow = values * conv.in_channels * tile_pixels<T> * int64_t(sizeof(T)) > bytes;
    tiles = narrow ? lanes<T> : tile_pixels<T>;
    plane = tiles + lanes<T>;
    slot = conv.in_channels * side * plane;
    transformed = values * conv.in_channels * tiles;
    products = values * tile_outputs * tiles;
    sums = round_up(conv.out_channels, lanes<T>) * tiles;
  }

  int64_t total() const { return reach * slot + transformed + products + side * side * sums; }
};

template <typename T>
int64_t conv_scratch(const Conv<T>& conv) {
  const int64_t directly = direct_scratch(conv);
  switch (conv.method) {
    case Method::winograd2:
      return directly + WinogradPlan<T, 2>(conv).total();
    case Method::winograd4:
      return directly + WinogradPlan<T, 4>(conv).total();
    default:
      return directly;
  }
}

template <typename T, int side>
class WinogradStrip {
  using Plan = WinogradPlan<T, side>;
  static constexpr int reach = side + 2;

 public:
  WinogradStrip(const Conv<T>& conv, const Plan& plan, const Part& part, int64_t x0, T* scratch)
      : conv_(conv),
        plan_(plan),
        part_(part),
        x0_(x0),
        columns_(smaller(side * plan.tiles, part.last_column - x0)),
        tiles_((columns_ + side - 1) / side),
        vectors_(tiles_ > lanes<T> ? 2 : 1),
        rows_(scratch),
        transformed_(rows_ + reach * plan.slot),
        products_(transformed_ + plan.transformed),
        sums_(products_ + plan.products),
        rest_(sums_ + side * side * plan.sums) {
    for (int64_t& row : row_in_slot_) {
      row = -2;
    }
  }

  // Output rows [y, y + side), as far as the part reaches.
  void row(int64_t y) {
    const int64_t last = smaller(y + side, part_.last_row);
    if (!gather(y)) {
      convolve_directly(conv_, conv_.direct_weights(conv_.owner),
                        {part_.n, y, last, x0_, x0_ + columns_}, rest_);
      return;
    }
    look_ahead(y, last);
    transform_rows(y);
    for_output_blocks(conv_.out_channels, [&](int64_t first, int64_t outputs) {
      const Multiply<T> multiply = multiply_for<T>(outputs, vectors_);
      const int64_t channels = conv_.in_channels;
      for (int64_t k = 0; k < Plan::values; k++) {
        ahead_.step();
        const Tap<T> tap = {transformed_ + k * channels * plan_.tiles, k};
        multiply(&tap, 1, channels, plan_.tiles, conv_.weights + first * Plan::values * channels,
                 products_ + k * tile_outputs * plan_.tiles, plan_.tiles);
      }
      sum_products(outputs, sums_ + first * plan_.tiles);
    });
    for (int64_t r = 0; r < last - y; r++) {
      for (int64_t p = 0; p < smaller(side, columns_); p++) {
        write_row(conv_, part_.n, y + r, x0_ + p, int64_t(side), (columns_ - p + side - 1) / side,
                  static_cast<const T*>(sums_ + (r * side + p) * plan_.sums), plan_.tiles);
      }
    }
  }

 private:
  T* slot_of(int64_t row) const { return rows_ + (row + reach) % reach * plan_.slot; }

  // Brings the input rows of output rows y, ... into their slots. False where a value is not
  // finite, or too large.
  bool gather(int64_t y) {
    bool fits = true;
    for (int64_t row = y - 1; row < y - 1 + reach; row++) {
      const int64_t slot = (row + reach) % reach;
      if (row_in_slot_[slot] != row) {
        row_in_slot_[slot] = row;
        fits_[slot] = load(row, slot_of(row));
      }
      fits = fits && fits_[slot];
    }
    return fits;
  }

  bool load(int64_t row, T* planes) const {
    if (row < 0 || row >= conv_.inputs[0].height) {
      std::memset(planes, 0, plan_.slot * sizeof(T));
      return true;
    }
    T most = 0;
    for (int64_t p = 0; p < side; p++) {
      const bool last = p == side - 1;
      const Columns columns = {x0_ + (last ? -1 : p), side, tiles_ + (last || p == 0 ? 1 : 0)};
      const T found =
          load_planes(conv_, part_.n, row, columns, planes + p * plan_.plane, side * plan_.plane);
      most = found <= most || most != most ? most : found;
    }
    return most <= T(largest_for_winograd);
  }

  // What the next rows of the strip read, or the next strip's first.
  void look_ahead(int64_t y, int64_t last) {
    const bool more = y + side < part_.last_row;
    const int64_t next = more ? y + side + 1 : part_.first_row - 1;
    const int64_t x = more ? x0_ : x0_ + side * plan_.tiles;
    ahead_.clear();
    for (int64_t row = next; row < next + (more ? side : reach); row++) {
      ahead_.read(conv_, part_.n, row, {x, 1, columns_ + 1});
    }
    for (int64_t row = y; row < last; row++) {
      ahead_.write(conv_, part_.n, row, x0_, x0_ + columns_);
    }
    ahead_.spread((conv_.out_channels + tile_outputs - 1) / tile_outputs * Plan::values);
  }

  // transformed[k][c][tile] from the rows y - 1, ...
  void transform_rows(int64_t y) const {
    const int64_t step = conv_.in_channels * plan_.tiles, plane = plan_.plane;
    for (int64_t v = 0; v < vectors_; v++) {
      const T* from[reach];
      T* to[reach];
      for (int r = 0; r < reach; r++) {
        from[r] = slot_of(y - 1 + r) + v * lanes<T>;
        to[r] = transformed_ + r * reach * step + v * lanes<T>;
      }
      for (int64_t c = 0; c < conv_.in_channels; c++) {
        Vector<T> t[reach][reach];
#pragma GCC unroll 6
        for (int r = 0; r < reach; r++) {
          Vector<T> d[reach];
          d[0] = load_vector(from[r] + (side - 1) * plane);
#pragma GCC unroll 6
          for (int j = 1; j < side; j++) {
            d[j] = load_vector(from[r] + (j - 1) * plane);
          }
          d[side] = load_vector(from[r] + (side - 1) * plane + 1);
          d[side + 1] = load_vector(from[r] + 1);
          transform_in<side, T>(d, t[r]);
        }
#pragma GCC unroll 6
        for (int k = 0; k < reach; k++) {
          Vector<T> column[reach], result[reach];
#pragma GCC unroll 6
          for (int r = 0; r < reach; r++) {
            column[r] = t[r][k];
          }
          transform_in<side, T>(column, result);
#pragma GCC unroll 6
          for (int r = 0; r < reach; r++) {
            store_vector(to[r] + k * step, result[r]);
          }
        }
#pragma GCC unroll 6
        for (int r = 0; r < reach; r++) {
          from[r] += side * plane;
          to[r] += plan_.tiles;
        }
      }
    }
  }

  // From products[k][o][tile] to sums[row of a tile][column of a tile][o][tile].
  void sum_products(int64_t outputs, T* sums) const {
    const int64_t step = tile_outputs * plan_.tiles;
    for (int64_t o = 0; o < outputs; o++) {
      for (int64_t v = 0; v < vectors_; v++) {
        const int64_t at = o * plan_.tiles + v * lanes<T>;
        Vector<T> t[side][reach];
#pragma GCC unroll 6
        for (int k = 0; k < reach; k++) {
          Vector<T> m[reach], y[side];
#pragma GCC unroll 6
          for (int r = 0; r < reach; r++) {
            m[r] = load_vector(products_ + at + (r * reach + k) * step);
          }
          transform_out<side, T>(m, y);
#pragma GCC unroll 6
          for (int r = 0; r < side; r++) {
            t[r][k] = y[r];
          }
        }
#pragma GCC unroll 6
        for (int r = 0; r < side; r++) {
          Vector<T> y[side];
          transform_out<side, T>(t[r], y);
#pragma GCC unroll 6
          for (int p = 0; p < side; p++) {
            store_vector(sums + (r * side + p) * plan_.sums + at, y[p]);
          }
        }
      }
    }
  }

  const Conv<T>& conv_;
  const Plan& plan_;
  const Part& part_;
  const int64_t x0_, columns_, tiles_, vectors_;
  T *const rows_, *const transformed_, *const products_, *const sums_, *const rest_;
  int64_t row_in_slot_[reach];
  bool fits_[reach];
  Ahead ahead_;
};

template <int side, typename T>
void convolve_by_winograd(const Conv<T>& conv, const Part& part, T* scratch) {
  const WinogradPlan<T, side> plan(conv);
  for (int64_t x0 = part.first_column; x0 < part.last_column; x0 += side * plan.tiles) {
    WinogradStrip<T, side> strip(conv, plan, part, x0, scratch);
    for (int64_t y = part.first_row; y < part.last_row; y += side) {
      strip.row(y);
    }
  }
}

template <typename T>
void conv(const Conv<T>& conv, const Part& part, T* scratch) {
  if constexpr (sizeof(T) == 4) {
    if (conv.method == Method::winograd2) {
      return convolve_by_winograd<2>(conv, part, scratch);
    }
    if (conv.method == Method::winograd4) {
      return convolve_by_winograd<4>(conv, part, scratch);
    }
  }
  convolve_directly(conv, conv.weights, part, scratch);
}
