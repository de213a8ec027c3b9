// Convolution of bfloat16 and of bytes by products of tiles (AMX). Part of kernels_impl.h.
//
// A tile register holds 16 rows of 64 bytes. One instruction multiplies 16 pixels x 32 terms by 32
// terms x 16 output channels, and adds to 16 x 16 sums in float32: 8,192 multiply-adds, where the
// vectors' instruction has 16; of bytes, twice as many terms, in 32 bits. Nothing is transposed: a
// strip's input rows lie in scratch memory as images do, all channels of the virtual concatenation
// side by side in columns of whole tiles (see TileLayout), zero outside the image. A tile of pixels
// is 16 of its columns from one tap on.

template <typename T, typename Tiles>
class TileStrip {
 public:
  using Element = typename Tiles::Element;
  using Sum = typename Tiles::Sum;
  using Plan = TilePlan<Element>;

  TileStrip(const Conv<T>& conv, const Plan& plan, const Part& part, int64_t x0, T* scratch)
      : conv_(conv),
        plan_(plan),
        part_(part),
        x0_(x0),
        pixels_(smaller(plan.width, part.last_column - x0)),
        taps_(conv),
        chunk_(chunk(conv, plan)),
        in_place_(reads_in_place(conv) && pixels_ % Plan::pixels == 0),
        pixel_(in_place_ ? conv.inputs[0].stride_w : plan.step * plan.pitch()),
        sums_(reinterpret_cast<Sum*>(scratch) +
              (-reinterpret_cast<uintptr_t>(scratch) % line) / sizeof(T)),
        rows_(reinterpret_cast<Element*>(sums_ + 2 * Plan::sums)) {}
  // What is still to be written, is.
  ~TileStrip() { finish(Plan::block); }

  void row(int64_t y) {
    gather(y);
    if constexpr (Tiles::native) {
      // CPUs that have AMX foresee what is read: to ask for it too takes 5 to 15% longer.
      ahead_.clear();
      ahead_.write(conv_, part_.n, y, x0_, x0_ + pixels_);
    } else {
      taps_.look_ahead(ahead_, part_, y, x0_, pixels_, plan_.width);
    }
    const int64_t tiles = ceil_div(conv_.out_channels, Plan::outputs);
    ahead_.spread(tiles / 2 * ceil_div(pixels_, 2 * Plan::pixels) +
                  tiles % 2 * ceil_div(pixels_, 4 * Plan::pixels));
    for (int64_t x = 0; x < pixels_; x += chunk_) {
      const int64_t end = smaller(x + chunk_, pixels_);
      for (int64_t first = 0; first < conv_.out_channels; first += 2 * Plan::outputs) {
        if (first + Plan::outputs < conv_.out_channels) {
          block<2, 2>(y, first, x, end);
        } else {
          block<4, 1>(y, first, x, end);
        }
      }
    }
  }

 private:
  static constexpr int64_t line = 64;

  static int64_t chunk(const Conv<T>& conv, const Plan& plan) {
    constexpr int64_t bytes = 24 * 1024, some = 4 * Plan::pixels;
    const int64_t panels = ceil_div(conv.out_channels, Plan::outputs);
    const int64_t weights = panels * conv.kernel_h * plan.row() * sizeof(Element);
    return weights <= bytes ? some : plan.width;
  }

  // A 1x1 on whole tiles of terms needs no copy of its image.
  static bool reads_in_place(const Conv<T>& conv) {
    const Image& image = conv.inputs[0];
    return conv.kernel_h * conv.kernel_w * conv.stride_h * conv.stride_w == 1 &&
           conv.input_count == 1 && is_copied<Element>(conv, image) &&
           conv.in_channels % Plan::terms == 0 && image.stride_w % Plan::terms == 0 &&
           image.stride_h % Plan::terms == 0 && image.stride_n % Plan::terms == 0 &&
           reinterpret_cast<uintptr_t>(image.data) % line == 0;
  }
  // Outputs [first, first + 16 width) of pixels [x, end), `height` tiles at a time, and fewer at
  // the end.
  template <int height, int width>
  void block(int64_t y, int64_t first, int64_t x, int64_t end) {
    for (; end - x > (height - 1) * Plan::pixels; x += height * Plan::pixels) {
      ahead_.step();
      multiply<height, width>(first, x);
      pending_ = {y, x, first, width, height, 0, other_sums()};
    }
    if constexpr (height > 1) {
      block<height - 1, width>(y, first, x, end);
    }
  }

  // sums[tile of pixels][pixel][output].
  template <int height, int width>
  void multiply(int64_t first, int64_t x) {
    const int64_t across = conv_.kernel_h * plan_.row();  // weights of 16 outputs
    const int64_t stride = pixel_, tap = conv_.dilation_w * plan_.pitch(), steps = plan_.steps;
    const auto* const panel =
        reinterpret_cast<const Element*>(conv_.weights) + first / Plan::outputs * across;
    // The sums of the block before are finished meanwhile.
    const int64_t all = count_ * plan_.columns * steps;
    const int64_t rows = pending_.rows;
    const int64_t some = ceil_div(rows, larger(all, 1)), every = larger(all / larger(rows, 1), 1);
    int64_t until = every;
    Tiles tiles;
    tiles.zero(conv_.out_channels - first);  // outputs that count
    for (int64_t t = 0; t < count_; t++) {
      const Element* from = here_[t].planes + x * stride;
      const Element* weights = panel + here_[t].index * plan_.row();
      for (int64_t c = 0; c < plan_.columns; c++, from += tap) {
        for (int64_t k = 0; k < steps; k++, weights += Plan::values) {
          const Element* const at = from + k * Plan::terms;
          tiles.limit(plan_.taps * conv_.in_channels - k * Plan::terms);
          tiles.template load_weights<0>(weights);
          if constexpr (width > 1) {
            tiles.template load_weights<1>(weights + across);
          }
          add<0, height, width>(tiles, at, stride);
          if (--until == 0) {
            until = every;
            finish(some);
          }
        }
      }
    }
    finish(Plan::block);
    constexpr int64_t values = width * Plan::outputs;
    store<0, height, width>(tiles, values, other_sums());
  }

  template <int i, int height, int width>
  static void add(Tiles& tiles, const Element* at, int64_t stride) {
    if constexpr (i < height) {
      constexpr int pixels = i % 2;
      tiles.template load_pixels<pixels>(at + i * Plan::pixels * stride, stride * sizeof(Element));
      tiles.template multiply<i * width, pixels, 0>();
      if constexpr (width > 1) {
        tiles.template multiply<i * width + 1, pixels, 1>();
      }
      add<i + 1, height, width>(tiles, at, stride);
    }
  }

  template <int i, int height, int width>
  void store(Tiles& tiles, int64_t values, Sum* sums) const {
    if constexpr (i < height) {
      Sum* const to = sums + i * Plan::pixels * values;
      tiles.template store<i * width>(to, values * sizeof(Sum));
      if constexpr (width > 1) {
        tiles.template store<i * width + 1>(to + Plan::outputs, values * sizeof(Sum));
      }
      store<i + 1, height, width>(tiles, values, sums);
    }
  }

  // Writes the outputs of up to `rows` times 16 pixels whose sums are pending.
  void finish(int64_t rows) {
    for (; rows > 0 && pending_.done < pending_.rows; rows--, pending_.done++) {
      with_result<T, is_bytes<Element>>(conv_.out.dtype, [&](auto* type) {
        using Out = std::remove_pointer_t<decltype(type)>;
        pending_.width > 1 ? finish_row<Out, 2>() : finish_row<Out, 1>();
      });
    }
  }

  template <typename Out, int width>
  void finish_row() const {
    constexpr int64_t values = width * Plan::outputs;
    const int64_t first = pending_.first, y = pending_.y;
    const int64_t x = pending_.x + pending_.done * Plan::pixels, at = x0_ + x;
    const int64_t count = smaller(Plan::pixels, pixels_ - x), step = conv_.out.stride_w;
    const Sum* const sums = pending_.sums + pending_.done * Plan::pixels * values;
    Out* const out = static_cast<Out*>(conv_.out.data) + conv_.out.offset(part_.n, y, at) + first;
#if defined(FASSD_AVX512)
    if constexpr (is_bytes<Out>) {
      if (FinishBytes<width>::serves(conv_)) {
        FinishBytes<width>(conv_, part_.n, y, first).write(sums, at, count, out, step);
        return;
      }
    }
#endif
    using Part = Finish<T, Tiles::native, Sum>;
    if constexpr (width == 2 && lanes<T> == Plan::outputs) {
      const Part parts[] = {Part(conv_, part_.n, y, first),
                            Part(conv_, part_.n, y, first + lanes<T>)};
      Part::columns(parts, sums, values, {at, 1, count}, out, step);
    } else {
      const int64_t last = smaller(values, conv_.out_channels - first);
      for (int64_t c = 0; c < last; c += lanes<T>) {
        const Part parts[] = {Part(conv_, part_.n, y, first + c)};
        Part::columns(parts, sums + c, values, {at, 1, count}, out + c, step);
      }
    }
  }

  // Brings the input rows of output row y into their slots; lists those that are not padding.
  void gather(int64_t y) {
    count_ = 0;
    for (int64_t tap = 0; tap < conv_.kernel_h; tap++) {
      const int64_t row = taps_.input_row(y, tap);
      if (in_place_) {
        const Image& image = conv_.inputs[0];
        const int64_t at = image.offset(part_.n, y) + x0_ * image.stride_w;
        here_[count_++] = {static_cast<const Element*>(image.data) + at, 0};
      } else if (taps_.is_there(row)) {
        const int64_t slot = taps_.slot_of(row, tap);
        Element* const to = rows_ + slot * plan_.slot;
        if (taps_.row_in_slot[slot] != row) {
          taps_.row_in_slot[slot] = row;
          TileRow<T, Element, Tiles::native>(conv_, plan_, part_.n, row, x0_).load(pixels_, to);
        }
        here_[count_++] = {to, tap};
      } else if constexpr (is_bytes<Element>) {
        here_[count_++] = {padding_row(), tap};
      }
    }
  }

  // A row outside the image, whose bytes are not zero.
  const Element* padding_row() {
    Element* const to = rows_ + conv_.kernel_h * plan_.slot;
    if (!padded_) {
      padded_ = true;
      TileRow<T, Element, Tiles::native>(conv_, plan_, part_.n, 0, x0_).load_padding(pixels_, to);
    }
    return to;
  }

  Sum* other_sums() const { return pending_.sums == sums_ ? sums_ + Plan::sums : sums_; }

  // A block of sums that are not finished yet: `rows` of `width` tiles, of which some are done.
  struct Pending {
    int64_t y, x, first, width, rows, done;
    Sum* sums;
  };

  struct TapRow {
    const Element* planes;
    int64_t index;
  };

  const Conv<T>& conv_;
  const Plan& plan_;
  const Part& part_;
  const int64_t x0_, pixels_;
  TapRows<T> taps_;
  const int64_t chunk_;  // pixels of which all outputs are computed one after the other
  const bool in_place_;
  const int64_t pixel_;  // values from one output pixel's to the next's
  Sum* const sums_;
  Element* const rows_;
  Pending pending_ = {};
  TapRow here_[most_side];
  int64_t count_ = 0;
  bool padded_ = false;
  Ahead ahead_;
};

template <typename Tiles, typename T>
void convolve_by_tiles(const Conv<T>& conv, const Part& part, T* scratch) {
  const TilePlan<typename Tiles::Element> plan(conv);
  const int64_t step = conv.stride_h == 1 ? conv.dilation_h : 1;
  Tiles::begin();
  for (int64_t x0 = part.first_column; x0 < part.last_column; x0 += plan.width) {
    TileStrip<T, Tiles> strip(conv, plan, part, x0, scratch);
    for_rows(part.first_row, part.last_row, step, [&](int64_t y) { strip.row(y); });
  }
  Tiles::end();
}
