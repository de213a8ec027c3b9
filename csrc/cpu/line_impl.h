// Winograd's convolution along one axis, of 3x1 and 1x3 kernels. Part of kernels_impl.h.
//
// F(4, 3) of winograd_impl.h, with the same transformations: four outputs of a line, d apart, read
// six inputs and take 6 products, where the sum takes 12.
//
//     y = A^T [ sum over channels of (G g) * (B^T x) ]
//
// Registers hold a value of adjacent lines. Those of a 3x1 are columns: x are six rows of the
// strip, as planes. Those of a 1x3 lie in one row: at a dilation of d, line b * d + p begins at
// column 4 * d * b + p of the strip, and its outputs follow d columns apart. Its x are four planes
// of every channel, with the columns in which lines have their first, second, third and fourth
// input; the fifth and sixth are the first two of the lines that are d further.

// Lines of a strip, and how they lie in scratch memory.
template <typename T>
struct LinePlan {
  static constexpr int64_t side = 4, reach = side + 2;
  bool across;            // a 1x3
  int64_t dilation;       // of the kernel's own axis
  int64_t lines;          // at most, in whole vectors
  int64_t row;            // values that a row of a 1x3 has in a plane, with both its borders
  int64_t plane, planes;  // values of a plane of inputs, and planes of a channel
  int64_t value, products, sums;

  explicit LinePlan(const Conv<T>& conv)
      : across(conv.kernel_w == 3),
        dilation(across ? conv.dilation_w : conv.dilation_h),
        lines(across ? larger(tile_pixels<T>, dilation) : tile_pixels<T>),
        row(side * lines + 2 * dilation + lanes<T>),
        plane(lines + (across ? dilation : 0) + lanes<T>),
        planes(across ? side : reach),
        value(conv.in_channels * lines + lanes<T>),
        products(reach * tile_outputs * lines),
        sums(round_up(conv.out_channels, lanes<T>) * lines + lanes<T>) {}

  bool spreads() const { return across && dilation > 1; }
  int64_t inputs(const Conv<T>& conv) const { return conv.in_channels * planes * plane; }
  int64_t rows(const Conv<T>& conv) const {
    return spreads() ? (larger(conv.in_channels, round_up(conv.out_channels, lanes<T>))) * row : 0;
  }
  int64_t total(const Conv<T>& conv) const {
    return inputs(conv) + rows(conv) + reach * value + products + side * sums;
  }
  // The number of output columns in `count` lines, and of lines for `pixels` columns.
  int64_t columns(int64_t count) const { return across ? side * count : count; }
  int64_t needed(int64_t pixels) const {
    const int64_t whole = across ? ceil_div(pixels, side * dilation) * dilation : pixels;
    return smaller(round_up(whole, lanes<T>), lines);
  }
};

// Whether lines fill their vectors: in a narrow row those of a 1x3 do not.
template <typename T>
inline bool fills_lines(const Conv<T>& conv) {
  const LinePlan<T> plan(conv);
  const int64_t unit = larger(lanes<T>, plan.dilation) * plan.side;
  return !plan.across || 4 * conv.out_width >= 3 * round_up(conv.out_width, unit);
}

// Copies runs of adjacent values between planes of columns and planes of lines.
template <typename T, int run>
inline void copy_runs_of(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t runs) {
  for (int64_t i = 0; i < runs; i++, from += from_step, to += to_step) {
    std::memcpy(to, from, run * sizeof(T));
  }
}

template <typename T>
inline void copy_runs(int64_t run, const T* from, int64_t from_step, T* to, int64_t to_step,
                      int64_t runs) {
  switch (run) {
    case 2:
      return copy_runs_of<T, 2>(from, from_step, to, to_step, runs);
    case 4:
      return copy_runs_of<T, 4>(from, from_step, to, to_step, runs);
    case 8:
      return copy_runs_of<T, 8>(from, from_step, to, to_step, runs);
    default:
      return copy_runs_of<T, 16>(from, from_step, to, to_step, runs);
  }
}

template <typename T>
class LineStrip {
  using Plan = LinePlan<T>;
  static constexpr int reach = Plan::reach, side = Plan::side;

 public:
  LineStrip(const Conv<T>& conv, const Plan& plan, const Part& part, int64_t x0, T* scratch)
      : conv_(conv),
        plan_(plan),
        part_(part),
        x0_(x0),
        columns_(smaller(plan.columns(plan.lines), part.last_column - x0)),
        lines_(plan.needed(columns_)),
        many_(has_many_weights(conv, reach)),
        inputs_(scratch),
        row_(inputs_ + plan.inputs(conv)),
        transformed_(row_ + plan.rows(conv)),
        products_(transformed_ + reach * plan.value),
        sums_(products_ + plan.products),
        rest_(sums_ + side * plan.sums) {
    for (int64_t& row : row_in_slot_) {
      row = -2;
    }
  }

  void run() {
    const int64_t step = plan_.across ? 1 : side;
    for (int64_t y = part_.first_row; y < part_.last_row; y += step) {
      const int64_t last = smaller(y + step, part_.last_row);
      if (plan_.across ? gather_columns(y) : gather_rows(y)) {
        look_ahead(y, step);
        multiply();
        plan_.across ? write_columns(y) : write_rows(y, last);
      } else {
        convolve_directly(conv_, conv_.direct_weights(conv_.owner),
                          {part_.n, y, last, x0_, x0_ + columns_}, rest_);
      }
    }
  }

 private:
  // The inputs of a 3x1, rows y - 1 to y + 4, in six planes of a channel; false where a value is
  // not finite, or too large.
  bool gather_rows(int64_t y) {
    // Rows below the part belong to lines that are not written, and need not exist.
    const int64_t end = smaller(conv_.inputs[0].height, part_.last_row + 1);
    bool fits = true;
    for (int64_t j = 0; j < reach; j++) {
      const int64_t row = y - 1 + j, slot = (row + reach) % reach;
      T* const planes = inputs_ + slot * plan_.plane * conv_.in_channels;
      if (row_in_slot_[slot] != row) {
        row_in_slot_[slot] = row;
        fits_[slot] = true;
        if (row >= 0 && row < end) {
          fits_[slot] =
              is_small(load_planes(conv_, part_.n, row, {x0_, 1, columns_}, planes, plan_.plane));
        } else {
          std::memset(planes, 0, plan_.plane * conv_.in_channels * sizeof(T));
        }
      }
      from_[j] = planes;
      fits = fits && fits_[slot];
    }
    step_ = plan_.plane;
    return fits;
  }

  // The inputs of a 1x3 in row y.
  bool gather_columns(int64_t y) {
    const int64_t d = plan_.dilation, step = side * plan_.plane;
    bool fits = true;
    if (d == 1) {
      for (int64_t j = 0; j < side; j++) {
        const Columns columns = {x0_ - 1 + j, side, lines_ + (j < 2 ? 1 : 0)};
        fits = is_small(load_planes(conv_, part_.n, y, columns, inputs_ + j * plan_.plane, step)) &&
               fits;
      }
    } else {
      const int64_t runs = lines_ / d;
      fits = is_small(
          load_planes(conv_, part_.n, y, {x0_ - d, 1, side * lines_ + 2 * d}, row_, plan_.row));
      for (int64_t c = 0; c < conv_.in_channels; c++) {
        for (int64_t j = 0; j < side; j++) {
          copy_runs(d, row_ + c * plan_.row + j * d, side * d, inputs_ + c * step + j * plan_.plane,
                    d, runs + (j < 2 ? 1 : 0));
        }
      }
    }
    for (int64_t j = 0; j < reach; j++) {
      from_[j] = inputs_ + j % side * plan_.plane + j / side * d;
    }
    step_ = step;
    return fits;
  }

  static bool is_small(T most) { return most <= T(largest_for_winograd); }

  // transformed[k][c][line].
  void transform() const {
    for (int64_t c = 0; c < conv_.in_channels; c++) {
      for (int64_t i = 0; i < lines_; i += lanes<T>) {
        Vector<T> x[reach], t[reach];
#pragma GCC unroll 6
        for (int j = 0; j < reach; j++) {
          x[j] = load_vector(from_[j] + c * step_ + i);
        }
        transform_in<side, T>(x, t);
#pragma GCC unroll 6
        for (int k = 0; k < reach; k++) {
          store_vector(transformed_ + k * plan_.value + c * plan_.lines + i, t[k]);
        }
      }
    }
  }

  // sums[output of a line][o][line].
  void multiply() {
    transform();
    constexpr int64_t most_terms = 128;
    const int64_t channels = conv_.in_channels, lines = plan_.lines;
    const int64_t share = ceil_div(channels, ceil_div(channels, most_terms));
    for_output_blocks(conv_.out_channels, [&](int64_t first, int64_t outputs) {
      const T* const weights = conv_.weights + first * reach * conv_.weight_channels;
      for (int64_t k = 0; k < reach; k++) {
        ahead_.step();
        const int64_t row = k * conv_.weight_channels + conv_.first_channel;
        T* const products = products_ + k * tile_outputs * lines;
        for (int64_t x = 0; x < lines_; x += tile_pixels<T>) {
          const Multiply<T> product =
              multiply_for<T>(outputs, lines_ - x > lanes<T> ? 2 : 1, many_);
          for (int64_t c = 0; c < channels; c += share) {
            const Tap<T> tap = {transformed_ + k * plan_.value + c * lines + x, row + c};
            product(&tap, 1, smaller(share, channels - c), lines, weights, products + x, lines,
                    c > 0);
          }
        }
      }
      for (int64_t o = 0; o < outputs; o++) {
        for (int64_t i = 0; i < lines_; i += lanes<T>) {
          Vector<T> m[reach], sum[side];
#pragma GCC unroll 6
          for (int k = 0; k < reach; k++) {
            m[k] = load_vector(products_ + (k * tile_outputs + o) * lines + i);
          }
          transform_out<side, T>(m, sum);
#pragma GCC unroll 4
          for (int r = 0; r < side; r++) {
            store_vector(sums_ + r * plan_.sums + (first + o) * lines + i, sum[r]);
          }
        }
      }
    });
  }

  void write_rows(int64_t y, int64_t last) const {
    for (int64_t r = 0; r < last - y; r++) {
      write_row(conv_, part_.n, y + r, x0_, int64_t(1), columns_,
                static_cast<const T*>(sums_ + r * plan_.sums), plan_.lines);
    }
  }

  void write_columns(int64_t y) const {
    const int64_t d = plan_.dilation;
    if (d == 1) {
      for (int64_t r = 0; r < smaller(side, columns_); r++) {
        write_row(conv_, part_.n, y, x0_ + r, int64_t(side), ceil_div(columns_ - r, side),
                  static_cast<const T*>(sums_ + r * plan_.sums), plan_.lines);
      }
      return;
    }
    for (int64_t o = 0; o < conv_.out_channels; o++) {
      for (int64_t r = 0; r < side; r++) {
        copy_runs(d, static_cast<const T*>(sums_ + r * plan_.sums + o * plan_.lines), d,
                  row_ + o * plan_.row + r * d, side * d, lines_ / d);
      }
    }
    write_row(conv_, part_.n, y, x0_, int64_t(1), columns_, static_cast<const T*>(row_), plan_.row);
  }

  // What the next rows of the strip read, or the next strip's first.
  void look_ahead(int64_t y, int64_t step) {
    const int64_t d = plan_.dilation, next = y + step;
    const bool more = next < part_.last_row;
    const int64_t border = plan_.across ? d : 0;
    ahead_.clear();
    for (int64_t i = 0; i < step; i++) {
      const int64_t row = more ? next + (plan_.across ? 0 : 1) + i : part_.first_row + i;
      const int64_t x = more ? x0_ : x0_ + plan_.columns(plan_.lines);
      ahead_.read(conv_, part_.n, row, {x - border, 1, columns_ + 2 * border});
      if (y + i < part_.last_row) {
        ahead_.write(conv_, part_.n, y + i, x0_, x0_ + columns_);
      }
    }
    ahead_.spread(ceil_div(conv_.out_channels, int64_t(tile_outputs)) * reach);
  }

  const Conv<T>& conv_;
  const Plan& plan_;
  const Part& part_;
  const int64_t x0_, columns_, lines_;
  const bool many_;
  T *const inputs_, *const row_, *const transformed_, *const products_, *const sums_, *const rest_;
  const T* from_[reach];
  int64_t step_ = 0;  // of from_, from channel to channel
  int64_t row_in_slot_[reach];
  bool fits_[reach];
  Ahead ahead_;
};

template <typename T>
void convolve_lines(const Conv<T>& conv, const Part& part, T* scratch) {
  const LinePlan<T> plan(conv);
  for (int64_t x0 = part.first_column; x0 < part.last_column; x0 += plan.columns(plan.lines)) {
    LineStrip<T>(conv, plan, part, x0, scratch).run();
  }
}
