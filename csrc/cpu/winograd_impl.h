// Winograd's convolution, in strips of columns like direct_impl.h. Part of kernels_impl.h.
//
// Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, sections 4.1 and
// 4.3: a tile of side x side output pixels, side 2 or 4, reads (side + 2)^2 input pixels d, and is
//
//     A^T [ sum over channels of (G g G^T) * (B^T d B) ] A
//
// 16 products for 4 pixels, or 36 for 16, where the plain sum takes 9 for each. F(2x2, 3x3) rounds
// like the plain sum (2e-7 of the result in float32). F(4x4, 3x3) at its usual points, 0, 1, -1, 2,
// -2 and infinity, rounds six times worse. Two things make it as exact as a plain sum of 256
// channels (5e-7 to 8e-7, of 16 to 512 channels): 1/2 in place of 2 (Barabasz et al., "Error
// Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", ACM TOMS
// 2020), and sums of at most 48 terms, which are then added up. Values that are not finite, or so
// large that the sums could overflow, spread to a whole tile, and are convolved directly.
//
// Registers hold one value of adjacent tiles. The columns of a row lie in one plane per column of a
// tile: plane p holds columns p, p + side, p + 2 * side, ... of the strip, but the last plane
// begins a tile earlier, with the column left of the strip.
//
// Weights are read once per row of tiles, and those of many channels (16 MB of 512 to 512) take
// longer to come than to be multiplied by a row of a small map. Where its tiles fill half of the
// registers or less, the strip is cut into bands of equal height, and a row of each is multiplied
// at once, their tiles side by side (one core: 512 to 512 at 8x16 in 2.5 ms, from 5.3).

// B^T d, along one axis.
template <int side, typename T>
inline void transform_in(const Vector<T>* d, Vector<T>* t) {
  if constexpr (side == 2) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  } else {
    const Vector<T> u = d[4] - d[2], v = d[3] - d[1];
    const Vector<T> sum = u + T(1.5) * d[3], difference = v + T(1.5) * d[2];
    t[0] = d[0] - d[2] + T(1.5) * v + u;
    t[1] = sum + difference;
    t[2] = sum - difference;
    t[3] = u + T(2) * v;
    t[4] = u - T(0.5) * v;
    t[5] = d[5] - d[3] + T(1.5) * u - v;
  }
}

// A^T m, along one axis.
template <int side, typename T>
inline void transform_out(const Vector<T>* m, Vector<T>* y) {
  if constexpr (side == 2) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  } else {
    const Vector<T> p = m[1] + m[2], q = m[1] - m[2];
    y[0] = m[0] + p + (m[3] + m[4]);
    y[1] = q + T(0.5) * m[3] - T(2) * m[4];
    y[2] = p + T(0.25) * m[3] + T(4) * m[4];
    y[3] = q + m[5] + T(0.125) * m[3] - T(8) * m[4];
  }
}

// Beyond it the sums of Winograd's products may overflow where the convolution itself would not.
constexpr float largest_for_winograd = 1e34f;

// A strip of tiles, and how it lies in scratch memory.
template <typename T, int side>
struct WinogradPlan {
  static constexpr int64_t reach = side + 2, values = reach * reach;
  int64_t tiles;  // at most, in a row of the strip or side by side
  int64_t plane;  // one more tile than that in every band, in whole vectors
  int64_t slot;   // a row of the strip: all planes of all channels
  int64_t value;  // one of the transformed values: a row of tiles of all channels
  int64_t transformed, products, sums;

  explicit WinogradPlan(const Conv<T>& conv) {
    // What the products read shall stay in the second level of the cache, as weights pass by.
    const int64_t bytes = second_level_cache() / 8 * 5;
    const bool narrow = values * conv.in_channels * tile_pixels<T> * int64_t(sizeof(T)) > bytes;
    tiles = narrow ? lanes<T> : tile_pixels<T>;
    plane = tiles + (conv.out_width > side * lanes<T> ? 1 : 2) * lanes<T>;
    slot = conv.in_channels * side * plane;
    value = conv.in_channels * tiles + lanes<T>;
    transformed = values * value;
    products = values * tile_outputs * tiles;
    int64_t outputs = 0;
    for (const Conv<T>* each = &conv; each; each = each->next) {
      outputs = larger(outputs, each->out_channels);
    }
    sums = round_up(outputs, lanes<T>) * tiles + lanes<T>;
  }

  int64_t total() const { return reach * slot + transformed + products + side * side * sums; }
};

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
        pitch_(round_up(tiles_ + 1, lanes<T>)),
        height_(side * ceil_div(part.last_row - part.first_row,
                                side * smaller(plan.tiles / tiles_, plan.plane / pitch_))),
        bands_(ceil_div(part.last_row - part.first_row, height_)),
        vectors_(bands_ * tiles_ > lanes<T> ? 2 : 1),
        rows_(scratch),
        transformed_(rows_ + reach * plan.slot),
        products_(transformed_ + plan.transformed),
        sums_(products_ + plan.products),
        rest_(sums_ + side * side * plan.sums) {
    for (int64_t& row : row_in_slot_) {
      row = -2;
    }
  }

  void run() {
    for (int64_t y = part_.first_row; y < part_.first_row + height_; y += side) {
      row(y);
    }
  }

 private:
  // Output rows [y, y + side) of the first band, and those as far down in the others.
  void row(int64_t y) {
    const bool fits = gather(y);
    if (fits) {
      look_ahead(y);
      transform_rows(y);
    }
    for (const Conv<T>* conv = &conv_; conv; conv = conv->next) {
      if (fits) {
        multiply_and_write(*conv, y);
        continue;
      }
      for_bands(y, [&](int64_t, int64_t first, int64_t last) {
        convolve_directly(*conv, conv->direct_weights(conv->owner),
                          {part_.n, first, last, x0_, x0_ + columns_}, rest_);
      });
    }
  }

  void multiply_and_write(const Conv<T>& conv, int64_t y) {
    const bool many = has_many_weights(conv, Plan::values);
    constexpr int64_t most_terms = 48;
    const int64_t channels = conv.in_channels;
    const int64_t share = ceil_div(channels, ceil_div(channels, most_terms));
    for_output_blocks(conv.out_channels, [&](int64_t first, int64_t outputs) {
      const Multiply<T> multiply = multiply_for<T>(outputs, vectors_, many);
      const T* const weights = conv.weights + first * Plan::values * conv.weight_channels;
      for (int64_t k = 0; k < Plan::values; k++) {
        ahead_.step();
        T* const products = products_ + k * tile_outputs * plan_.tiles;
        for (int64_t c = 0; c < channels; c += share) {
          const Tap<T> tap = {transformed_ + k * plan_.value + c * plan_.tiles,
                              k * conv.weight_channels + conv.first_channel + c};
          multiply(&tap, 1, smaller(share, channels - c), plan_.tiles, weights, products,
                   plan_.tiles, c > 0);
        }
      }
      sum_products(outputs, sums_ + first * plan_.tiles);
    });
    for_bands(y, [&](int64_t band, int64_t first, int64_t last) {
      for (int64_t r = 0; r < last - first; r++) {
        for (int64_t p = 0; p < smaller(side, columns_); p++) {
          const T* const sums = sums_ + (r * side + p) * plan_.sums + band * tiles_;
          write_row(conv, part_.n, first + r, x0_ + p, int64_t(side),
                    (columns_ - p + side - 1) / side, sums, plan_.tiles);
        }
      }
    });
  }

  // f(band, first, last) for the output rows of every band, as far as the part reaches.
  template <typename F>
  void for_bands(int64_t y, const F& f) const {
    for (int64_t band = 0; band < bands_; band++, y += height_) {
      if (y < part_.last_row) {
        f(band, y, smaller(y + side, part_.last_row));
      }
    }
  }

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

  // A row of the first band, and those as far down in the others.
  bool load(int64_t row, T* planes) const {
    // Rows below the part belong to tiles that are not written, and need not exist.
    const int64_t end = smaller(conv_.inputs[0].height, part_.last_row + 1);
    if (row < 0 || row + (bands_ - 1) * height_ >= end) {
      std::memset(planes, 0, plan_.slot * sizeof(T));
    }
    T most = 0;
    for (int64_t band = 0; band < bands_; band++, row += height_, planes += pitch_) {
      for (int64_t p = 0; p < side && row >= 0 && row < end; p++) {
        const bool last = p == side - 1;
        const Columns columns = {x0_ + (last ? -1 : p), side, tiles_ + (last || p == 0 ? 1 : 0)};
        const T found =
            load_planes(conv_, part_.n, row, columns, planes + p * plan_.plane, side * plan_.plane);
        most = found <= most || most != most ? most : found;
      }
    }
    return most <= T(largest_for_winograd);
  }

  // What the next rows of the strip read, or the next strip's first.
  void look_ahead(int64_t y) {
    const bool more = y + side < part_.first_row + height_;
    const int64_t next = more ? y + side + 1 : part_.first_row - 1;
    const int64_t x = more ? x0_ : x0_ + side * plan_.tiles;
    ahead_.clear();
    for_bands(y, [&](int64_t, int64_t first, int64_t last) {
      for (int64_t row = next; row < next + (more ? side : reach); row++) {
        ahead_.read(conv_, part_.n, row + first - y, {x, 1, columns_ + 1});
      }
      for (const Conv<T>* conv = &conv_; conv; conv = conv->next) {
        for (int64_t row = first; row < last; row++) {
          ahead_.write(*conv, part_.n, row, x0_, x0_ + columns_);
        }
      }
    });
    int64_t blocks = 0;
    for (const Conv<T>* conv = &conv_; conv; conv = conv->next) {
      blocks += (conv->out_channels + tile_outputs - 1) / tile_outputs;
    }
    ahead_.spread(blocks * Plan::values);
  }

  // transformed[k][c][tile] from the rows y - 1, ... A band's vector is stored whole, and what it
  // has beyond its tiles is overwritten by the next band or channel.
  void transform_rows(int64_t y) const {
    const int64_t plane = plan_.plane, value = plan_.value;
    const int64_t count = bands_ > 1 ? bands_ : vectors_;
    const int64_t from_step = bands_ > 1 ? pitch_ : lanes<T>;
    const int64_t to_step = bands_ > 1 ? tiles_ : lanes<T>;
    const T* from[reach];
    T* to[reach];
    for (int r = 0; r < reach; r++) {
      from[r] = slot_of(y - 1 + r);
      to[r] = transformed_ + r * reach * value;
    }
    for (int64_t c = 0; c < conv_.in_channels; c++) {
      for (int64_t i = 0; i < count; i++) {
        Vector<T> t[reach][reach];
#pragma GCC unroll 6
        for (int r = 0; r < reach; r++) {
          const T* const row = from[r] + i * from_step;
          Vector<T> d[reach];
          d[0] = load_vector(row + (side - 1) * plane);
#pragma GCC unroll 6
          for (int j = 1; j < side; j++) {
            d[j] = load_vector(row + (j - 1) * plane);
          }
          d[side] = load_vector(row + (side - 1) * plane + 1);
          d[side + 1] = load_vector(row + 1);
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
            T* const target = to[r] + k * value + i * to_step;
            store_vector(target, result[r]);
            __builtin_prefetch(target + lanes<T>, 1);  // for the next vector, in time
          }
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < reach; r++) {
        from[r] += side * plane;
        to[r] += plan_.tiles;
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
  const int64_t x0_, columns_;
  const int64_t tiles_, pitch_;   // in a row of a band, and the values of a plane that it has
  const int64_t height_, bands_;  // output rows of a band; bands in the part
  const int64_t vectors_;
  T *const rows_, *const transformed_, *const products_, *const sums_, *const rest_;
  int64_t row_in_slot_[reach];
  bool fits_[reach];
  Ahead ahead_;
};

template <int side, typename T>
void convolve_by_winograd(const Conv<T>& conv, const Part& part, T* scratch) {
  const WinogradPlan<T, side> plan(conv);
  for (int64_t x0 = part.first_column; x0 < part.last_column; x0 += side * plan.tiles) {
    WinogradStrip<T, side>(conv, plan, part, x0, scratch).run();
  }
}
