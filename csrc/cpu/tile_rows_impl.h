// From images to rows of columns that are multiplied as tiles. Part of kernels_impl.h.

template <typename Element>
constexpr bool is_bytes = sizeof(Element) == 1;

// How a strip lies in scratch memory.
template <typename Element>
struct TilePlan : TileLayout<Element> {
  using Layout = TileLayout<Element>;
  using Layout::columns, Layout::outputs, Layout::pitch, Layout::taps;
  static constexpr int64_t pixels = 16, block = 4, sums = block * pixels * outputs;
  int64_t step;   // columns from an output pixel to the next
  int64_t width;  // output pixels of a strip
  int64_t slot;   // values of a row

  template <typename T>
  explicit TilePlan(const Conv<T>& conv)
      : Layout(conv.in_channels, conv.kernel_w), step(taps > 1 ? 1 : conv.stride_w) {
    // The rows that an output row reads stay in the second level of the cache.
    constexpr int64_t bytes = 256 * 1024, most = 1024, unit = 4 * pixels;
    const int64_t pixel = conv.kernel_h * step * pitch() * sizeof(Element);
    width = smaller(larger(bytes / pixel / unit, 1), most / unit) * unit;
    width = smaller(width, round_up(conv.out_width, unit));
    slot = read(conv, width) * pitch();
  }

  // Columns that `count` output pixels read.
  template <typename T>
  int64_t read(const Conv<T>& conv, int64_t count) const {
    return (count - 1) * step + (columns - 1) * conv.dilation_w + 1;
  }
  // Values of float that scratch memory has: the sums of four tiles, and rows, one more of bytes
  // for the padding, from a cache line's beginning on.
  template <typename T>
  int64_t total(const Conv<T>& conv) const {
    constexpr int64_t apart = sizeof(float) / sizeof(Element);
    return 2 * sums + (conv.kernel_h + is_bytes<Element>)*slot / apart + 16;
  }
};

// Whether the channels of a pixel of an input are adjacent values, multiplied as they are.
template <typename Element, typename T>
inline bool is_copied(const Conv<T>& conv, const Image& image) {
  constexpr ScalarType same = is_bytes<Element> ? ScalarType::Byte : ScalarType::BFloat16;
  return image.dtype == same && image.stride_c == 1 && !conv.prologue.scale;
}

// Row y of image n of all inputs, in the columns of the strip at x0.
template <typename T, typename Element, bool native>
class TileRow {
 public:
  using Plan = TilePlan<Element>;

  TileRow(const Conv<T>& conv, const Plan& plan, int64_t n, int64_t y, int64_t x0)
      : conv_(conv),
        plan_(plan),
        n_(n),
        y_(y),
        left_(x0 * conv.stride_w - conv.kernel_w / 2 * conv.dilation_w),
        step_(plan.taps > 1 ? conv.stride_w : 1) {}

  // What `pixels` output pixels read. Columns of which some taps lie outside the image are at the
  // ends.
  void load(int64_t pixels, Element* to) const {
    const int64_t count = plan_.read(conv_, pixels), width = conv_.inputs[0].width;
    const int64_t reach = (plan_.taps - 1) * conv_.dilation_w;
    const int64_t first = smaller(larger(ceil_div(-left_, step_), 0), count);
    const int64_t end =
        smaller(larger(floor_div(width - 1 - reach - left_, step_) + 1, first), count);
    for (int64_t i = 0; i < first; i++) {
      load_edge(i, to + i * plan_.pitch());
    }
    if (first < end) {
      load_columns(first, end - first, 0, plan_.taps, to + first * plan_.pitch());
    }
    for (int64_t i = end; i < count; i++) {
      load_edge(i, to + i * plan_.pitch());
    }
  }

  // What they read of a row outside the image.
  void load_padding(int64_t pixels, Element* to) const {
    const int64_t count = plan_.read(conv_, pixels), pitch = plan_.pitch();
    pad(to);
    for (int64_t i = 1; i < count; i++) {
      std::memcpy(to + i * pitch, to, pitch * sizeof(*to));
    }
  }

 private:
  // The column of the image that a tap reads in column i.
  int64_t column(int64_t i, int64_t tap) const {
    return left_ + i * step_ + tap * conv_.dilation_w;
  }

  // A column outside the image: zero, which each input has its own byte for.
  void pad(Element* to) const {
    std::memset(to, 0, plan_.pitch() * sizeof(*to));
    for (int64_t tap = 0; is_bytes<Element> && tap < plan_.taps; tap++) {
      for (int64_t k = 0; k < conv_.input_count; k++) {
        std::memset(to, conv_.inputs[k].zero, conv_.inputs[k].channels);
        to += conv_.inputs[k].channels;
      }
    }
  }

  void load_edge(int64_t i, Element* to) const {
    pad(to);
    for (int64_t tap = 0; tap < plan_.taps; tap++) {
      if (column(i, tap) >= 0 && column(i, tap) < conv_.inputs[0].width) {
        load_columns(i, 1, tap, tap + 1, to);
      }
    }
  }

  // Taps [tap, last) of columns from i on, all of them inside the image; the other terms become
  // zero, but in a column at the edge, of which this is a part.
  void load_columns(int64_t i, int64_t count, int64_t tap, int64_t last, Element* to) const {
#if defined(FASSD_AVX512)
    const bool whole = last - tap == plan_.taps;
    if constexpr (!is_bytes<Element>) {
      if (whole && is_planar()) {
        return load_planar(i, count, to);
      }
    }
    if (whole && all_copied()) {
      return copy_columns(i, count, to);
    }
#endif
    const int64_t terms = plan_.taps * conv_.in_channels;
    if (last - tap == plan_.taps && terms < plan_.pitch()) {
      for (int64_t x = 0; x < count; x++) {
        std::memset(to + x * plan_.pitch() + terms, 0, (plan_.pitch() - terms) * sizeof(*to));
      }
    }
    for (; tap < last; tap++) {
      int64_t channel = 0;
      for (int64_t k = 0; k < conv_.input_count; k++) {
        const Image& image = conv_.inputs[k];
        convert(image, column(i, tap), count, channel, to + tap * conv_.in_channels + channel);
        channel += image.channels;
      }
    }
  }

  // One input's channels of one tap, from column x of the image on, to[column * pitch + channel].
  void convert(const Image& image, int64_t x, int64_t count, int64_t channel, Element* to) const {
    if constexpr (is_bytes<Element>) {
      const auto* from = static_cast<const Element*>(image.data) + image.offset(n_, y_);
      for (int64_t i = 0; i < count; i++) {
        std::memcpy(to + i * plan_.pitch(), from + (x + i * step_) * image.stride_w,
                    image.channels);
      }
    } else {
      convert_values(image, x, count, channel, to);
    }
  }

  void convert_values(const Image& image, int64_t x, int64_t count, int64_t channel,
                      Element* to) const {
    const Prologue<T> prologue = prologue_from(conv_.prologue, channel);
    with_dtype<T>(image.dtype, [&](auto* type) {
      using In = std::remove_pointer_t<decltype(type)>;
      const In* const from =
          static_cast<const In*>(image.data) + image.offset(n_, y_) + x * image.stride_w;
      for (int64_t c = 0; c < image.channels; c += lanes<T>) {
        const int64_t some = smaller(lanes<T>, image.channels - c);
        if (image.stride_c != 1) {
          convert_vectors(from + c * image.stride_c, image, count, some, prologue, c, to + c,
                          [&](const In* at) {
                            Vector<T> v{};
                            for (int64_t i = 0; i < some; i++) {
                              v[i] = widen<T>(at[i * image.stride_c]);
                            }
                            return v;
                          });
        } else if (some < lanes<T>) {
          convert_vectors(from + c, image, count, some, prologue, c, to + c,
                          [&](const In* at) { return load_part<T>(at, some); });
        } else {
          convert_vectors(from + c, image, count, some, prologue, c, to + c,
                          [&](const In* at) { return load_wide<T>(at); });
        }
      }
    });
  }

  template <typename In, typename Load>
  void convert_vectors(const In* from, const Image& image, int64_t count, int64_t channels,
                       const Prologue<T>& prologue, int64_t c, Element* to,
                       const Load& load) const {
    const int64_t apart = step_ * image.stride_w, pitch = plan_.pitch();
    auto* out = reinterpret_cast<BFloat16*>(to);
    if (!prologue.scale) {
      for (int64_t x = 0; x < count; x++, from += apart, out += pitch) {
        store_channels<T, native>(out, load(from), channels);
      }
      return;
    }
    const Vector<T> scale = load_vector(prologue.scale + c),
                    shift = load_vector(prologue.shift + c),
                    slope = load_vector(prologue.slope + c);
    for (int64_t x = 0; x < count; x++, from += apart, out += pitch) {
      store_channels<T, native>(out, prelu<T>(load(from) * scale + shift, slope), channels);
    }
  }

#if defined(FASSD_AVX512)
  bool all_copied() const {
    bool all = true;
    for (int64_t k = 0; k < conv_.input_count; k++) {
      all = all && is_copied<Element>(conv_, conv_.inputs[k]);
    }
    return all;
  }

  // Adjacent values of an input that become adjacent terms of a tile.
  struct Piece {
    const Element* from;  // the first column's
    int64_t apart;        // from column to column
    int64_t begin, end;   // terms
  };

  // Tile by tile of all columns: its pieces are loaded into one register, each shifted to its place
  // by where its load begins, and the others' lanes masked.
  void copy_columns(int64_t i, int64_t count, Element* to) const {
    constexpr int64_t terms = Plan::terms;
    for (int64_t first = 0; first < plan_.pitch(); first += terms) {
      Piece pieces[terms];
      int64_t found = 0, term = 0;
      for (int64_t tap = 0; tap < plan_.taps; tap++) {
        for (int64_t k = 0; k < conv_.input_count; k++) {
          const Image& image = conv_.inputs[k];
          const int64_t begin = larger(term, first);
          const int64_t end = smaller(term + image.channels, first + terms);
          if (begin < end) {
            const auto* const from = static_cast<const Element*>(image.data) +
                                     image.offset(n_, y_) + column(i, tap) * image.stride_w +
                                     begin - term;
            Piece* const before = pieces + found - 1;
            const int64_t apart = step_ * image.stride_w;
            if (found > 0 && before->from + (before->end - before->begin) == from &&
                before->apart == apart) {
              before->end = end - first;
            } else {
              pieces[found++] = {from, apart, begin - first, end - first};
            }
          }
          term += image.channels;
        }
      }
      copy_tiles(pieces, found, count, to + first);
    }
  }

  using Mask = std::conditional_t<is_bytes<Element>, __mmask64, __mmask32>;

  static Mask mask_of(const Piece& piece) {
    return Mask(~uint64_t(0) >> (64 - piece.end) & ~uint64_t(0) << piece.begin);
  }

  // The terms of a mask; the others are those of v.
  static __m512i load_terms(__m512i v, Mask mask, const Element* from) {
    if constexpr (is_bytes<Element>) {
      return _mm512_mask_loadu_epi8(v, mask, from);
    } else {
      return _mm512_mask_loadu_epi16(v, mask, from);
    }
  }
  static __m512i load_terms(Mask mask, const Element* from) {
    if constexpr (is_bytes<Element>) {
      return _mm512_maskz_loadu_epi8(mask, from);
    } else {
      return _mm512_maskz_loadu_epi16(mask, from);
    }
  }

  void copy_tiles(const Piece* pieces, int64_t found, int64_t count, Element* to) const {
    switch (found) {
      case 1:
        return copy_pieces<1>(pieces, count, to);
      case 2:
        return copy_pieces<2>(pieces, count, to);
      case 3:
        return copy_pieces<3>(pieces, count, to);
      case 4:
        return copy_pieces<4>(pieces, count, to);
      case 5:
        return copy_pieces<5>(pieces, count, to);
    }
    copy_pieces<5>(pieces, count, to);
    const int64_t pitch = plan_.pitch();
    for (int64_t k = 5; k < found; k++) {
      const Mask mask = mask_of(pieces[k]);
      const Element* from = pieces[k].from - pieces[k].begin;
      for (int64_t x = 0; x < count; x++, from += pieces[k].apart) {
        _mm512_store_si512(to + x * pitch,
                           load_terms(_mm512_load_si512(to + x * pitch), mask, from));
      }
    }
  }

  template <int found>
  void copy_pieces(const Piece* pieces, int64_t count, Element* to) const {
    const int64_t pitch = plan_.pitch();
    const Element* from[found];
    Mask mask[found];
    int64_t apart[found];
    for (int k = 0; k < found; k++) {
      from[k] = pieces[k].from - pieces[k].begin;
      mask[k] = mask_of(pieces[k]);
      apart[k] = pieces[k].apart;
    }
    for (int64_t x = 0; x < count; x++, to += pitch) {
      __m512i v = load_terms(mask[0], from[0]);
      from[0] += apart[0];
#pragma GCC unroll 5
      for (int k = 1; k < found; k++) {
        v = load_terms(v, mask[k], from[k]);
        from[k] += apart[k];
      }
      _mm512_store_si512(to, v);
    }
  }

  // A picture: few channels, each a plane.
  bool is_planar() const {
    const Image& image = conv_.inputs[0];
    return plan_.taps == conv_.kernel_w && plan_.steps == 1 && conv_.input_count == 1 &&
           image.dtype == ScalarType::BFloat16 && image.stride_w == 1 && image.channels <= 4 &&
           !conv_.prologue.scale && (plan_.taps - 1) * conv_.dilation_w < Plan::terms;
  }

  // Terms of a column are picked out of a register of each channel, which has those of some
  // columns.
  void load_planar(int64_t i, int64_t count, Element* to) const {
    constexpr int64_t terms = Plan::terms;
    const Image& image = conv_.inputs[0];
    alignas(64) uint16_t place[terms] = {};
    __mmask32 low = 0, high = 0;  // terms of channels 0 and 1, and of 2 and 3
    for (int64_t tap = 0, term = 0; tap < plan_.taps; tap++) {
      for (int64_t c = 0; c < image.channels; c++, term++) {
        place[term] = uint16_t(tap * conv_.dilation_w + c % 2 * terms);
        (c < 2 ? low : high) |= __mmask32(1) << term;
      }
    }
    const auto* const row =
        static_cast<const Element*>(image.data) + image.offset(n_, y_) + column(i, 0);
    const int64_t reach = (plan_.taps - 1) * conv_.dilation_w;
    const int64_t group = (terms - 1 - reach) / step_ + 1;  // columns in a register
    const __m512i next = _mm512_set1_epi16(int16_t(step_));
    for (int64_t x = 0; x < count; x += group) {
      const int64_t some = smaller(group, count - x);
      const int64_t there = (some - 1) * step_ + reach + 1;
      const __mmask32 mask = __mmask32((uint64_t(1) << there) - 1);
      __m512i plane[4] = {};
      for (int64_t c = 0; c < image.channels; c++) {
        plane[c] = _mm512_maskz_loadu_epi16(mask, row + x * step_ + c * image.stride_c);
      }
      __m512i at = _mm512_load_si512(place);
      for (int64_t k = 0; k < some; k++, to += plan_.pitch(), at = _mm512_add_epi16(at, next)) {
        const __m512i v = _mm512_maskz_permutex2var_epi16(low, plane[0], at, plane[1]);
        const __m512i w = _mm512_maskz_permutex2var_epi16(high, plane[2], at, plane[3]);
        _mm512_store_si512(to, _mm512_or_si512(v, w));
      }
    }
  }
#endif

  const Conv<T>& conv_;
  const Plan& plan_;
  const int64_t n_, y_;
  const int64_t left_;  // column of the image that the first column's first tap reads
  const int64_t step_;  // columns of the image from column to column
};
