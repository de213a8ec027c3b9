// Direct convolution. Part of kernels_impl.h.
//
// It walks down strips of columns. Scratch memory holds the rows of the strip that the current
// output row reads, as planes; a row stays until its slot is needed, so that going down, every row
// is transposed once per strip.

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
  ColumnRun runs[most_side];
  int64_t run_of_tap[most_side], start_of_tap[most_side];
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
// four: it is wide where the weights, which are read once per strip and row, fill more than the
// second level (1.9 MB in DAPF), and where channels are so few that beginning a row of a strip
// costs more than the row (the stem's first layer, 3 to 16 channels).
template <typename T>
StripPlan<T> plan_strip(const Conv<T>& conv) {
  constexpr int64_t bytes = 256 * 1024, most = 4, few_channels = 8;
  const bool many = has_many_weights(conv, conv.kernel_h * conv.kernel_w);
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

// Which input row lies in which slot of scratch memory.
template <typename T>
struct TapRows {
  const Conv<T>& conv;
  int64_t row_in_slot[most_side];

  explicit TapRows(const Conv<T>& whole) : conv(whole) {
    for (int64_t& row : row_in_slot) {
      row = -1;
    }
  }
  int64_t input_row(int64_t y, int64_t tap) const {
    return y * conv.stride_h + (tap - conv.kernel_h / 2) * conv.dilation_h;
  }
  bool is_there(int64_t row) const { return row >= 0 && row < conv.inputs[0].height; }
  // Rows that one output row reads are in different slots, and those that the next one reads again
  // stay (for_rows); not so where stride and dilation mix.
  bool stays() const { return conv.stride_h == 1 || conv.dilation_h == 1; }
  int64_t slot_of(int64_t row, int64_t tap) const {
    return stays() ? row / conv.dilation_h % conv.kernel_h : tap;
  }
  bool holds(int64_t row, int64_t tap) const {
    return stays() && is_there(row) && row_in_slot[slot_of(row, tap)] == row;
  }

  // Lists what row y of the strip at x0 writes, and what the next row reads that is not held, or
  // the next strip's first row.
  void look_ahead(Ahead& ahead, const Part& part, int64_t y, int64_t x0, int64_t pixels,
                  int64_t width) const {
    const int64_t step = conv.stride_h == 1 ? conv.dilation_h : 1;
    const bool more = y + step < part.last_row;
    const int64_t next_y = more ? y + step : part.first_row;
    const int64_t next_x = (more ? x0 : x0 + width) * conv.stride_w;
    ahead.clear();
    for (int64_t tap = 0; tap < conv.kernel_h; tap++) {
      const int64_t row = input_row(next_y, tap);
      if (!more || !holds(row, tap)) {
        ahead.read(conv, part.n, row, {next_x, 1, pixels * conv.stride_w});
      }
    }
    ahead.write(conv, part.n, y, x0, x0 + pixels);
  }
};

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
        rows_(conv),
        scratch_(scratch),
        sums_(scratch + conv.kernel_h * plan.slot_values(conv)),
        many_(has_many_weights(conv, conv.kernel_h * conv.kernel_w)) {
    const int64_t width = conv.inputs[0].width;
    for (int64_t tap = 0; tap < conv.kernel_w; tap++) {
      const int64_t shift = (tap - conv.kernel_w / 2) * conv.dilation_w;
      seen_[tap] =
          x0 * conv.stride_w + shift < width && (x0 + pixels_ - 1) * conv.stride_w + shift >= 0;
    }
  }

  void row(int64_t y) {
    gather(y);
    rows_.look_ahead(ahead_, part_, y, x0_, pixels_, plan_.width);
    ahead_.spread(ceil_div(conv_.out_channels, int64_t(tile_outputs)) *
                  ceil_div(pixels_, int64_t(tile_pixels<T>)));
    const int64_t rows = conv_.kernel_h * conv_.kernel_w * conv_.weight_channels;
    for_output_blocks(conv_.out_channels, [&](int64_t first, int64_t outputs) {
      for (int64_t x = 0; x < pixels_; x += tile_pixels<T>) {
        ahead_.step();
        Tap<T> here[most_side * most_side];
        for (int64_t t = 0; t < count_; t++) {
          here[t] = {taps_[t].planes + x, taps_[t].row};
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
    const Multiply<T> product = multiply_for<T>(outputs, vectors, many_);
    const int64_t channels = conv_.in_channels, pitch = plan_.pitch, width = plan_.width;
    if (count_ * channels <= most_terms) {
      product(taps, count_, channels, pitch, weights, sums, width, false);
      return;
    }
    for (int64_t t = 0; t < count_; t++) {
      product(taps + t, 1, channels, pitch, weights, sums, width, t > 0);
    }
  }

  // Brings the input rows of output row y into their slots; lists the taps that are not padding.
  void gather(int64_t y) {
    count_ = 0;
    for (int64_t tap_h = 0; tap_h < conv_.kernel_h; tap_h++) {
      const int64_t row = rows_.input_row(y, tap_h);
      if (!rows_.is_there(row)) {
        continue;
      }
      const int64_t slot = rows_.slot_of(row, tap_h);
      T* const planes = scratch_ + slot * plan_.slot_values(conv_);
      if (rows_.row_in_slot[slot] != row) {
        rows_.row_in_slot[slot] = row;
        load(row, planes);
      }
      for (int64_t tap_w = 0; tap_w < conv_.kernel_w; tap_w++) {
        if (seen_[tap_w]) {
          const int64_t run = plan_.run_of_tap[tap_w] * plan_.run_values(conv_);
          const int64_t tap = tap_h * conv_.kernel_w + tap_w;
          taps_[count_++] = {planes + run + plan_.start_of_tap[tap_w],
                             tap * conv_.weight_channels + conv_.first_channel};
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

  const Conv<T>& conv_;
  const StripPlan<T>& plan_;
  const T* const weights_;
  const Part& part_;
  const int64_t x0_, pixels_;
  TapRows<T> rows_;
  T *const scratch_, *const sums_;
  const bool many_;
  bool seen_[most_side];  // whether a tap's columns are not all outside the image
  Tap<T> taps_[most_side * most_side];
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
