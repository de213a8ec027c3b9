// Winograd's convolution, in strips of columns like direct_impl.h. Part of kernels_impl.h.
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
